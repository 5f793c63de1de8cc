package openqueue

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Handlers in transactions that hold the whole pool report progress, and throttle, all the same.
func TestProgressWithoutThePool(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	pool := poolWith(t, db, func(cfg *pgxpool.Config) { cfg.MaxConns = 2 })
	if _, err := EnqueueBulk(ctx, db.Pool, "q", make([]int, 8), nil); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup // two that hold the pool
	both.Add(2)
	first := make(chan struct{}, 2)
	stop := start(t, &Worker{Pool: pool, Queue: "q", Concurrency: 4, Handler: func(ctx context.Context, j *Job) error {
		return j.Transact(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
			select {
			case first <- struct{}{}:
				both.Done()
				both.Wait()
			default:
			}
			if err := j.Throttle(ctx, time.Now().Add(-time.Second)); err != nil {
				return err
			}
			return j.Progress(ctx, "half")
		})
	}})
	until(t, "all done", func() bool {
		return get[int](t, db.Pool, "select count(*)::int from oq_jobs where state = 'completed' and attempt = 1") == 8
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// After the ack in an open transaction progress does not wait for that, and is shown to nobody.
func TestProgressAfterTheAck(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
		t.Fatal(err)
	}
	took := make(chan time.Duration, 1)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Handler: func(ctx context.Context, j *Job) error {
		return pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error {
			if err := j.AckTx(ctx, tx); err != nil {
				return err
			}
			began := time.Now()
			err := j.Progress(ctx, "all")
			took <- time.Since(began)
			return err
		})
	}})
	select {
	case d := <-took:
		if d > 5*time.Second {
			t.Errorf("it took %s", d)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for its own transaction")
	}
	until(t, "it is done", func() bool {
		return get[string](t, db.Pool, "select concat_ws(' ', state, attempt) from oq_jobs") == "completed 1"
	})
}

// What progress is told ends the job's context, and is what is observed of it.
func TestProgressIsTold(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	for what, want := range map[string]error{"cancelled": ErrCancelled, "lost": ErrLeaseLost} {
		if _, err := Enqueue(ctx, db.Pool, what, 1, nil); err != nil {
			t.Fatal(err)
		}
		said, cause, seen := make(chan error, 1), make(chan error, 1), make(chan Event, 1)
		stop := start(t, &Worker{Pool: db.Pool, Queue: what, Lease: time.Hour, Observe: func(e Event) { seen <- e },
			Handler: func(ctx context.Context, j *Job) error {
				if what == "cancelled" {
					if ok, err := Cancel(ctx, db.Pool, j.ID, ""); !ok || err != nil {
						t.Error(ok, err)
					}
				} else if _, err := db.Pool.Exec(ctx, "select oq_release($1, $2, '1 hour')", j.ID, j.Token); err != nil {
					t.Error(err)
				}
				err := j.Progress(ctx, 1)
				said <- err
				cause <- context.Cause(ctx)
				return err
			}})
		if err := <-said; err != want {
			t.Errorf("%s: Progress says %v", what, err)
		}
		if err := <-cause; err != want {
			t.Errorf("%s: the context ended by %v", what, err)
		}
		if e := <-seen; e.State != what {
			t.Errorf("%s: observed as %s", what, e.State)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// Progress is a heartbeat by the worker's own clock as well, waits for no lock, and ends with its context.
func TestProgressExtendsTheLease(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	start(t, &Worker{Pool: db.Pool, Queue: "q", Lease: time.Hour, Handler: func(ctx context.Context, j *Job) error {
		defer close(over)
		since := func() time.Time {
			j.lane.mu.Lock()
			defer j.lane.mu.Unlock()
			return j.hold.since
		}
		before := since()
		if err := j.Progress(ctx, 1); err != nil || !since().After(before) {
			t.Errorf("the lease counts from %s, and from %s before: %v", since(), before, err)
		}
		tx, err := db.Pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(ctx)
		if ok, err := Cancel(ctx, tx, j.ID, ""); !ok || err != nil {
			t.Error(ok, err)
		}
		began := time.Now()
		if err := j.Progress(ctx, 2); err != nil || time.Since(began) > 10*time.Second {
			t.Errorf("with a transaction that holds the job: %v after %s", err, time.Since(began))
		}
		ended, cancel := context.WithCancelCause(ctx)
		why := errors.New("why not")
		cancel(why)
		if err := j.Progress(ended, 3); err != why {
			t.Errorf("in a context that ended: %v", err)
		}
		return nil
	}})
	select {
	case <-over:
	case <-time.After(patience):
		t.Fatal("the handler stands still")
	}
}
