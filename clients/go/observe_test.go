package openqueue

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// An Observe that panics is logged; the worker goes on.
func TestObserveThatPanics(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []bool{true, false}, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	said := make(lines, 1000)
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Logger: slog.New(slog.NewTextHandler(said, nil)),
		Observe: func(Event) { panic("no metrics") },
		Handler: Handle(func(_ context.Context, _ *Job, fine bool) error {
			if fine {
				return nil
			}
			return errors.New("out of luck")
		})})
	said.until(t, "no metrics")
	until(t, "both ended", func() bool {
		return get[string](t, db.Pool, `select concat_ws(' ', completed, dead) from oq_stats('q')`) == "1 1"
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// What has failed after its time to live is observed as expired.
func TestObserveExpired(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	const ttl = 4 * time.Second
	if _, err := Enqueue(ctx, db.Pool, "q", 1, &Options{TTL: ttl}); err != nil {
		t.Fatal(err)
	}
	seen := make(chan Event, 1)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Observe: func(e Event) { seen <- e },
		Handler: func(ctx context.Context, j *Job) error {
			sleep(ctx, time.Until(j.CreatedAt.Add(ttl+100*time.Millisecond)))
			return errors.New("too late")
		}})
	select {
	case e := <-seen:
		if e.State != "expired" {
			t.Errorf("observed as %s", e.State)
		}
	case <-time.After(patience):
		t.Fatal("it was not leased before its time to live was over")
	}
}
