package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// B3 and B4: working off a backlog, one by one and in batches.
func (b *bench) drain(ctx context.Context, id, work string, kind kind, clients, n int, backlog int64,
	alone, next goal) ([]row, error) {

	mine, base, err := b.pair(ctx, id, textbook)
	if err != nil {
		return nil, err
	}
	window := b.size.window
	if n > 1 {
		window = window * 2 / 3 // the backlog must last
	}
	turn := func(who string, t *target, c crew) entrant {
		return entrant{who: who, target: t, m: b.window(window), crews: []crew{c},
			prepare: filled(t, backlog, 1)}
	}
	peers, err := b.peerEntrants(ctx, id, kind, window, func(t *target) entrant {
		return turn(t.contender.name, t, leaseAck(t, clients, n, dry))
	})
	if err != nil {
		return nil, err
	}
	rows, err := b.rounds(ctx, id, work, b.size.rounds, append([]entrant{
		turn("openqueue", mine, leaseAck(mine, clients, n, dry)),
		turn("textbook", base, leaseAck(base, clients, n, dry)),
		turn("oq_next", mine, leaseByNext(mine, clients, n, dry)),
	}, peers...)...)
	if err != nil {
		return nil, err
	}
	return slices.Concat(beside(rows[0], rows[1], alone, rows[3:]), beside(rows[2], rows[1], next, rows[3:]),
		rows[1:2], rows[3:]), nil
}

func (b *bench) oneByOne(ctx context.Context) ([]row, error) {
	return b.drain(ctx, "B3", "lease + ack one by one, 8 clients", kindOne, 8, 1, b.size.backlog,
		atLeast(1.15), atLeast(1.8))
}

func (b *bench) batches(ctx context.Context) ([]row, error) {
	rows, err := b.drain(ctx, "B4", "lease + ack by 100, 4 clients", kindBatch, 4, 100, b.size.bigBacklog,
		atLeast(1.6), goal{})
	if err != nil {
		return nil, err
	}
	speed := rows[0]
	speed.against, speed.ratios, speed.goal, speed.cpu = "", nil, atLeast(200_000), nil
	return slices.Insert(rows, 1, speed), nil
}

// B4N: how much does a larger batch give? It has a picture, so its table is two lines.
func (b *bench) batchSizes(ctx context.Context) ([]row, error) {
	const id, clients = "B4N", 4
	mine, base, err := b.pair(ctx, id, textbook)
	if err != nil {
		return nil, err
	}
	chart := &chart{
		file: "batches.svg", title: "lease + ack by N, 4 clients: jobs/s against N", xLabel: "jobs a call", log: true,
		series: []series{{name: "openqueue: oq_next"}, {name: "openqueue: oq_lease + oq_ack_many"}, {name: "textbook"}},
	}
	plain, next := id+" lease + ack by N, × textbook:", id+" oq_next by N, × textbook:"
	var all []row
	for _, n := range b.size.batches {
		m := b.window(b.size.window / 3)
		m.warmup = min(m.warmup, 300*time.Millisecond)
		m.jobs = b.size.bigBacklog / 2
		turn := func(who string, t *target, c crew) entrant {
			return entrant{who: who, target: t, m: m, crews: []crew{c}, prepare: filled(t, b.size.bigBacklog, 1)}
		}
		rows, err := b.rounds(ctx, id, fmt.Sprintf("lease + ack by %d, %d clients", n, clients), b.size.rounds,
			turn("openqueue", mine, leaseAck(mine, clients, n, dry)),
			turn("textbook", base, leaseAck(base, clients, n, dry)),
			turn("oq_next", mine, leaseByNext(mine, clients, n, dry)))
		if err != nil {
			return nil, err
		}
		one, two := rows[0].versus(rows[1], goal{}), rows[2].versus(rows[1], goal{})
		plain += fmt.Sprintf("  %d: %s", n, spread(one.ratios, 2))
		next += fmt.Sprintf("  %d: %s", n, spread(two.ratios, 2))
		chart.ticks = append(chart.ticks, fmt.Sprint(n))
		for i, r := range []row{two, one, rows[1]} {
			chart.series[i].values = append(chart.series[i].values, median(r.values))
		}
		all = append(all, one, two, rows[1])
	}
	b.notes = append(b.notes, plain, next)
	b.charts = append(b.charts, chart)
	for i := range all { // between B3 and B4 lies one that stands for a busy worker
		all[i].hidden = !strings.HasPrefix(all[i].work, "lease + ack by 10,")
	}
	return all, nil
}

// B8: does a lease feel what else lies in the tables? Backlogs are loaded in both orders, since a
// plan or a page that is right for one can be wrong for the other.
func (b *bench) deepBacklog(ctx context.Context) ([]row, error) {
	const priorities = 10
	small, err := b.fresh(ctx, ours, "b8_small")
	if err != nil {
		return nil, err
	}
	readyFirst, err := b.fresh(ctx, ours, "b8_ready_first")
	if err != nil {
		return nil, err
	}
	laterFirst, err := b.fresh(ctx, ours, "b8_later_first")
	if err != nil {
		return nil, err
	}
	n := b.size.bigBacklog
	b.progress("B8 loading twice %d ready and %d scheduled jobs", n, n)
	for _, load := range []func() error{
		func() error { return readyFirst.fill(ctx, n, priorities) },
		func() error { return readyFirst.fillLater(ctx, n, priorities) },
		func() error { return laterFirst.fillLater(ctx, n, priorities) },
		func() error { return laterFirst.fill(ctx, 2*n, priorities) },
	} {
		if err := load(); err != nil {
			return nil, err
		}
	}
	var rows []row
	for _, kind := range ways {
		turn := func(who string, t *target, backlog int64, priorities int) entrant {
			m := b.window(b.size.window / 2)
			m.jobs = b.size.backlog / 2
			return entrant{who: who, target: t, m: m, prepare: filled(t, backlog, priorities),
				crews: []crew{leaseAck(t, kind.clients, kind.n, dry)}}
		}
		got, err := b.rounds(ctx, "B8", kind.work+", "+short(n)+" ready + "+short(n)+" scheduled", b.size.rounds,
			turn("ready loaded first", readyFirst, 0, priorities),
			turn("small backlog", small, b.size.backlog, 1),
			turn("scheduled first", laterFirst, 0, priorities))
		if err != nil {
			return nil, err
		}
		rows = append(rows, got[0].versus(got[1], atLeast(0.95)), got[2].versus(got[1], atLeast(0.95)), got[1])
	}
	return rows, nil
}

// ways are B3's and B4's, for rows that ask what else a lease feels.
var ways = []struct {
	work       string
	clients, n int
}{{"lease + ack one by one", 8, 1}, {"lease + ack by 100", 4, 100}}

// short writes 1000000 as 1M.
func short(n int64) string {
	switch {
	case n >= 1_000_000 && n%100_000 == 0:
		return fmt.Sprintf("%gM", float64(n)/1e6)
	case n >= 1000 && n%100 == 0:
		return fmt.Sprintf("%gk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}
