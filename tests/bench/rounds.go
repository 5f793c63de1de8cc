package main

import (
	"context"
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
	measure func(ctx context.Context) (result, error) // instead of crews: a peer with clients of its own
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
			if e.prepare != nil {
				if err := e.prepare(ctx); err != nil {
					return nil, err
				}
			}
			measure := e.measure
			if measure == nil {
				measure = func(ctx context.Context) (result, error) { return e.target.measure(ctx, e.m, e.crews...) }
			}
			res, err := measure(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.who, err)
			}
			b.progress("%s %s: round %d, %s: %.0f jobs/s", id, work, round+1, e.who, res.rate())
			rows[i].values = append(rows[i].values, res.rate())
			rows[i].cpu = append(rows[i].cpu, res.cpu)
		}
	}
	checked := map[*target]bool{}
	for _, e := range entrants {
		if e.target != nil && !checked[e.target] {
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

// filled prepares a turn over a backlog of n jobs.
func filled(t *target, n int64, priorities int) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := t.fill(ctx, n, priorities); err != nil {
			return err
		}
		return t.settle(ctx)
	}
}

// The two ways to work off a queue.

func leaseAck(t *target, clients, n int, empty step) crew {
	return crew{size: clients, role: t.consumer, step: leaseAndAck(n, empty), count: true}
}

func leaseByNext(t *target, clients, n int, empty step) crew {
	return crew{size: clients, role: t.consumer, step: leaseNext(n, empty), count: true, last: ackRest}
}

// beside puts a row's ratio to the baseline, which the goal is about, before those to the peers.
func beside(mine, base row, g goal, peers []row) []row {
	rows := []row{mine.versus(base, g)}
	for _, p := range peers {
		rows = append(rows, mine.versus(p, goal{}))
	}
	return rows
}
