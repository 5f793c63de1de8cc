package main

import (
	"context"
	"slices"
	"time"
)

// B5 and B6: producers and consumers at once. Producers wait while the backlog is at its bound, so
// that neither side can run away from the other.
func steady(t *target, consumers crew) []crew {
	crews := []crew{{size: 4, role: t.producer, step: enqueueOne}, consumers}
	if t.consume != nil {
		crews[1].step, crews[1].last = t.consume, nil
	}
	if t.tick != "" {
		crews = append(crews, crew{size: 1, step: tick})
	}
	return crews
}

func (b *bench) steadyWindow(slice time.Duration, slices int) measurement {
	return measurement{warmup: b.size.warmup, slice: slice, slices: slices, bound: 1000}
}

// prime gives a fresh target the history that plans and statistics of a queue in use rest on.
func (t *target) prime(ctx context.Context) error {
	if t.contender.load == "" {
		return t.settle(ctx)
	}
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
	turn := func(who string, t *target, c crew) entrant {
		return entrant{who: who, target: t, m: b.steadyWindow(b.size.window, 1), crews: steady(t, c),
			prepare: t.rest}
	}
	peers, err := b.peerEntrants(ctx, "b5", kindSteady, b.size.window, func(t *target) entrant {
		return turn(t.contender.name, t, leaseAck(t, 4, 10, pause))
	})
	if err != nil {
		return nil, err
	}
	entrants := append([]entrant{
		turn("openqueue", mine, leaseAck(mine, 4, 10, pause)),
		turn("textbook", base, leaseAck(base, 4, 10, pause)),
		turn("oq_next", mine, leaseByNext(mine, 4, 10, pause)),
	}, peers...)
	for i, e := range entrants {
		if e.target == nil || i == 2 { // primed as openqueue
			continue
		}
		if err := e.target.prime(ctx); err != nil {
			return nil, err
		}
	}
	rows, err := b.rounds(ctx, "B5", "4 producers, 4 consumers by ≤ 10", b.size.rounds, entrants...)
	if err != nil {
		return nil, err
	}
	for _, e := range entrants {
		if e.target == nil {
			continue
		}
		if err := e.target.drain(ctx); err != nil {
			return nil, err
		}
		if err := e.target.verify(ctx); err != nil {
			return nil, err
		}
	}
	return slices.Concat(beside(rows[0], rows[1], atLeast(1.1), rows[3:]),
		beside(rows[2], rows[1], atLeast(1.1), rows[3:]), rows[1:2], rows[3:]), nil
}
