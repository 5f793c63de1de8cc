package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
)

// The rows of depth and breadth (make bench-depth): B3's and B4's ways over a queue beside which
// much else lies, each against the same over a small backlog. Nothing may slow down.

// B11: many ready jobs. B15: the same in a hundred priorities.
func (b *bench) manyReady(ctx context.Context) ([]row, error) {
	n := b.size.deep
	return b.atDepth(ctx, "B11", short(n)+" ready", payload, b.size.backlog, func(t *target) error {
		return t.fill(ctx, n, 1)
	})
}

func (b *bench) manyPriorities(ctx context.Context) ([]row, error) {
	n := max(b.size.deep, 1_000) // a lane at least for each
	return b.atDepth(ctx, "B15", short(n)+" ready in 100 priorities", payload, b.size.backlog, func(t *target) error {
		for priority := range 100 {
			var got int64
			err := t.conn.QueryRow(ctx, t.contender.load, queue, t.body, n/100, priority).Scan(&got)
			if err != nil {
				return err
			}
			t.loaded += got
		}
		return nil
	})
}

// B12: many scheduled jobs.
func (b *bench) manyScheduled(ctx context.Context) ([]row, error) {
	n := b.size.deep
	return b.atDepth(ctx, "B12", short(n)+" scheduled", payload, b.size.backlog, func(t *target) error {
		return errors.Join(t.fillLater(ctx, n, 1), t.fill(ctx, n+b.size.backlog, 1))
	})
}

// B13: many dead jobs, killed as a worker does it.
func (b *bench) manyDead(ctx context.Context) ([]row, error) {
	return b.atDepth(ctx, "B13", short(b.size.dead)+" dead", payload, b.size.backlog, func(t *target) error {
		if err := t.fill(ctx, b.size.dead, 1); err != nil {
			return err
		}
		for t.waiting() > 0 {
			var dead int64
			err := t.conn.QueryRow(ctx, `
				select count(*) filter (where oq_nack(l.job_id, l.lease_token, 'no', retry => false) = 'dead')
				  from oq_lease($1, 'undertaker', 600, 1000) l`, queue).Scan(&dead)
			if err != nil {
				return err
			}
			if dead == 0 {
				return fmt.Errorf("%d jobs would not die", t.waiting())
			}
			t.finished += dead
		}
		return t.fill(ctx, b.size.backlog, 1)
	})
}

// B14: jobs in many other queues, which B9's workers would serve and this one's do not.
func (b *bench) otherQueues(ctx context.Context) ([]row, error) {
	work := fmt.Sprintf("%s jobs in %s other queues", short(b.size.deep), short(b.size.queues))
	return b.atDepth(ctx, "B14", work, payload, b.size.backlog, func(t *target) error {
		mine := t.queues
		t.queues = nil
		for i := range b.size.queues {
			t.queues = append(t.queues, fmt.Sprintf("other.%d", i))
		}
		err := t.fill(ctx, b.size.deep, 1)
		t.queues = mine
		if err != nil {
			return err
		}
		return t.fill(ctx, t.waiting()+b.size.backlog, 1)
	})
}

// B16: payloads of 100 bytes to 100 kB that do not compress. A deep backlog of the largest would be
// a hundred gigabytes, so all backlogs are of the same bytes and the small ones a quarter of them.
func (b *bench) payloads(ctx context.Context) ([]row, error) {
	var rows []row
	for _, size := range b.size.payloads {
		noise := make([]byte, (size-10)*3/4)
		rand.Read(noise)
		body := fmt.Sprintf(`{"data":"%s"}`, base64.RawStdEncoding.EncodeToString(noise))
		n := min(b.size.deep, b.size.payloadMB*1_000_000/int64(size))
		got, err := b.atDepth(ctx, "B16", fmt.Sprintf("%s ready of %s bytes", short(n), short(int64(size))), body, n/4,
			func(t *target) error { return t.fill(ctx, n, 1) })
		if err != nil {
			return nil, err
		}
		rows = append(rows, got...)
		if err := b.dropOpen(ctx); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// atDepth runs B3's and B4's ways over a queue that load made deep, and over a small backlog.
func (b *bench) atDepth(ctx context.Context, id, work, body string, backlog int64, load func(*target) error) ([]row, error) {
	deep, err := b.fresh(ctx, ours, id+"_deep")
	if err != nil {
		return nil, err
	}
	small, err := b.fresh(ctx, ours, id+"_small")
	if err != nil {
		return nil, err
	}
	deep.body, small.body = body, body
	b.progress("%s loading %s", id, work)
	if err := load(deep); err != nil {
		return nil, err
	}
	depth := deep.waiting()
	var rows []row
	for _, way := range ways {
		if way.n > 1 && len(body) > 5_000 {
			way.n, way.work = 10, "lease + ack by 10" // a hundred would be megabytes a call
		}
		turn := func(who string, t *target, n int64) entrant {
			m := b.window(b.size.window / 2)
			m.jobs = backlog * 2 / 3
			return entrant{who: who, target: t, m: m, prepare: filled(t, n, 1),
				crews: []crew{leaseAck(t, way.clients, way.n, dry)}}
		}
		got, err := b.rounds(ctx, id, way.work+", "+work, b.size.rounds,
			turn(work, deep, depth), turn(short(backlog)+" backlog", small, backlog))
		if err != nil {
			return nil, err
		}
		rows = append(rows, got[0].versus(got[1], atLeast(0.95)), got[1])
	}
	return rows, nil
}
