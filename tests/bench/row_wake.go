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

// B7: how long after its commit is a job in the hands of a worker that was asleep? Beside it the
// textbook with a NOTIFY in every enqueue, which is the usual way.
func (b *bench) wakeUp(ctx context.Context) ([]row, error) {
	const work = "commit to lease at 100 jobs/s, worker asleep"
	mine, base, err := b.pair(ctx, "b7", notifying())
	if err != nil {
		return nil, err
	}
	quantiles := []struct {
		name string
		at   float64
		goal goal
	}{{"p50", 0.5, atMost(1.5)}, {"p99", 0.99, atMost(5)}, {"max", 1, goal{}}}
	var rows [2][]row
	for round := range b.size.rounds {
		for i, t := range []*target{mine, base} {
			if round == 0 {
				if err := t.prime(ctx); err != nil {
					return nil, err
				}
			}
			latencies, err := t.latencies(ctx, b.size.wakeJobs)
			if err != nil {
				return nil, err
			}
			text := ""
			for j, q := range quantiles {
				if round == 0 {
					rows[i] = append(rows[i], row{id: "B7", work: work + ", " + q.name, who: t.contender.name, unit: "ms"})
				}
				rows[i][j].values = append(rows[i][j].values, quantile(latencies, q.at))
				text += fmt.Sprintf(" %s %.2f ms", q.name, quantile(latencies, q.at))
			}
			b.progress("B7 %s: round %d, %s:%s", work, round+1, t.contender.name, text)
		}
	}
	var all []row
	for j, q := range quantiles {
		r := rows[0][j].versus(rows[1][j], q.goal)
		r.absolute = true // the goal is in milliseconds
		all = append(all, r, rows[1][j])
	}
	return all, errors.Join(mine.verify(ctx), base.verify(ctx))
}

// notifying is the textbook with a NOTIFY in every enqueue.
func notifying() contender {
	c := textbook
	c.enqueue = "insert into textbook.job (queue, payload) values ($1, $2) returning id, pg_notify('textbook', '')::text"
	c.listen = "select textbook.listen() where $1::text is not null"
	return c
}

// B7N: what does a worker that sleeps cost the producers? It takes nothing, as one of those that a busy fleet has too many
// of. Commits that notify wait for each other.
func (b *bench) besideASleeper(ctx context.Context) ([]row, error) {
	mine, base, err := b.pair(ctx, "b7n", notifying())
	if err != nil {
		return nil, err
	}
	turn := func(t *target, who string, crews ...crew) entrant {
		return entrant{who: who, target: t, prepare: t.settle, m: b.window(b.size.window),
			crews: append(crews, crew{size: 8, role: t.producer, step: enqueueOne, count: true})}
	}
	asleep := func(t *target) crew { return crew{size: 1, role: t.consumer, step: sleepOn} }
	rows, err := b.rounds(ctx, "B7N", "enqueue one a transaction, 8 clients, a worker asleep", b.size.rounds,
		turn(mine, mine.contender.name, asleep(mine)), turn(mine, "nobody asleep"),
		turn(base, base.contender.name, asleep(base)))
	if err != nil {
		return nil, err
	}
	return append(beside(rows[0], rows[1], goal{}, rows[2:]), rows[1:]...), nil
}

// sleepOn says that the worker sleeps, and then only hears.
func sleepOn(w *worker) error {
	if w.empty == 0 {
		w.empty++
		return w.query(w.listen, nil, w.queue())
	}
	return w.wait(context.Background())
}

// latencies sends n jobs, one about every 10 ms, to one worker that sleeps in between, and gives
// the milliseconds from the return of COMMIT to the return of the lease, sorted.
func (t *target) latencies(ctx context.Context, n int) ([]float64, error) {
	in, err := t.worker(ctx, t.producer, &run{})
	if err != nil {
		return nil, err
	}
	defer in.close()
	out, err := t.worker(ctx, t.consumer, &run{})
	if err != nil {
		return nil, err
	}
	defer out.close()

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
	var all []float64
	for id, at := range committed {
		leased, ok := got[id]
		if !ok {
			return nil, fmt.Errorf("job %d was never leased", id)
		}
		all = append(all, float64(leased.Sub(at))/float64(time.Millisecond))
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
		err := w.query(w.lease, w.take, w.queue(), []byte("bench"), int4(leaseSeconds), int4(10))
		now := time.Now()
		if err != nil {
			return err
		}
		for _, id := range w.jobs {
			got[id] = now
		}
		switch {
		case len(w.jobs) > 0:
			if listening && w.unlisten != "" {
				if err := w.query(w.unlisten, nil, w.queue()); err != nil {
					return err
				}
				listening = false
			}
			if err := w.ackHeld(10); err != nil {
				return err
			}
		case !listening:
			if err := w.query(w.listen, nil, w.queue()); err != nil {
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
