package main

import (
	"context"
	"slices"
	"time"
)

// B1: what does one enqueue a transaction cost more than the INSERT that it can't do without?
func (b *bench) enqueue(ctx context.Context) ([]row, error) {
	return b.produce(ctx, "B1", "enqueue one a transaction, 8 clients", kindEnqueue, bare, b.size.window,
		crew{size: 8, step: enqueueOne, count: true}, atLeast(0.9))
}

// B2: the fast way in.
func (b *bench) bulk(ctx context.Context) ([]row, error) {
	return b.produce(ctx, "B2", "bulk enqueue by 1000, 2 clients", kindBulk, textbook, b.size.window/2,
		crew{size: 2, step: enqueueBulk(1000), count: true}, atLeast(1.2))
}

func (b *bench) produce(ctx context.Context, id, work string, kind kind, against contender,
	window time.Duration, producers crew, g goal) ([]row, error) {

	mine, base, err := b.pair(ctx, id, against)
	if err != nil {
		return nil, err
	}
	turn := func(t *target) entrant {
		producers.role = t.producer
		return entrant{who: t.contender.name, target: t, prepare: t.settle, m: b.window(window),
			crews: []crew{producers}}
	}
	peers, err := b.peerEntrants(ctx, id, kind, window, turn)
	if err != nil {
		return nil, err
	}
	rows, err := b.rounds(ctx, id, work, b.size.rounds,
		append([]entrant{turn(mine), turn(base)}, peers...)...)
	if err != nil {
		return nil, err
	}
	return slices.Concat(beside(rows[0], rows[1], g, rows[2:]), rows[1:]), nil
}
