package openqueuetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	openqueue "github.com/openqueue/openqueue/clients/go"
	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// All of it in a transaction that is rolled back.
func TestDrainInATransaction(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	numbers := openqueue.Queue[int]{Name: "numbers"}
	if _, err := numbers.EnqueueBulk(ctx, tx, []int{2, 0, 5}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := numbers.Enqueue(ctx, tx, 9, &openqueue.Options{Delay: time.Hour, Priority: 1}); err != nil {
		t.Fatal(err)
	}
	jobs := Jobs(t, tx, "numbers")
	if len(jobs) != 4 || jobs[3].State != "scheduled" || jobs[3].Priority != 1 || string(jobs[0].Payload) != "2" {
		t.Errorf("jobs: %+v", jobs)
	}
	// Each job enqueues one smaller one, till there is none.
	sum := 0
	done := Drain(t, tx, "numbers", numbers.Handler(func(ctx context.Context, j *openqueue.Job, n int) error {
		sum += n
		switch n {
		case 0:
			return nil
		case 3:
			return errors.New("three")
		}
		_, err := numbers.Enqueue(ctx, tx, n-1, nil)
		return err
	}))
	states := map[string]int{}
	for _, d := range done {
		states[d.State]++
		if (d.Err != nil) != (d.State == "scheduled") {
			t.Errorf("job %d: %s %v", d.ID, d.State, d.Err)
		}
	}
	// 2 1 0, 0, 5 4 3
	if sum != 15 || len(done) != 7 || states["completed"] != 6 || states["scheduled"] != 1 {
		t.Errorf("sum %d of %d jobs: %v", sum, len(done), states)
	}
	if left := Jobs(t, tx, "numbers"); len(left) != 2 {
		t.Errorf("left: %+v", left)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if left := Jobs(t, db.Pool, "numbers"); len(left) != 0 {
		t.Errorf("a rollback left %+v", left)
	}
}

// A handler whose SQL fails on the test's transaction fails its job, with its own error, and not the transaction.
func TestHandlerThatAbortsTheTransaction(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	exec := func(sql string) error { _, err := tx.Exec(ctx, sql); return err }
	if err := exec("create table seen (what text)"); err != nil {
		t.Fatal(err)
	}
	words := openqueue.Queue[string]{Name: "words"}
	if _, err := words.EnqueueBulk(ctx, tx, []string{"fails", "swallows", "panics", "returns", "fine"}, nil); err != nil {
		t.Fatal(err)
	}
	done := Drain(t, tx, "words", words.Handler(func(_ context.Context, _ *openqueue.Job, what string) error {
		if err := exec("insert into seen values ('" + what + "')"); err != nil {
			return err
		}
		switch what {
		case "fails":
			return exec("select 1/0")
		case "swallows":
			_ = exec("select 1/0")
		case "panics":
			_ = exec("select 1/0")
			panic("over")
		case "returns":
			return errors.New("no SQL of it failed")
		}
		return nil
	}))
	var got []string
	for _, d := range done {
		said := ""
		if d.Err != nil {
			said, _, _ = strings.Cut(d.Err.Error(), "\n")
		}
		got = append(got, d.State+": "+said)
	}
	if want := []string{"scheduled: ERROR: division by zero (SQLSTATE 22012)", "completed: ", "scheduled: panic: over",
		"scheduled: no SQL of it failed", "completed: "}; !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	// What was not aborted stays, as it would without a transaction.
	var seen string
	if err := tx.QueryRow(ctx, "select string_agg(what, ' ' order by what) from seen").Scan(&seen); err != nil || seen != "fine returns" {
		t.Errorf("seen: %q %v", seen, err)
	}
}

// A handler with Transact is tested by giving it the test's transaction to begin its own in.
func TestTransactInATransaction(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	words := openqueue.Queue[string]{Name: "words"}
	if _, err := tx.Exec(ctx, "create table seen (what text)"); err != nil {
		t.Fatal(err)
	}
	if _, err := words.EnqueueBulk(ctx, tx, []string{"fails", "fine"}, nil); err != nil {
		t.Fatal(err)
	}
	handler := func(db openqueue.Beginner) openqueue.Handler {
		return words.Handler(func(ctx context.Context, j *openqueue.Job, what string) error {
			return j.Transact(ctx, db, func(ctx context.Context, tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "insert into seen values ($1)", what); err != nil || what == "fine" {
					return err
				}
				_, err := tx.Exec(ctx, "select 1/0")
				return err
			})
		})
	}
	done := Drain(t, tx, "words", handler(tx))
	if len(done) != 2 || done[0].State != "scheduled" || done[1].State != "completed" {
		t.Errorf("%+v", done)
	}
	var seen string
	if err := tx.QueryRow(ctx, "select string_agg(what, ' ') from seen").Scan(&seen); err != nil || seen != "fine" {
		t.Errorf("seen: %q %v", seen, err)
	}
}
