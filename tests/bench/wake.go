package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	pollTimeout = time.Second
	jobEvery    = 10 * time.Millisecond
)

// B7: how long after its commit is a job in the hands of a worker that was asleep?
func (b *bench) wakeUp(ctx context.Context) ([]row, error) {
	t, err := b.fresh(ctx, ours, "b7")
	if err != nil {
		return nil, err
	}
	if err := t.prime(ctx); err != nil {
		return nil, err
	}
	const work = "commit to lease at 100 jobs/s, worker asleep"
	p50 := row{id: "B7", work: work, who: "p50", unit: "ms", goal: atMost(1.5)}
	p99 := row{id: "B7", work: work, who: "p99", unit: "ms", goal: atMost(5)}
	top := row{id: "B7", work: work, who: "max", unit: "ms"}
	for round := range b.size.rounds {
		latencies, err := t.latencies(ctx, b.size.wakeJobs)
		if err != nil {
			return nil, err
		}
		at := func(q float64) float64 {
			i := int(q * float64(len(latencies)-1))
			return float64(latencies[i]) / float64(time.Millisecond)
		}
		p50.values = append(p50.values, at(0.5))
		p99.values = append(p99.values, at(0.99))
		top.values = append(top.values, at(1))
		b.progress("B7 %s: round %d: p50 %.2f ms, p99 %.2f ms, max %.2f ms", work, round+1,
			at(0.5), at(0.99), at(1))
	}
	return []row{p50, p99, top}, t.verify(ctx)
}

// latencies sends n jobs, one about every 10 ms, to one worker that sleeps in between, and gives
// the times from the return of COMMIT to the return of the lease, sorted.
func (t *target) latencies(ctx context.Context, n int) ([]time.Duration, error) {
	producer, err := dial(ctx, t.url, t.producer)
	if err != nil {
		return nil, err
	}
	defer producer.close()
	consumer, err := dial(ctx, t.url, t.contender.worker)
	if err != nil {
		return nil, err
	}
	defer consumer.close()
	in := &worker{client: producer, contender: &t.contender, run: &run{}}
	out := &worker{client: consumer, contender: &t.contender, run: &run{}}

	ctx, cancel := context.WithTimeout(ctx, time.Duration(n)*jobEvery+30*time.Second)
	defer cancel()
	committed, got := map[int64]time.Time{}, map[int64]time.Time{}
	var sendErr, workErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() {
			if sendErr != nil {
				cancel()
			}
		}()
		due := time.Now().Add(200 * time.Millisecond)
		for range n {
			sleep(ctx, time.Until(due))
			if sendErr = ctx.Err(); sendErr == nil {
				sendErr = enqueueOne(in)
			}
			if sendErr != nil {
				return
			}
			committed[in.made[len(in.made)-1]] = time.Now()
			// Uneven, or a duty's rhythm could always fall between two jobs.
			due = due.Add(jobEvery/2 + rand.N(jobEvery))
		}
	})
	wg.Go(func() {
		if workErr = out.sleepAndWork(ctx, got, n); workErr != nil {
			cancel()
		}
	})
	wg.Wait()
	t.book(in)
	t.book(out)
	if err := errors.Join(sendErr, workErr); err != nil {
		return nil, fmt.Errorf("%d of %d jobs arrived: %w", len(got), n, err)
	}
	var all []time.Duration
	for id, at := range committed {
		leased, ok := got[id]
		if !ok {
			return nil, fmt.Errorf("job %d was never leased", id)
		}
		all = append(all, leased.Sub(at))
	}
	slices.Sort(all)
	return all, nil
}

// sleepAndWork is the worker's protocol: lease; if empty, say that we sleep; lease once more; wait
// for a wake-up or the poll's time; say that we are awake while there is work.
func (w *worker) sleepAndWork(ctx context.Context, got map[int64]time.Time, n int) error {
	listening := false
	for len(got) < n {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.drop()
		w.notified = false
		err := w.query(w.lease, w.take, []byte(queue), []byte("bench"), int4(leaseSeconds), int4(10))
		now := time.Now()
		if err != nil {
			return err
		}
		for _, id := range w.jobs {
			got[id] = now
		}
		switch {
		case len(w.jobs) > 0:
			if listening {
				if err := w.query("select oq_unlisten($1)", nil, []byte(queue)); err != nil {
					return err
				}
				listening = false
			}
			if err := w.ackHeld(10); err != nil {
				return err
			}
		case !listening:
			if err := w.query("select oq_listen($1)", nil, []byte(queue)); err != nil {
				return err
			}
			listening = true
		case !w.notified:
			if err := w.wait(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *worker) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	err := w.conn.WaitForNotification(ctx)
	if pgconn.Timeout(err) {
		return nil
	}
	return err
}
