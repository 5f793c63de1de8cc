package openqueue

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A transaction that is open and has cancelled a job that is done since keeps nobody else from being leased and acked.
func TestAckOfAJobThatIsHeld(t *testing.T) {
	t.Parallel()
	for _, pooler := range []bool{false, true} {
		for _, commit := range []bool{false, true} {
			t.Run(fmt.Sprintf("pooler %t, commit %t", pooler, commit), func(t *testing.T) {
				t.Parallel()
				ackOfAJobThatIsHeld(t, pooler, commit)
			})
		}
	}
}

func ackOfAJobThatIsHeld(t *testing.T, pooler, commit bool) {
	ctx := context.Background()
	db := testdb.New(t)
	ids, err := EnqueueBulk(ctx, db.Pool, "q", []string{"held", "neighbour"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	begun, end := make(chan struct{}, 9), make(chan struct{})
	var mu sync.Mutex
	told := map[int64]string{}
	start(t, &Worker{Pool: db.Pool, Queue: "q", Pooler: pooler, Concurrency: 2, Lease: 9 * time.Second,
		Observe: func(e Event) {
			mu.Lock()
			told[e.Job.ID] += e.State + " "
			mu.Unlock()
		},
		Handler: func(_ context.Context, j *Job) error {
			begun <- struct{}{}
			<-end
			return j.SetResult(map[string]int64{"id": j.ID})
		}})
	<-begun
	<-begun
	tx := cancelOpenly(t, db, ids[0])
	close(end)
	since := time.Now()
	more, err := EnqueueBulk(ctx, db.Pool, "q", []string{"next", "and one more"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "all others are done", func() bool {
		return get[int](t, db.Pool, "select count(*)::int from oq_jobs where state = 'completed' and attempt = 1") == 3
	})
	if took := time.Since(since); took > 10*time.Second {
		t.Errorf("the others took %s", took)
	}
	want := map[int64]string{ids[0]: "acked ", ids[1]: "acked ", more[0]: "acked ", more[1]: "acked "}
	if commit {
		want[ids[0]] = "lost "
		err = tx.Commit(ctx)
	} else {
		err = tx.Rollback(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "all are told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(told) == 4
	})
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(told) != fmt.Sprint(want) {
		t.Errorf("told %v, want %v", told, want)
	}
	got := get[string](t, db.Pool, "select concat_ws(' ', state, attempt, lost_leases, (result->'id')::bigint = job_id) from oq_get($1)", ids[0])
	if ok := map[bool]string{false: "completed 1 0 t", true: "cancelled 1 0"}; got != ok[commit] {
		t.Errorf("the one that was held is %s", got)
	}
}

// cancelOpenly cancels jobs in a transaction that stays open, until the test ends it or is over.
func cancelOpenly(t *testing.T, db *testdb.DB, ids ...int64) pgx.Tx {
	t.Helper()
	ctx := context.Background()
	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(ctx) })
	for _, id := range ids {
		if ok, err := Cancel(ctx, tx, id, ""); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	return tx
}

// lockTable locks a table, and gives what ends that.
func lockTable(t *testing.T, db *testdb.DB, table, mode string) (end func()) {
	t.Helper()
	tx, err := db.Pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	end = func() { _ = tx.Rollback(context.Background()) }
	t.Cleanup(end)
	if _, err := tx.Exec(context.Background(), "lock table "+table+" in "+mode+" mode"); err != nil {
		t.Fatal(err)
	}
	return end
}

// A job that is done, and whose ack the server does not take for a while, stays leased.
func TestHeartbeatOfADoneJob(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	begun, end := make(chan struct{}, 9), make(chan struct{})
	start(t, &Worker{Pool: db.Pool, Queue: "q", Lease: 2 * time.Second, Handler: func(context.Context, *Job) error {
		begun <- struct{}{}
		<-end
		return nil
	}})
	if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
		t.Fatal(err)
	}
	<-begun
	free := lockTable(t, db, "oq.finished", "exclusive")
	close(end)
	until(t, "its lease is extended", func() bool {
		return get[bool](t, db.Pool, "select lease_expires_at > created_at + interval '6 s' from oq_jobs")
	})
	free()
	until(t, "it is acked", func() bool {
		return get[string](t, db.Pool, "select concat_ws(' ', state, attempt, lost_leases) from oq_jobs") == "completed 1 0"
	})
}

// A server that answers no call of the end costs a worker that drains Timeout, and not that for each try of each call.
func TestDrainWithMuteServer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := EnqueueBulk(ctx, db.Pool, "q", make([]int, 10), nil); err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{}, 10)
	var mu sync.Mutex
	told := map[string]int{}
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: 3, Batch: 10, Lease: time.Minute,
		Drain: time.Second, Timeout: time.Second,
		Observe: func(e Event) {
			mu.Lock()
			told[e.State]++
			mu.Unlock()
		},
		Handler: func(ctx context.Context, j *Job) error {
			begun <- struct{}{}
			<-ctx.Done()
			if j.ID%2 == 0 {
				return ctx.Err()
			}
			return nil
		}})
	for range 3 {
		<-begun
	}
	lockTable(t, db, "oq.leased", "access exclusive")
	since := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(since); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(told) != 1 || told["lost"] != 3 {
		t.Errorf("told %v", told)
	}
}

// A job that is not begun and that another transaction holds keeps a worker that drains from giving back no other one, nor
// from acking what is done.
func TestDrainWithAJobThatIsHeld(t *testing.T) {
	t.Parallel()
	for _, pooler := range []bool{false, true} {
		t.Run(fmt.Sprint("pooler ", pooler), func(t *testing.T) {
			t.Parallel()
			drainWithAJobThatIsHeld(t, pooler)
		})
	}
}

func drainWithAJobThatIsHeld(t *testing.T, pooler bool) {
	ctx := context.Background()
	db := testdb.New(t)
	ids, err := EnqueueBulk(ctx, db.Pool, "q", make([]int, 10), nil)
	if err != nil {
		t.Fatal(err)
	}
	begun, end := make(chan struct{}, 1), make(chan struct{})
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Pooler: pooler, Concurrency: 1, Batch: 10, Lease: time.Minute,
		Timeout: 5 * time.Second,
		Handler: func(context.Context, *Job) error {
			begun <- struct{}{}
			<-end
			return nil
		}})
	<-begun
	cancelOpenly(t, db, ids[5])
	time.AfterFunc(time.Second, func() { close(end) })
	if err := stop(); err != nil {
		t.Error(err)
	}
	got := get[string](t, db.Pool, "select string_agg(state, ' ' order by job_id) from oq_jobs")
	if want := "completed ready ready ready ready leased ready ready ready ready"; got != want {
		t.Errorf("after the drain: %s, want %s", got, want)
	}
}

// Nor does a failed attempt of such a job keep its handler from the next one.
func TestFailureOfAJobThatIsHeld(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	id, err := Enqueue(ctx, db.Pool, "q", "fails", &Options{MaxRetries: Retries(0)})
	if err != nil {
		t.Fatal(err)
	}
	begun, end := make(chan struct{}), make(chan struct{})
	start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: 1, Lease: 9 * time.Second,
		Handler: Handle(func(_ context.Context, _ *Job, what string) error {
			if what == "fails" {
				close(begun)
				<-end
				return fmt.Errorf("no luck")
			}
			return nil
		})})
	<-begun
	tx := cancelOpenly(t, db, id)
	close(end)
	since := time.Now()
	next, err := Enqueue(ctx, db.Pool, "q", "succeeds", nil)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the next one is done", func() bool {
		return get[string](t, db.Pool, "select state from oq_get($1)", next) == "completed"
	})
	if took := time.Since(since); took > 5*time.Second {
		t.Errorf("the next one took %s", took)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, "the failure is told", func() bool {
		return get[string](t, db.Pool, "select concat_ws(' ', state, attempt, lost_leases, error) from oq_get($1)", id) ==
			"dead 1 0 no luck"
	})
}

// Many such jobs take no time from the other acks of a drain.
func TestDrainWithManyJobsThatAreHeld(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	ids, err := EnqueueBulk(ctx, db.Pool, "q", make([]int, 26), nil)
	if err != nil {
		t.Fatal(err)
	}
	begun, end := make(chan struct{}, len(ids)), make(chan struct{})
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: len(ids), Timeout: 4 * time.Second,
		Handler: func(ctx context.Context, j *Job) error {
			begun <- struct{}{}
			<-end
			switch j.ID { // A call tries the first, and the next all others, of which the one that is free is the last.
			case ids[0]:
			case ids[25]:
				sleep(ctx, 100*time.Millisecond)
			default:
				sleep(ctx, 50*time.Millisecond)
			}
			return nil
		}})
	for range ids {
		<-begun
	}
	cancelOpenly(t, db, ids[:25]...)
	close(end)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got := get[string](t, db.Pool, "select state from oq_get($1)", ids[25]); got != "completed" {
		t.Errorf("the other one is %s", got)
	}
}
