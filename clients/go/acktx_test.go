package openqueue

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A handler that takes the failure of its transaction for no failure of the job, and returns nil, acks it.
func TestNilAfterATransactionThatFailed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	for _, sql := range []string{"create table once (t text unique deferrable initially deferred)",
		"insert into once values ('x')"} {
		if _, err := db.Pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	for what, do := range map[string]func(ctx context.Context, j *Job) error{
		"commit": func(ctx context.Context, j *Job) error {
			return j.Transact(ctx, db.Pool, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into once values ('x')") // is refused when it commits
				return err
			})
		},
		"ack": func(ctx context.Context, j *Job) error {
			return pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error {
				_, _ = tx.Exec(ctx, "select 1/0")
				return j.AckTx(ctx, tx)
			})
		},
		"work": func(ctx context.Context, j *Job) error {
			return j.Transact(ctx, db.Pool, func(ctx context.Context, tx pgx.Tx) error {
				if err := j.AckTx(ctx, tx); err != nil {
					return err
				}
				return errors.New("changed my mind")
			})
		},
	} {
		if _, err := Enqueue(ctx, db.Pool, what, 1, nil); err != nil {
			t.Fatal(err)
		}
		handler := func(ctx context.Context, j *Job) error {
			if err := do(ctx, j); err == nil {
				t.Errorf("%s: no error", what)
			}
			return nil
		}
		d, err := WorkOne(ctx, db.Pool, what, "", handler)
		if err != nil || d.State != "completed" {
			t.Errorf("%s, alone: %+v %v", what, d, err)
		}
		if got := get[string](t, db.Pool, "select state from oq_get($1)", d.ID); got != "completed" {
			t.Errorf("%s, alone: it is %s", what, got)
		}
		id, err := Enqueue(ctx, db.Pool, what, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen := make(chan Event, 1)
		stop := start(t, &Worker{Pool: db.Pool, Queue: what, Observe: func(e Event) { seen <- e }, Handler: handler})
		e := <-seen
		if got := get[string](t, db.Pool, "select state from oq_get($1)", id); e.State != "acked" || got != "completed" {
			t.Errorf("%s: observed as %s, and is %s", what, e.State, got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// A strict ack that was refused says of a job that it is lost, whatever the handler makes of it.
func TestNilAfterALostLease(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
		t.Fatal(err)
	}
	seen := make(chan Event, 1)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Observe: func(e Event) { seen <- e },
		Handler: func(ctx context.Context, j *Job) error {
			if _, err := db.Pool.Exec(ctx, "select oq_release($1, $2, '1 hour')", j.ID, j.Token); err != nil {
				return err
			}
			err := j.Transact(ctx, db.Pool, func(context.Context, pgx.Tx) error { return nil })
			if !errors.Is(err, ErrLeaseLost) {
				t.Errorf("Transact says %v", err)
			}
			return nil
		}})
	select {
	case e := <-seen:
		if e.State != "lost" {
			t.Errorf("observed as %s", e.State)
		}
	case <-time.After(patience):
		t.Fatal("it is not over")
	}
}

// What a transaction's function makes of the server's refusal stays what it is: the handler's verdict, and its own errors.
func TestTransactKeepsTheError(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	mine := errors.New("the ledger is closed")
	if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
		t.Fatal(err)
	}
	d, err := WorkOne(ctx, db.Pool, "q", "", func(ctx context.Context, j *Job) error {
		return j.Transact(ctx, db.Pool, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "do $$ begin raise 'no' using errcode = '42501', hint = 'ask'; end $$")
			return Discard(fmt.Errorf("%w: %w", mine, err))
		})
	})
	if err != nil || d.State != "dead" {
		t.Fatalf("%+v %v", d, err)
	}
	if !errors.Is(d.Err, mine) || !errors.Is(d.Err, ErrNotPermitted) {
		t.Errorf("the error is %v", d.Err)
	}
	if got := get[string](t, db.Pool, "select error from oq_dead"); got != "the ledger is closed: ERROR: no (SQLSTATE 42501): ask" {
		t.Errorf("the job's error is %s", got)
	}
}
