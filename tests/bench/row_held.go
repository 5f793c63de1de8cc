package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// heldMode is one way to run B6, and what it gave in each round.
type heldMode struct {
	who  string
	c    contender
	crew func(*target) crew
	runs []heldRun
}

type heldRun struct {
	rates  []float64          // jobs a second, one a slice
	delays []float64          // milliseconds from commit to lease, sorted, of every job of the run
	tables map[string][]int64 // bytes, one a slice, by name
}

// B6: B5 while somebody keeps every dead row alive. One contender runs after the other, since the
// decay is inside the run; whole runs are repeated for a spread.
func (b *bench) heldSnapshot(ctx context.Context) ([]row, error) {
	plain := func(t *target) crew { return leaseAck(t, 4, 10, pause) }
	modes := []*heldMode{
		{who: "openqueue", c: ours, crew: plain},
		{who: "textbook", c: textbook, crew: plain},
	}
	if b.chosen { // minutes that the whole table has no time for
		modes = append(modes, &heldMode{who: "oq_next", c: ours,
			crew: func(t *target) crew { return leaseByNext(t, 4, 10, pause) }})
	}
	for _, c := range b.sqlPeers(kindSteady) {
		modes = append(modes, &heldMode{who: c.name, c: c, crew: plain})
	}
	for round := range b.size.heldRounds {
		for _, m := range modes {
			if err := b.heldRun(ctx, m); err != nil {
				return nil, fmt.Errorf("%s: %w", m.who, err)
			}
			r := m.runs[round]
			text := fmt.Sprintf("B6 %s, jobs/s by %v: %s", m.who, b.size.heldSlice, series{values: r.rates})
			b.progress("round %d: %s; longest from commit to lease %.0f ms", round+1, text, r.delay(1))
			b.record(record{Row: "B6", Who: m.who, Round: round + 1, Seconds: b.size.heldSlice.Seconds(),
				Rates: r.rates, Bytes: r.tables, Delays: map[string]float64{
					"p50": r.delay(0.5), "p99": r.delay(0.99), "max": r.delay(1)}})
			if round == 0 {
				b.notes = append(b.notes, text)
				if m.c.daemon {
					b.notes = append(b.notes, fmt.Sprintf("B6 %s, narrow tables: %s", m.who, growth(r.tables)))
				}
			}
		}
	}
	b.charts = append(b.charts, heldChart(modes, b.holder, b.size.heldSlice))
	return heldRows(modes, "B5 beside "+holderNames[b.holder]), nil
}

func (b *bench) heldRun(ctx context.Context, m *heldMode) error {
	t, err := b.fresh(ctx, m.c, "b6_"+m.who)
	if err != nil {
		return err
	}
	if err := t.prime(ctx); err != nil {
		return err
	}
	release, err := b.hold(ctx, t)
	if err != nil {
		return err
	}
	tables := map[string][]int64{}
	window := b.steadyWindow(b.size.heldSlice, b.size.heldSlices)
	window.timed = true
	window.each = func(int, float64) error { return t.weigh(ctx, tables) }
	res, err := t.measure(ctx, window, steady(t, m.crew(t))...)
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	if err := t.drain(ctx); err != nil { // what waited till now is as late as it looks
		return err
	}
	if err := t.verify(ctx); err != nil {
		return err
	}
	delays, err := t.delays()
	if err != nil {
		return err
	}
	m.runs = append(m.runs, heldRun{rates: res.rates, delays: delays, tables: tables})
	return b.drop(ctx, t)
}

// heldRows: is the last slice as good as the first, how much better than the textbook's, and was
// any job forgotten on the way?
func heldRows(modes []*heldMode, work string) []row {
	last := func(m *heldMode) row {
		r := row{id: "B6", work: work + ", last slice", who: m.who, unit: "jobs/s"}
		for _, run := range m.runs {
			r.values = append(r.values, run.rates[len(run.rates)-1])
		}
		return r
	}
	flat := func(m *heldMode, g goal) row {
		first := row{who: "its first"}
		for _, run := range m.runs {
			first.values = append(first.values, run.rates[0])
		}
		return last(m).versus(first, g)
	}
	longest := func(m *heldMode) row {
		r := row{id: "B6", work: work + ", longest from commit to lease", who: m.who, unit: "ms"}
		for _, run := range m.runs {
			r.values = append(r.values, run.delay(1))
		}
		return r
	}
	var rows, late []row
	base := modes[1]
	for _, m := range modes {
		if m.c.daemon {
			rows = append(rows, flat(m, atLeast(0.95)), last(m).versus(last(base), atLeast(10)))
		} else {
			rows = append(rows, flat(m, goal{}))
		}
		if m == base {
			late = append(late, longest(m))
		} else {
			late = append(late, longest(m).versus(longest(base), goal{}))
		}
	}
	return append(rows, late...)
}

func heldChart(modes []*heldMode, holder string, slice time.Duration) *chart {
	c := &chart{file: "held.svg", xLabel: "seconds", title: fmt.Sprintf(
		"4 producers, 4 consumers beside %s: jobs/s by %v", holderNames[holder], slice)}
	for i := range modes[0].runs[0].rates {
		c.ticks = append(c.ticks, fmt.Sprintf("%g", float64(i+1)*slice.Seconds()))
	}
	for _, m := range modes {
		s := series{name: m.who}
		for i := range m.runs[0].rates {
			var values []float64
			for _, r := range m.runs {
				if i < len(r.rates) {
					values = append(values, r.rates[i])
				}
			}
			s.values = append(s.values, median(values))
		}
		c.series = append(c.series, s)
	}
	return c
}

func (r heldRun) delay(q float64) float64 { return quantile(r.delays, q) }

// quantile of sorted values.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1))]
}

// delays are the milliseconds from the return of each timed enqueue to the return of its lease,
// sorted. Ids lie close together, so that a slice serves as the map of millions of them.
func (t *target) delays() ([]float64, error) {
	made, leased := t.made[len(t.made)-len(t.madeAt):], t.leased[len(t.leased)-len(t.leasedAt):]
	if len(made) == 0 {
		return nil, nil
	}
	low := slices.Min(made)
	at := make([]int64, slices.Max(made)-low+1)
	for i := range at {
		at[i] = math.MaxInt64
	}
	for i, id := range leased {
		if id >= low && id-low < int64(len(at)) {
			at[id-low] = t.leasedAt[i]
		}
	}
	var all []float64
	for i, id := range made {
		if at[id-low] == math.MaxInt64 {
			return nil, fmt.Errorf("%s: job %d was never leased", t.name, id)
		}
		// A lease can return before the enqueue that it overtook on the way back.
		all = append(all, float64(max(0, at[id-low]-t.madeAt[i]))/1e6)
	}
	slices.Sort(all)
	return all, nil
}

// weigh notes how large each of the contender's tables is that should stay small.
func (t *target) weigh(ctx context.Context, tables map[string][]int64) error {
	rows, err := t.conn.Query(ctx, t.narrow)
	if err != nil {
		return err
	}
	var name string
	var bytes int64
	_, err = pgx.ForEachRow(rows, []any{&name, &bytes}, func() error {
		tables[name] = append(tables[name], bytes)
		return nil
	})
	return err
}

// growth says how large tables were at first, at most and at last; small ones are left to the JSON.
func growth(tables map[string][]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		v := tables[name]
		if most := slices.Max(v); most >= 1<<20 {
			parts = append(parts, fmt.Sprintf("%s %s, at most %s, then %s", name, mega(v[0]), mega(most), mega(v[len(v)-1])))
		}
	}
	if len(parts) == 0 {
		return "none above 1 MB"
	}
	return strings.Join(parts, "; ")
}

func mega(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/(1<<20)) }
