package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// entrant is one contender's turn in a round.
type entrant struct {
	who     string
	target  *target
	prepare func(ctx context.Context) error // untimed, before each turn
	crews   []crew
	m       measurement
}

// rounds lets the entrants run in turns, so that what the machine does in between hits them alike,
// then holds each target against its ledger. It gives one row an entrant.
func (b *bench) rounds(ctx context.Context, id, work string, n int, entrants ...entrant) ([]row, error) {
	rows := make([]row, len(entrants))
	for i, e := range entrants {
		rows[i] = row{id: id, work: work, who: e.who, unit: "jobs/s"}
	}
	for round := range n {
		for i, e := range entrants {
			if err := e.prepare(ctx); err != nil {
				return nil, err
			}
			res, err := e.target.measure(ctx, e.m, e.crews...)
			if err != nil {
				return nil, err
			}
			b.progress("%s %s: round %d, %s: %.0f jobs/s", id, work, round+1, e.who, res.rate())
			rows[i].values = append(rows[i].values, res.rate())
			rows[i].cpu = append(rows[i].cpu, res.cpu)
		}
	}
	checked := map[*target]bool{}
	for _, e := range entrants {
		if !checked[e.target] {
			if err := e.target.verify(ctx); err != nil {
				return nil, err
			}
			checked[e.target] = true
		}
	}
	return rows, nil
}

// pair makes a target for openqueue and one for the contender it is compared with.
func (b *bench) pair(ctx context.Context, id string, other contender) (mine, base *target, err error) {
	if mine, err = b.fresh(ctx, ours, id); err != nil {
		return nil, nil, err
	}
	base, err = b.fresh(ctx, other, id)
	return mine, base, err
}

func (b *bench) window(d time.Duration) measurement {
	return measurement{warmup: b.size.warmup, slice: d, slices: 1}
}

// B1: what does one enqueue a transaction cost more than the INSERT that it can't do without?
func (b *bench) enqueue(ctx context.Context) ([]row, error) {
	mine, base, err := b.pair(ctx, "b1", bare)
	if err != nil {
		return nil, err
	}
	turn := func(t *target) entrant {
		return entrant{who: t.contender.name, target: t, prepare: t.settle, m: b.window(b.size.window),
			crews: []crew{{size: 8, role: t.producer, step: enqueueOne, count: true}}}
	}
	rows, err := b.rounds(ctx, "B1", "enqueue one a transaction, 8 clients", b.size.rounds,
		turn(mine), turn(base))
	if err != nil {
		return nil, err
	}
	return []row{rows[0].versus(rows[1], atLeast(0.9)), rows[1]}, nil
}

// B2: the fast way in.
func (b *bench) bulk(ctx context.Context) ([]row, error) {
	mine, base, err := b.pair(ctx, "b2", textbook)
	if err != nil {
		return nil, err
	}
	turn := func(t *target) entrant {
		return entrant{who: t.contender.name, target: t, prepare: t.settle, m: b.window(b.size.window / 2),
			crews: []crew{{size: 2, role: t.producer, step: enqueueBulk(1000), count: true}}}
	}
	rows, err := b.rounds(ctx, "B2", "bulk enqueue by 1000, 2 clients", b.size.rounds,
		turn(mine), turn(base))
	if err != nil {
		return nil, err
	}
	return []row{rows[0].versus(rows[1], atLeast(1.2)), rows[1]}, nil
}

// The two ways to work off a queue.

func leaseAck(t *target, clients, n int, empty step) crew {
	return crew{size: clients, role: t.worker, step: leaseAndAck(n, empty), count: true}
}

func leaseByNext(t *target, clients, n int, empty step) crew {
	return crew{size: clients, role: t.worker, step: leaseNext(n, empty), count: true, last: ackRest}
}

// B3 and B4: working off a backlog, one by one and in batches.
func (b *bench) drain(ctx context.Context, id, work string, clients, n int, backlog int64,
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
			prepare: func(ctx context.Context) error {
				if err := t.fill(ctx, backlog, 1); err != nil {
					return err
				}
				return t.settle(ctx)
			}}
	}
	rows, err := b.rounds(ctx, id, work, b.size.rounds,
		turn("openqueue", mine, leaseAck(mine, clients, n, dry)),
		turn("textbook", base, leaseAck(base, clients, n, dry)),
		turn("oq_next", mine, leaseByNext(mine, clients, n, dry)))
	if err != nil {
		return nil, err
	}
	return []row{rows[0].versus(rows[1], alone), rows[2].versus(rows[1], next), rows[1]}, nil
}

func (b *bench) oneByOne(ctx context.Context) ([]row, error) {
	return b.drain(ctx, "B3", "lease + ack one by one, 8 clients", 8, 1, b.size.backlog,
		atLeast(1.15), atLeast(1.8))
}

func (b *bench) batches(ctx context.Context) ([]row, error) {
	rows, err := b.drain(ctx, "B4", "lease + ack by 100, 4 clients", 4, 100, b.size.bigBacklog,
		atLeast(1.6), goal{})
	if err != nil {
		return nil, err
	}
	speed := rows[0]
	speed.against, speed.ratios, speed.goal, speed.cpu = "", nil, atLeast(200_000), nil
	return append(rows[:1:1], append([]row{speed}, rows[1:]...)...), nil
}

// B5 and B6: producers and consumers at once. Producers wait while the backlog is at its bound, so
// that neither side can run away from the other.
func steady(t *target, consumers crew) []crew {
	return []crew{{size: 4, role: t.producer, step: enqueueOne}, consumers}
}

func (b *bench) steadyWindow(slice time.Duration, slices int) measurement {
	return measurement{warmup: b.size.warmup, slice: slice, slices: slices, bound: 1000}
}

// prime gives a fresh target the history that plans and statistics of a queue in use rest on.
func (t *target) prime(ctx context.Context) error {
	if err := t.fill(ctx, 10_000, 1); err != nil {
		return err
	}
	return t.rest(ctx)
}

func (b *bench) steadyState(ctx context.Context) ([]row, error) {
	mine, base, err := b.pair(ctx, "b5", textbook)
	if err != nil {
		return nil, err
	}
	for _, t := range []*target{mine, base} {
		if err := t.prime(ctx); err != nil {
			return nil, err
		}
	}
	turn := func(who string, t *target, c crew) entrant {
		return entrant{who: who, target: t, m: b.steadyWindow(b.size.window, 1), crews: steady(t, c),
			prepare: t.rest}
	}
	rows, err := b.rounds(ctx, "B5", "4 producers, 4 consumers by ≤ 10", b.size.rounds,
		turn("openqueue", mine, leaseAck(mine, 4, 10, pause)),
		turn("textbook", base, leaseAck(base, 4, 10, pause)),
		turn("oq_next", mine, leaseByNext(mine, 4, 10, pause)))
	if err != nil {
		return nil, err
	}
	for _, t := range []*target{mine, base} {
		if err := t.drain(ctx); err != nil {
			return nil, err
		}
		if err := t.verify(ctx); err != nil {
			return nil, err
		}
	}
	return []row{rows[0].versus(rows[1], atLeast(1.1)), rows[2].versus(rows[1], atLeast(1.1)), rows[1]}, nil
}

// B6: the same while somebody's old snapshot keeps every dead row alive.
func (b *bench) heldSnapshot(ctx context.Context) ([]row, error) {
	const work = "B5 under a held snapshot"
	run := func(who string, c contender, consumers func(*target) crew) ([]float64, error) {
		t, err := b.fresh(ctx, c, "b6_"+who)
		if err != nil {
			return nil, err
		}
		if err := t.prime(ctx); err != nil {
			return nil, err
		}
		release, err := t.holdSnapshot(ctx)
		if err != nil {
			return nil, err
		}
		res, err := t.measure(ctx, b.steadyWindow(b.size.heldSlice, b.size.heldSlices),
			steady(t, consumers(t))...)
		if err := errors.Join(err, release()); err != nil {
			return nil, err
		}
		text := fmt.Sprintf("B6 %s, jobs/s by %v:", who, b.size.heldSlice)
		for i, v := range res.rates {
			if i > 0 && i%10 == 0 {
				text += "\n   "
			}
			text += fmt.Sprintf(" %.0f", v)
		}
		b.progress("%s", text)
		b.notes = append(b.notes, text)
		if err := t.drain(ctx); err != nil {
			return nil, err
		}
		if err := t.verify(ctx); err != nil {
			return nil, err
		}
		return res.rates, b.drop(ctx, t)
	}
	last := func(v []float64) float64 { return v[len(v)-1] }
	theirs, err := run("textbook", textbook, func(t *target) crew { return leaseAck(t, 4, 10, pause) })
	if err != nil {
		return nil, err
	}
	type mode struct {
		who  string
		crew func(*target) crew
	}
	modes := []mode{{"openqueue", func(t *target) crew { return leaseAck(t, 4, 10, pause) }}}
	if b.chosen { // a minute that the whole table has no time for
		modes = append(modes, mode{"oq_next", func(t *target) crew { return leaseByNext(t, 4, 10, pause) }})
	}
	var rows []row
	for _, mode := range modes {
		mine, err := run(mode.who, ours, mode.crew)
		if err != nil {
			return nil, err
		}
		end := row{id: "B6", work: work + ", last slice", who: mode.who, unit: "jobs/s",
			values: []float64{last(mine)}}
		flat, beside := end, end
		flat.against, flat.ratios, flat.goal = "its first", []float64{last(mine) / mine[0]}, atLeast(0.95)
		beside = beside.versus(row{who: "textbook", values: []float64{last(theirs)}}, atLeast(10))
		rows = append(rows, flat, beside)
	}
	return append(rows, row{id: "B6", work: work + ", last slice", who: "textbook", unit: "jobs/s",
		values: []float64{last(theirs)}, against: "its first", ratios: []float64{last(theirs) / theirs[0]}}), nil
}

// holdSnapshot opens what an analyst, pg_dump or a standby leaves open.
func (t *target) holdSnapshot(ctx context.Context) (release func() error, err error) {
	c, err := dial(ctx, t.url, "")
	if err != nil {
		return nil, err
	}
	_, err = c.conn.Exec(ctx, "begin isolation level repeatable read; select count(*) from pg_class").ReadAll()
	if err != nil {
		c.close()
		return nil, err
	}
	return func() error {
		defer c.close()
		_, err := c.conn.Exec(c.ctx, "select count(*) from pg_class; commit").ReadAll()
		return err
	}, nil
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
	for _, kind := range []struct {
		work       string
		clients, n int
	}{{"lease + ack one by one", 8, 1}, {"lease + ack by 100", 4, 100}} {
		turn := func(who string, t *target, backlog int64, priorities int) entrant {
			m := b.window(b.size.window / 2)
			m.jobs = b.size.backlog / 2
			return entrant{who: who, target: t, m: m,
				crews: []crew{leaseAck(t, kind.clients, kind.n, dry)},
				prepare: func(ctx context.Context) error {
					if err := t.fill(ctx, backlog, priorities); err != nil {
						return err
					}
					return t.settle(ctx)
				}}
		}
		got, err := b.rounds(ctx, "B8", kind.work+", 1M ready + 1M scheduled", b.size.rounds,
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
