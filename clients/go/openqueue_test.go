package openqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

type mail struct {
	To string `json:"to"`
}

var mails = Queue[mail]{Name: "mail"}

func TestEnqueueOnWhatTheCallerHas(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	conn := db.Conn(t)
	simple, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		simple.ConnConfig.DefaultQueryExecMode = mode
		pool, err := pgxpool.NewWithConfig(ctx, simple)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		for _, on := range []DB{pool, conn, tx} {
			id, err := mails.Enqueue(ctx, on, mail{"a@b"}, &Options{
				Priority: 3, Delay: time.Hour, MaxRetries: Retries(0), TTL: 2 * time.Hour, Tags: []string{"x", "<&>"},
				Headers: Headers{"n": 1}, Retry: &Retry{Kind: "linear", Base: 1500 * time.Millisecond}})
			if err != nil {
				t.Fatalf("%s on %T: %v", mode, on, err)
			}
			got := get[string](t, on, `select concat_ws(' ', state, priority, max_retries, payload->>'to', tags, headers,
				expires_at - created_at between interval '1:59:59' and interval '2:00:01') from oq_get($1)`, id)
			if want := `scheduled 3 0 a@b {x,<&>} {"n": 1} t`; got != want {
				t.Errorf("%s on %T: %s, want %s", mode, on, got, want)
			}
			ids, err := mails.EnqueueBulk(ctx, on, []mail{{"1"}, {"2"}, {"3"}}, &Options{Priority: -1})
			if err != nil || len(ids) != 3 || !slices.IsSorted(ids) {
				t.Errorf("%s on %T: bulk %v %v", mode, on, ids, err)
			}
			made, err := EnqueueMany(ctx, on, []NewJob{mails.New(mail{"x"}, Options{Priority: 9}),
				{Queue: "other", Payload: []int{1}, Options: Options{RunAt: time.Now().Add(time.Hour), MaxRetries: Retries(7)}}})
			if err != nil || len(made) != 2 || !made[0].Inserted {
				t.Fatalf("%s on %T: many %v %v", mode, on, made, err)
			}
			if got := get[string](t, on, `select concat_ws(' ', queue_name, state, max_retries, payload) from oq_get($1)`,
				made[1].ID); got != "other scheduled 7 [1]" {
				t.Errorf("%s on %T: %s", mode, on, got)
			}
			if ok, err := Update(ctx, on, made[0].ID, map[string]any{"priority": 1}); !ok || err != nil {
				t.Errorf("%s on %T: update %t %v", mode, on, ok, err)
			}
			if ok, err := Cancel(ctx, on, made[0].ID, "for the test"); !ok || err != nil {
				t.Errorf("%s on %T: cancel %t %v", mode, on, ok, err)
			}
		}
		before := get[int](t, conn, "select count(*)::int from oq_jobs")
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		if after := get[int](t, conn, "select count(*)::int from oq_jobs"); after != before {
			t.Errorf("%s: a rollback changed %d jobs to %d", mode, before, after)
		}
		if err := conn.QueryRow(ctx, "select oq_drop_queue('mail', true)").Scan(nil); err != nil {
			t.Fatal(err)
		}
	}
}

// What the server has not yet, or may refuse, arrives there by its name.
func TestOptionsReachTheServer(t *testing.T) {
	t.Parallel()
	o := Options{UniqueMode: Debounce, UniqueFor: time.Minute, DebounceMax: time.Hour, DependsOn: []int64{1 << 60},
		OnParentFailure: RunJob, BatchID: 7, ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 6000, time.UTC),
		Retry: &Retry{Kind: "fixed", Factor: 1.5, Max: time.Second, Jitter: new(float64)}}
	raw, err := json.Marshal(o.rest())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"batch_id":7,"debounce_max":"3600.000000 seconds","depends_on":[1152921504606846976],` +
		`"expires_at":"2030-01-02T03:04:05.000006Z","on_parent_failure":"run",` +
		`"retry":{"factor":1.5,"jitter":0,"kind":"fixed","max":"1.000000 seconds"},"unique_for":"60.000000 seconds",` +
		`"unique_mode":"debounce"}`
	if string(raw) != want {
		t.Errorf("%s\nwant %s", raw, want)
	}
	if _, err := EnqueueBulk(context.Background(), nil, "q", []int{1}, &Options{Delay: 1}); !errors.Is(err, ErrArgument) {
		t.Errorf("an option that bulk can't have: %v", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	full := `{"max_depth": 1}`
	if _, err := db.Pool.Exec(ctx, "select oq_create_queue('full', $1)", full); err != nil {
		t.Fatal(err)
	}
	enqueue := func(queue string, payload any, o Options) error {
		_, err := Enqueue(ctx, db.Pool, queue, payload, &o)
		return err
	}
	if err := enqueue("full", 1, Options{}); err != nil {
		t.Fatal(err)
	}
	err := enqueue("", 1, Options{})
	var pg *pgconn.PgError
	if !errors.Is(err, ErrArgument) || !errors.As(err, &pg) || pg.Code != "OQ001" || !strings.Contains(err.Error(), pg.Hint) {
		t.Errorf("no queue name: %v", err)
	}
	for _, c := range []struct {
		want, err error
	}{
		{ErrArgument, enqueue("q", 1, Options{Priority: 1 << 40})},
		{ErrArgument, enqueue("q", 1, Options{MaxRetries: Retries(1 << 40)})},
		{ErrArgument, enqueue("q", func() {}, Options{})},
		{ErrQueueFull, enqueue("full", 2, Options{})},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%v, want %v", c.err, c.want)
		}
	}
	job := Job{ID: 1, Token: 1}
	if err := job.AckTx(ctx, db.Pool); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("a strict ack of nothing: %v", err)
	}
	tx, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	if _, err := tx.Exec(ctx, "set local role oq_worker"); err != nil {
		t.Fatal(err)
	}
	if _, err := Enqueue(ctx, tx, "q", 1, nil); !errors.Is(err, ErrNotPermitted) {
		t.Errorf("a worker enqueues: %v", err)
	}
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	cause := errors.New("the cause \xff\x00" + strings.Repeat("é", 12_000))
	for want, h := range map[string]Handler{
		"completed": func(_ context.Context, j *Job) error { return j.SetResult("<ok>") },
		"scheduled": func(context.Context, *Job) error { return fmt.Errorf("wrapped: %w", cause) },
		"dead":      func(context.Context, *Job) error { return fmt.Errorf("outside: %w", Discard(cause)) },
		"released":  func(context.Context, *Job) error { return Snooze(time.Hour) },
		"ready":     func(context.Context, *Job) error { return RetryAfter(0, cause) },
	} {
		id, err := Enqueue(ctx, db.Pool, want, map[string]int{"n": 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		d, err := WorkOne(ctx, db.Pool, want, "me", h)
		if err != nil || d == nil || d.ID != id || d.Attempt != 1 || string(d.Payload) != `{"n": 1}` {
			t.Fatalf("%s: %+v %v", want, d, err)
		}
		if d.State != want && !(want == "ready" && d.State == "scheduled") {
			t.Errorf("%s became %s", want, d.State)
		}
		if want == "completed" {
			if got := get[string](t, db.Pool, "select result #>> '{}' from oq_result($1)", id); got != "<ok>" {
				t.Errorf("result %s", got)
			}
		}
	}
	if got := get[string](t, db.Pool, "select left(error, 20) from oq_dead"); !strings.HasPrefix(got, "outside: the cause \uFFFD") {
		t.Errorf("error %q", got)
	}
	if d, err := WorkOne(ctx, db.Pool, "empty", "", nil); d != nil || err != nil {
		t.Errorf("an empty queue: %v %v", d, err)
	}
}

func TestWorker(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	var n atomic.Int64
	var mu sync.Mutex
	states := map[string]int{}
	seen := map[int64]bool{}
	w := &Worker{Pool: db.Pool, Queue: "mail", Concurrency: 7, Batch: 20, Fetchers: 2, Logger: slog.New(slog.DiscardHandler),
		Handler: mails.Handler(func(ctx context.Context, j *Job, m mail) error {
			if trace, _ := TraceFromContext(ctx); trace.Parent != "00-trace" {
				return Discard(errors.New("no trace"))
			}
			if m.To == "" {
				panic("nobody")
			}
			n.Add(1)
			return nil
		}),
		Middleware: []Middleware{Timeout(time.Minute), func(next Handler) Handler {
			return func(ctx context.Context, j *Job) error {
				mu.Lock()
				if seen[j.ID] && j.Attempt == 1 {
					t.Errorf("job %d came twice", j.ID)
				}
				seen[j.ID] = true
				mu.Unlock()
				return next(ctx, j)
			}
		}},
		Observe: func(e Event) { mu.Lock(); states[e.State]++; mu.Unlock() },
	}
	stop := start(t, w)
	traced := ContextWithTrace(ctx, Trace{Parent: "00-trace"})
	var jobs []NewJob
	for i := range 500 {
		jobs = append(jobs, mails.New(mail{fmt.Sprint(i)}, Options{}))
	}
	jobs = append(jobs, mails.New(mail{}, Options{MaxRetries: Retries(0)}))
	if _, err := EnqueueMany(traced, db.Pool, jobs); err != nil {
		t.Fatal(err)
	}
	until(t, "all done", func() bool {
		return get[string](t, db.Pool, `select concat_ws(' ', completed, dead) from oq_stats('mail')`) == "500 1"
	})
	if err := stop(); err != nil || n.Load() != 500 {
		t.Errorf("%d jobs: %v", n.Load(), err)
	}
	if states["acked"] != 500 || states["dead"] != 1 || len(states) != 2 {
		t.Errorf("observed %v", states)
	}
	if got := get[string](t, db.Pool, "select error from oq_dead"); !strings.HasPrefix(got, "panic: nobody\n") ||
		!strings.Contains(got, "openqueue_test.go") {
		t.Errorf("a panic is told as %q", got)
	}
	if n := get[int](t, db.Pool, "select count(*)::int from oq_audit() where violations > 0"); n != 0 {
		t.Errorf("%d laws are broken", n)
	}
}

// A result that the server refuses fails its job alone.
func TestOneBadResult(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	payloads := make([]int, 20)
	payloads[7] = 2_000_000
	if _, err := EnqueueBulk(ctx, db.Pool, "q", payloads, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: 4, Batch: 20,
		Handler: Handle(func(_ context.Context, j *Job, n int) error { return j.SetResult(strings.Repeat("x", n)) })})
	until(t, "all ended", func() bool {
		return get[string](t, db.Pool, `select concat_ws(' ', completed, dead) from oq_stats('q')`) == "19 1"
	})
	if got := get[string](t, db.Pool, "select error from oq_dead"); !strings.Contains(got, "OQ001") {
		t.Errorf("the error is %q", got)
	}
}

// Handlers that hold every connection of the pool keep no heartbeat and no ack from the server.
func TestHandlersMayHoldTheWholePool(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	cfg, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := EnqueueBulk(ctx, db.Pool, "q", make([]int, 4), nil); err != nil {
		t.Fatal(err)
	}
	stop := start(t, &Worker{Pool: pool, Queue: "q", Concurrency: 2, Lease: 4 * time.Second,
		Handler: func(ctx context.Context, j *Job) error {
			return j.Transact(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "select pg_sleep(4.5)")
				return err
			})
		}})
	until(t, "all done", func() bool {
		return get[int](t, db.Pool, `select count(*)::int from oq_jobs where state = 'completed' and attempt = 1 and lost_leases = 0`) == 4
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestHandlerThatNeverReturns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Drain: 10 * time.Millisecond,
		Handler: func(context.Context, *Job) error { close(begun); <-release; return nil }})
	<-begun
	if err := stop(); !errors.Is(err, ErrAbandoned) {
		t.Errorf("Run's error is %v", err)
	}
}

func TestWhatAWorkerRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	h := func(context.Context, *Job) error { return nil }
	for _, w := range []*Worker{
		{Queue: "q", Handler: h}, {Pool: db.Pool, Handler: h}, {Pool: db.Pool, Queue: "q"},
		{Pool: db.Pool, Queue: "q", Handler: h, Lease: time.Millisecond}, {Pool: db.Pool, Queue: "q", Handler: h, Batch: 10_001},
		{Pool: db.Pool, Queue: "no queue", Handler: h}, // the server's word
	} {
		if err := w.Run(ctx); !errors.Is(err, ErrArgument) {
			t.Errorf("%+v: %v", w.Queue, err)
		}
	}
}

// A lease alone is committed without waiting for the disk; nothing else of the worker is.
func TestSynchronousCommit(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx := context.Background()
	l := newLane(&Worker{Pool: db.Pool, Queue: "q", ID: "me", Timeout: time.Minute, jobs: ctx}, 1, 10)
	defer l.s.close()
	for range 3 {
		if _, err := Enqueue(ctx, db.Pool, "q", 1, nil); err != nil {
			t.Fatal(err)
		}
		jobs, lasts, _, err := l.exchange(ctx, nil, false, 10)
		if err != nil || len(jobs) != 1 || lasts < 30*time.Second || lasts > 40*time.Second {
			t.Fatalf("%v %s %v", jobs, lasts, err)
		}
		if got := get[string](t, l.s.conn, "select current_setting('synchronous_commit')"); got != "on" {
			t.Errorf("synchronous_commit stays %s", got)
		}
		if _, _, _, err := l.exchange(ctx, jobs, false, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// A number in a header that is no float64 fails no lease: the jobs beside it would be lost with it.
func TestHeaderWithALargeNumber(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	large := "1" + strings.Repeat("0", 400)
	if _, err := db.Pool.Exec(ctx, `select oq_enqueue('q', headers => $1), oq_enqueue('q', headers => '{"n": 1.5}')`,
		`{"n": `+large+`}`); err != nil {
		t.Fatal(err)
	}
	seen := make(chan any, 2)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: 1, Batch: 2,
		Handler: func(_ context.Context, j *Job) error { seen <- j.Headers["n"]; return nil }})
	for _, want := range []any{json.Number(large), 1.5} {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("the header is %v, want %v", got, want)
			}
		case <-time.After(patience):
			t.Fatal("the jobs do not come")
		}
	}
}

// A server that lets the worker not in for a while has refused neither what was to be acked nor a failure.
func TestRefusedSessionIsNoRefusedCall(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	role := get[string](t, db.Pool, "select 'w_' || current_database()")
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("create role " + role + " login in role oq_worker")
	t.Cleanup(func() { exec("drop role " + role) })
	cfg, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.User = role
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []bool{true, false}, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	said := make(lines, 1000)
	start(t, &Worker{Pool: pool, Queue: "q", Lease: time.Hour, Logger: slog.New(slog.NewTextHandler(said, nil)),
		Handler: Handle(func(_ context.Context, _ *Job, fine bool) error {
			begun <- struct{}{}
			<-goOn
			if !fine {
				return errors.New("out of luck")
			}
			return nil
		})})
	<-begun
	<-begun
	exec("alter role " + role + " nologin")
	exec("select pg_terminate_backend(pid) from pg_stat_activity where usename = '" + role + "'")
	close(goOn)
	said.until(t, "not permitted to log in")
	time.Sleep(100 * time.Millisecond) // For what it should not do.
	exec("alter role " + role + " login")
	until(t, "both are told", func() bool {
		return get[string](t, db.Pool, `select concat_ws(' ', completed, dead) from oq_stats('q')`) == "1 1"
	})
	if n := get[int](t, db.Pool, "select sum(lost_leases)::int from oq_jobs"); n != 0 {
		t.Errorf("%d leases were lost", n)
	}
}

// A session that leads to a standby, as for a moment after a failover, is given up for another.
func TestReadOnlySessionIsGivenUp(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	conn := db.Conn(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	set := `do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$`
	exec(set)
	said := make(lines, 1000)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Poll: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(said, nil)),
		Handler: func(context.Context, *Job) error { return nil }})
	exec("select oq_enqueue('q')")
	said.until(t, "read-only")
	exec(strings.Replace(set, "= on", "= off", 1))
	until(t, "it goes on", func() bool { return get[string](t, conn, "select state from oq_jobs") == "completed" })
}

// Where the role's default is SERIALIZABLE, one lost lease takes no other with it.
func TestStricterDefaultIsolation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	cfg, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []string{"lost", "kept"}, nil); err != nil {
		t.Fatal(err)
	}
	leased, told := make(chan *Job, 1), make(chan error, 1)
	start(t, &Worker{Pool: pool, Queue: "q", Lease: 2 * time.Second, Concurrency: 2,
		Handler: Handle(func(ctx context.Context, j *Job, what string) error {
			if what == "kept" {
				sleep(ctx, 4*time.Second)
				return ctx.Err()
			}
			leased <- j
			<-ctx.Done()
			told <- context.Cause(ctx)
			return ctx.Err()
		})})
	j := <-leased
	if _, err := db.Pool.Exec(ctx, "select oq_release($1, $2, '1 hour')", j.ID, j.Token); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err != ErrLeaseLost {
		t.Errorf("the handler was told %v", err)
	}
	// Whose lease ended would be taken from him at once.
	until(t, "the other is done", func() bool {
		return get[int64](t, db.Pool, "select oq_reap()") >= 0 &&
			get[string](t, db.Pool, `select string_agg(concat_ws(' ', state, attempt, lost_leases), ', ' order by job_id)
				from oq_jobs`) == "scheduled 0 0, completed 1 0"
	})
}

// While a transaction that has acked a job stays open, the heartbeats of the others do not wait for it.
func TestOpenTransactionOfAnAck(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []string{"acks", "other"}, nil); err != nil {
		t.Fatal(err)
	}
	start(t, &Worker{Pool: db.Pool, Queue: "q", Lease: 2 * time.Second, Concurrency: 2,
		Handler: Handle(func(ctx context.Context, j *Job, what string) error {
			if what == "other" {
				sleep(ctx, 5*time.Second)
				return ctx.Err()
			}
			tx, err := db.Pool.Begin(ctx)
			if err != nil {
				return err
			}
			defer tx.Rollback(ctx)
			if err := j.AckTx(ctx, tx); err != nil {
				return err
			}
			sleep(ctx, 4*time.Second)
			return tx.Commit(ctx)
		})})
	// Whose lease ended would be taken from him at once.
	until(t, "both are done", func() bool {
		return get[int64](t, db.Pool, "select oq_reap()") >= 0 &&
			get[string](t, db.Pool, `select string_agg(concat_ws(' ', state, attempt, lost_leases), ', ' order by job_id)
				from oq_jobs`) == "completed 1 0, completed 1 0"
	})
}

// A transaction that is open and has cancelled many jobs, which show their progress, holds no heartbeat of the others up.
func TestOpenTransactionOfACancel(t *testing.T) {
	t.Parallel()
	for _, pooler := range []bool{false, true} {
		t.Run(fmt.Sprint("pooler ", pooler), func(t *testing.T) {
			t.Parallel()
			openTransactionOfACancel(t, pooler)
		})
	}
}

func openTransactionOfACancel(t *testing.T, pooler bool) {
	ctx := context.Background()
	db := testdb.New(t)
	const cancelled = 25
	ids, err := EnqueueBulk(ctx, db.Pool, "q", append(slices.Repeat([]string{"cancelled"}, cancelled), "other", "third"), nil)
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{}, len(ids))
	ended := make(chan error, cancelled)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Pooler: pooler, Lease: 4 * time.Second, Concurrency: len(ids),
		Handler: Handle(func(ctx context.Context, j *Job, what string) error {
			begun <- struct{}{}
			if what == "cancelled" {
				for ctx.Err() == nil {
					_ = j.Progress(ctx, 1)
					sleep(ctx, time.Second/2)
				}
				ended <- context.Cause(ctx)
				return ctx.Err()
			}
			sleep(ctx, 6*time.Second)
			return ctx.Err()
		})})
	for range ids {
		<-begun
	}
	tx := cancelOpenly(t, db, ids[:cancelled]...)
	// Whose lease ended would be taken from him at once.
	until(t, "the others are done", func() bool {
		return get[int64](t, db.Pool, "select oq_reap()") >= 0 &&
			get[string](t, db.Pool, `select string_agg(concat_ws(' ', state, attempt, lost_leases), ', ' order by job_id)
				from oq_jobs where job_id > $1`, ids[cancelled-1]) == "completed 1 0, completed 1 0"
	})
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for range cancelled {
		select {
		case <-ended: // ErrCancelled, or ErrLeaseLost: its lease could not be extended either.
		case <-time.After(patience):
			t.Fatal("a cancelled one was not told")
		}
	}
}

// A handler that ends its goroutine, as t.FailNow does, fails its job; the worker goes on.
func TestHandlerThatExits(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []bool{true, false}, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: 1, Handler: Handle(func(_ context.Context, _ *Job, exit bool) error {
		if exit {
			runtime.Goexit()
		}
		return nil
	})})
	until(t, "both ended", func() bool {
		return get[string](t, db.Pool, `select concat_ws(' ', completed, dead) from oq_stats('q')`) == "1 1"
	})
	if got := get[string](t, db.Pool, "select error from oq_dead"); !strings.Contains(got, "Goexit") {
		t.Errorf("the error is %q", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// While a job runs, what comes next is begun by the handlers that are free.
func TestFreeHandlersAreUsed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	const handlers = 8
	begun, over := make(chan struct{}), make(chan struct{})
	stop := start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: handlers,
		Handler: func(context.Context, *Job) error { begun <- struct{}{}; <-over; return nil }})
	for i := range handlers {
		if _, err := Enqueue(ctx, db.Pool, "q", i, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case <-begun:
		case <-time.After(patience):
			t.Fatalf("%d jobs run, and no other is begun", i)
		}
	}
	close(over)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

type unlucky struct{ why string }

func (u *unlucky) Error() string { return u.why }

// An error that panics when it is asked what it says is a failure of its job, and of nothing else.
func TestErrorThatPanics(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	if _, err := Enqueue(ctx, db.Pool, "q", 1, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	start(t, &Worker{Pool: db.Pool, Queue: "q", Handler: func(context.Context, *Job) error {
		var none *unlucky
		return none
	}})
	until(t, "it is dead", func() bool { return get[string](t, db.Pool, "select state from oq_jobs") == "dead" })
	if got := get[string](t, db.Pool, "select error from oq_dead"); !strings.Contains(got, "nil pointer") {
		t.Errorf("the error is %q", got)
	}
}

// The lease_seconds of the queue change while jobs are held: each is kept by what its own lease lasts.
func TestLeasesOfAnotherLength(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	lasts := func(seconds int) {
		t.Helper()
		if _, err := db.Pool.Exec(ctx, "select oq_create_queue('q', jsonb_build_object('lease_seconds', $1::int))", seconds); err != nil {
			t.Fatal(err)
		}
	}
	lasts(60)
	begun := make(chan struct{}, 2)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Concurrency: 2,
		Handler: Handle(func(ctx context.Context, _ *Job, seconds int) error {
			begun <- struct{}{}
			sleep(ctx, time.Duration(seconds)*time.Second)
			return ctx.Err()
		})})
	for _, seconds := range []int{6, 3} {
		if _, err := Enqueue(ctx, db.Pool, "q", seconds, nil); err != nil {
			t.Fatal(err)
		}
		<-begun
		time.Sleep(1500 * time.Millisecond) // Longer than the second lease.
		lasts(1)
	}
	// Whose lease ended would be taken from him at once.
	until(t, "both are done", func() bool {
		return get[int64](t, db.Pool, "select oq_reap()") >= 0 &&
			get[string](t, db.Pool, `select string_agg(concat_ws(' ', state, attempt, lost_leases), ', ' order by job_id)
				from oq_jobs`) == "completed 1 0, completed 1 0"
	})
}

// A job whose lease ended in the worker, as while the process stood still, is not begun.
func TestLeaseThatEndedIsNotBegun(t *testing.T) {
	t.Parallel()
	w := &Worker{Pool: testdb.New(t).Pool, Timeout: time.Minute, jobs: context.Background(), Logger: slog.New(slog.DiscardHandler)}
	var begun []int64
	w.handler = func(_ context.Context, j *Job) error { begun = append(begun, j.ID); return nil }
	l := newLane(w, 1, 2)
	for i, age := range []time.Duration{time.Minute, 0} {
		l.queue = append(l.queue, &Job{ID: int64(i), hold: hold{since: time.Now().Add(-age), lasts: 30 * time.Second}})
	}
	l.workers.Go(l.work)
	until(t, "both are taken", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.acks) == 1
	})
	l.mu.Lock()
	l.closed = true
	l.more.Broadcast()
	l.mu.Unlock()
	l.workers.Wait()
	if !slices.Equal(begun, []int64{1}) || l.queue[0].hold.gone != ErrLeaseLost {
		t.Errorf("begun: %v, the first ended by %v", begun, l.queue[0].hold.gone)
	}
}
