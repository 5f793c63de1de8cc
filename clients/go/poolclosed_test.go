package openqueue

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/puddle/v2"

	"github.com/openqueue/openqueue/tests/testdb"
)

// The pool is closed under the worker: what it holds is still reported, and Run says why it ended.
func TestPoolClosedUnderTheWorker(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	pool := poolWith(t, db, func(*pgxpool.Config) {})
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []string{"fails", "fine"}, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	closed, failed := make(chan struct{}), make(chan struct{})
	w := &Worker{Pool: pool, Queue: "q", Concurrency: 2, Observe: func(e Event) {
		if e.Err != nil {
			close(failed)
		}
	}, Handler: Handle(func(ctx context.Context, _ *Job, what string) error {
		<-closed
		if what == "fails" {
			return context.DeadlineExceeded
		}
		<-failed
		return nil
	})}
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	until(t, "both are leased", func() bool {
		return get[int](t, db.Pool, "select count(*)::int from oq_jobs where state = 'leased'") == 2
	})
	pool.Close()
	close(closed)
	select {
	case err := <-done:
		if !errors.Is(err, puddle.ErrClosedPool) {
			t.Errorf("Run says %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the worker does not end")
	}
	if got := get[string](t, db.Pool, `select concat_ws(' ', completed, dead) from oq_stats('q')`); got != "1 1" {
		t.Errorf("completed and dead: %s", got)
	}
}
