package concurrency

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

// querier is a session, its transaction, or the pool.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// patience bounds every wait of a test: what takes longer hangs.
const patience = 30 * time.Second

func exec(t testing.TB, q querier, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := q.Exec(ctx, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func list[T any](t testing.TB, q querier, sql string, args ...any) []T {
	t.Helper()
	values, err := try[T](q, sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return values
}

func try[T any](q querier, sql string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

func get[T any](t testing.TB, q querier, sql string, args ...any) T {
	t.Helper()
	values := list[T](t, q, sql, args...)
	if len(values) != 1 {
		t.Fatalf("%s: %d rows, want one", sql, len(values))
	}
	return values[0]
}

func code(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

type job struct {
	ID       int64
	Token    int64
	Priority int
	Attempt  int
}

const leaseSQL = `select job_id, lease_token, priority, attempt
	from oq_lease($1, null, $2, $3) with ordinality order by ordinality`

// lease with the queue's lease_seconds, or others.
func lease(t testing.TB, q querier, queue string, n int, seconds ...int) []job {
	t.Helper()
	jobs, err := tryLease(q, queue, n, seconds...)
	if err != nil {
		t.Fatalf("lease %d of %s: %v", n, queue, err)
	}
	return jobs
}

func tryLease(q querier, queue string, n int, seconds ...int) ([]job, error) {
	var lasts *int
	if len(seconds) > 0 {
		lasts = &seconds[0]
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rows, err := q.Query(ctx, leaseSQL, queue, lasts, n)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[job])
}

func split(jobs []job) (ids, tokens []int64) {
	for _, j := range jobs {
		ids = append(ids, j.ID)
		tokens = append(tokens, j.Token)
	}
	return ids, tokens
}

func ack(t testing.TB, q querier, j job) bool {
	t.Helper()
	return get[bool](t, q, "select oq_ack($1, $2)", j.ID, j.Token)
}

func tick(t testing.TB, q querier, times int) {
	t.Helper()
	for range times {
		exec(t, q, "select from oq_tick()")
	}
}

// age makes the marks look a second old, so that the next tick moves them however little there is.
func age(t testing.TB, q querier) {
	t.Helper()
	exec(t, q, `update oq.mark set raised_at = raised_at - interval '5 s'
		where mark_id in (select mark_id from oq.mark for update skip locked)`)
	exec(t, q, `update oq.epoch_open set opened_at = opened_at - interval '5 s'
		where row_id in (select row_id from oq.epoch_open for update skip locked)`)
}

// overtake raises the marks over what an open transaction has enqueued, as when that is a while ago.
func overtake(t testing.TB, q querier) {
	t.Helper()
	tick(t, q, 1)
	age(t, q)
	tick(t, q, 1)
}

// alone makes the leases think that no daemon is there.
func alone(t testing.TB, q querier) {
	t.Helper()
	exec(t, q, "select setval('oq.beat', 0)")
}

// low is the mark of a queue's lane of priority 0.
func low(t testing.TB, q querier, queue string) int64 {
	t.Helper()
	return get[int64](t, q, `select max(m.low) from oq.mark m
		where m.lane = (select (queue_id << 16) + 32767 from oq.queue where queue_name = $1 limit 1)`, queue)
}

func pid(t testing.TB, c *pgx.Conn) int32 {
	t.Helper()
	return int32(c.PgConn().PID())
}

// blocked waits until the session waits for another one's lock.
func blocked(t testing.TB, db *testdb.DB, pid int32) {
	t.Helper()
	until(t, db.Pool, "session waits for a lock",
		"select exists (select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock')", pid)
}

// until asks again and again: what it waits for is another session's doing, or the server's clock.
func until(t testing.TB, q querier, what, sql string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !get[bool](t, q, sql, args...) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// passes waits for the server's clock to go by.
func passes(t testing.TB, q querier, after time.Duration) {
	t.Helper()
	exec(t, q, "select pg_sleep($1::float8)", after.Seconds())
}

// background runs f and gives back a function that waits for it.
func background(t testing.TB, f func() error) (wait func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	return func() {
		t.Helper()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatal("never returned")
		}
	}
}

// together runs f in n sessions of their own that begin at the same moment.
func together(t testing.TB, db *testdb.DB, n int, f func(i int, c *pgx.Conn) error) {
	t.Helper()
	var sessions []*pgx.Conn
	for range n {
		sessions = append(sessions, db.Conn(t))
	}
	start := make(chan struct{})
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, c := range sessions {
		wg.Go(func() {
			<-start
			errs[i] = f(i, c)
		})
	}
	close(start)
	wg.Wait()
	for i, err := range errs {
		if err != nil && !errors.Is(err, errRollback) {
			t.Errorf("session %d: %v", i, err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// audit proves the conservation laws.
func audit(t testing.TB, q querier) {
	t.Helper()
	for _, broken := range list[string](t, q,
		"select law || ': ' || violations || ' ' || coalesce(sample, '') from oq_audit() where violations <> 0") {
		t.Errorf("audit: %s", broken)
	}
}

// drain leases and acks whatever the queues hold, one by one, and fails if a job comes twice. The
// ticks in between sweep up what was committed late.
func drain(t testing.TB, db *testdb.DB, queues ...string) map[int64]job {
	t.Helper()
	c := db.Conn(t)
	seen := map[int64]job{}
	for range 3 {
		age(t, c)
		tick(t, c, 1)
		for _, queue := range queues {
			for {
				jobs := lease(t, c, queue, 100)
				if len(jobs) == 0 {
					break
				}
				for _, j := range jobs {
					if _, twice := seen[j.ID]; twice {
						t.Errorf("job %d was leased twice", j.ID)
					}
					seen[j.ID] = j
				}
				ids, tokens := split(jobs)
				if n := len(list[int64](t, c, "select oq_ack_many($1, $2)", ids, tokens)); n != len(ids) {
					t.Errorf("%d of %d acks accepted", n, len(ids))
				}
			}
		}
	}
	return seen
}

// expect fails unless exactly these jobs were seen.
func expect(t testing.TB, seen map[int64]job, want ...int64) {
	t.Helper()
	for _, id := range want {
		if _, ok := seen[id]; !ok {
			t.Errorf("job %d was never leased", id)
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d jobs were leased, want %d", len(seen), len(want))
	}
}

// watched is a session that reports its warnings, as a duty that failed is one.
func watched(t testing.TB, db *testdb.DB, warnings chan<- string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" {
			warnings <- n.Message
		}
	}
	c, err := pgx.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}
