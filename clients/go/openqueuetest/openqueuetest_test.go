package openqueuetest

import (
	"context"
	"errors"
	"testing"
	"time"

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
