package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

// worker is a process that takes everything, finishes a part of it in a transaction that it never
// commits, and waits to be killed.
func worker(url string) error {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	jobs, err := try[int64](c, "select job_id from oq_lease('q', 'victim', 1, 100)")
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"begin",
		`select oq_ack(job_id, token) from oq.leased where worker_id = 'victim' and job_id % 4 = 0`,
		`select oq_nack(job_id, token, 'x') from oq.leased where worker_id = 'victim' and job_id % 4 = 1`,
		`select oq_heartbeat(job_id, token, 3600) from oq.leased where worker_id = 'victim' and job_id % 4 = 2`,
		"select oq_enqueue('q', '\"of the victim\"')",
		"set application_name = 'victim is ready'",
	} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	_, err = c.Exec(ctx, fmt.Sprintf("select pg_sleep(600), %d", len(jobs)))
	return err
}

func TestKilledWorker(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"the daemon", "a lease"} {
		t.Run("noticed by "+by, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c := db.Conn(t)
			ids := list[int64](t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[40]))")
			victim := start(t, []string{workerURL + "=" + db.URL}, os.Args[0])
			until(t, c, "the victim works",
				"select exists (select from pg_stat_activity where application_name = 'victim is ready' and datname = current_database())")
			tokens := map[int64]int64{}
			for _, id := range ids {
				tokens[id] = get[int64](t, c, "select token from oq.leased where job_id = $1", id)
			}
			if by == "the daemon" {
				startDaemon(t, daemon(t), db.URL)
			}
			victim.kill()
			killed := time.Now()
			// The server notices when it next writes to the victim, or not at all: it is told.
			run(t, c, `select pg_terminate_backend(pid, 5000) from pg_stat_activity
				where application_name = 'victim is ready' and datname = current_database()`)
			seen := map[int64]bool{}
			for len(seen) < len(ids) {
				if time.Since(killed) > patience {
					t.Fatalf("%d of %d jobs came back", len(seen), len(ids))
				}
				rows, err := c.Query(context.Background(), "select job_id, lease_token, attempt from oq_lease('q', 'heir', 60, 100)")
				if err != nil {
					t.Fatal(err)
				}
				type lease struct {
					ID, Token int64
					Attempt   int
				}
				jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[lease])
				if err != nil {
					t.Fatal(err)
				}
				for _, j := range jobs {
					if seen[j.ID] {
						t.Errorf("job %d came back twice", j.ID)
					}
					seen[j.ID] = true
					if tokens[j.ID] == 0 {
						t.Errorf("job %d was rolled back and is there", j.ID)
					}
					if j.Token <= tokens[j.ID] || j.Attempt != 2 {
						t.Errorf("job %d came back with token %d after %d, attempt %d", j.ID, j.Token, tokens[j.ID], j.Attempt)
					}
					if get[bool](t, c, "select oq_ack($1, $2)", j.ID, tokens[j.ID]) {
						t.Errorf("the dead worker's token of job %d is accepted", j.ID)
					}
					if !get[bool](t, c, "select oq_ack($1, $2)", j.ID, j.Token) {
						t.Errorf("the heir's ack of job %d is refused", j.ID)
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
			// A lease of one second, and within a second of its end: not the 30 s of a queue, nor the hour of a heartbeat
			// that was never committed.
			if took := time.Since(killed); took > 20*time.Second {
				t.Errorf("the jobs came back after %s", took)
			}
			if n := get[int](t, c, "select count(*)::int from oq_attempts($1) where outcome = 'lost' and worker_id = 'victim'",
				ids[0]); n != 1 {
				t.Errorf("%d lost leases recorded, want 1", n)
			}
			audit(t, c)
		})
	}
}

// A job that kills each worker is put aside.
func TestPoisonedJob(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	id := get[int64](t, c, "select oq_enqueue('q', max_retries => 100)")
	for n := range 3 {
		until(t, c, fmt.Sprintf("lease %d", n+1),
			"select count(*) = 1 from oq_lease('q', 'victim', 1)")
	}
	until(t, c, "the job is dead", "select state = 'dead' and lost_leases = 3 from oq_lease('q') right join oq_get($1) g on true", id)
	if got := get[string](t, c, "select reason from oq_dead where job_id = $1", id); got != "lost_lease" {
		t.Errorf("dead because of %s, want lost_lease", got)
	}
	audit(t, c)
}

// ledger is what the clients were told: enqueued and acked are committed for certain, and the tokens
// were seen by a worker, whatever became of the lease.
type ledger struct {
	mu       sync.Mutex
	enqueued map[int64]bool
	acked    map[int64]bool
	maybe    map[int64]bool // an ack whose answer never came
	tokens   map[int64]int64
	errs     []error
}

func newLedger() *ledger {
	return &ledger{enqueued: map[int64]bool{}, acked: map[int64]bool{}, maybe: map[int64]bool{}, tokens: map[int64]int64{}}
}

func (l *ledger) fault(format string, args ...any) {
	l.errs = append(l.errs, fmt.Errorf(format, args...))
}

// lostConnection tells the fault that was made from an error of the queue.
func lostConnection(err error) bool {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code[:2] == "57" || refused.Code[:2] == "08"
	}
	return true
}

// client produces or works until its context ends or the connection does.
func (l *ledger) client(ctx context.Context, url string, produce, lazy bool) {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return
	}
	defer c.Close(context.Background())
	if lazy {
		// As client libraries lease: a lost lease commit only repeats a job.
		if _, err := c.Exec(ctx, "set synchronous_commit = off"); err != nil {
			return
		}
	}
	for n := 0; ctx.Err() == nil; n++ {
		if produce {
			err = l.produce(ctx, c, n)
		} else {
			err = l.work(ctx, c, lazy, 5)
		}
		if err != nil {
			if ctx.Err() == nil && !lostConnection(err) {
				l.mu.Lock()
				l.fault("%w", err)
				l.mu.Unlock()
			}
			return
		}
	}
}

func (l *ledger) produce(ctx context.Context, c *pgx.Conn, n int) error {
	sql := []string{
		"select oq_enqueue('q')",
		"select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[10]))",
		`select oq_enqueue('q', priority => 1, options => '{"delay": "50 ms"}')`,
	}[n%3]
	rows, err := c.Query(ctx, sql)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if l.enqueued[id] {
			l.fault("id %d was given twice", id)
		}
		l.enqueued[id] = true
	}
	return nil
}

// work leases, and acks what it leased unless it is lazy: a lazy session's acks could be lost, too.
func (l *ledger) work(ctx context.Context, c *pgx.Conn, lazy bool, jobs int) error {
	// Long enough that no lease ends while its answer is on the way: what is noted here comes in the order of the leases.
	rows, err := c.Query(ctx, "select job_id, lease_token from oq_lease('q', 'w', 5, $1)", jobs)
	if err != nil {
		return err
	}
	var id, token int64
	var ids, tokens []int64
	_, err = pgx.ForEachRow(rows, []any{&id, &token}, func() error {
		ids, tokens = append(ids, id), append(tokens, token)
		return nil
	})
	l.mu.Lock()
	for i, id := range ids {
		if l.tokens[id] >= tokens[i] {
			l.fault("job %d: token %d after %d", id, tokens[i], l.tokens[id])
		}
		l.tokens[id] = tokens[i]
		if l.acked[id] {
			l.fault("job %d was leased again after its ack", id)
		}
		if !lazy {
			l.maybe[id] = true
		}
	}
	l.mu.Unlock()
	if err != nil || lazy || len(ids) == 0 {
		time.Sleep(2 * time.Millisecond)
		return err
	}
	rows, err = c.Query(ctx, "select oq_ack_many($1, $2)", ids, tokens)
	if err != nil {
		return err
	}
	acked, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range acked {
		if l.acked[id] {
			l.fault("job %d was acked twice", id)
		}
		l.acked[id] = true
	}
	return nil
}

// clients starts some of each kind and gives back a function that stops them and waits.
func (l *ledger) clients(url string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { l.client(ctx, url, i < 2, i >= 5) })
	}
	return func() { cancel(); wg.Wait() }
}

// settle holds the queue against the ledger, and works it off.
func (l *ledger) settle(t *testing.T, c *pgx.Conn) {
	t.Helper()
	for _, err := range l.errs {
		t.Error(err)
	}
	audit(t, c)
	states := map[int64]string{}
	rows, err := c.Query(context.Background(), "select job_id, state from oq_jobs")
	if err != nil {
		t.Fatal(err)
	}
	var id int64
	var state string
	if _, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error {
		if states[id] != "" {
			t.Errorf("job %d is %s and %s", id, states[id], state)
		}
		states[id] = state
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for id := range l.enqueued {
		if states[id] == "" {
			t.Errorf("job %d was enqueued, and is gone", id)
		}
	}
	for id := range l.acked {
		if states[id] != "completed" {
			t.Errorf("job %d was acked, and is %s", id, states[id])
		}
	}
	for id, state := range states {
		if state == "completed" && !l.acked[id] && !l.maybe[id] {
			t.Errorf("job %d is completed, and nobody acked it", id)
		}
	}
}

// finish works off what is left, with larger tokens than anybody saw before.
func (l *ledger) finish(t *testing.T, c *pgx.Conn) {
	t.Helper()
	run(t, c, `select oq_redrive('q')`)
	before, moved := 0, time.Now()
	for get[bool](t, c, "select exists (select from oq_jobs where queue_name = 'q' and state in ('ready', 'scheduled', 'leased'))") {
		if len(l.acked) > before {
			before, moved = len(l.acked), time.Now()
		} else if time.Since(moved) > patience {
			t.Fatal("the rest is never done")
		}
		if err := l.work(context.Background(), c, false, 500); err != nil {
			t.Fatal(err)
		}
		run(t, c, "select from oq_tick()")
	}
	l.settle(t, c)
	t.Logf("%d jobs enqueued, %d acked for certain", len(l.enqueued), len(l.acked))
}

func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	run(t, c, `select oq_create_queue('q', '{"max_lost_leases": 1000}')`)
	bin := daemon(t)
	l := newLedger()
	stop := l.clients(db.URL)
	random := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		d := startDaemon(t, bin, db.URL)
		until(t, c, "the daemon ticks", `select last_value > (date_part('epoch', clock_timestamp()) * 1000)::bigint - 200
			from oq.beat`)
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond) // any point of its work
		d.kill()
	}
	stop()
	l.settle(t, c)
	// One more takes over what they left.
	run(t, c, `select oq_enqueue('later', options => '{"delay": "100 ms"}')`)
	startDaemon(t, bin, db.URL)
	until(t, c, "the next daemon promotes", "select exists (select from oq_jobs where queue_name = 'later' and state = 'ready')")
	l.finish(t, c)
}

// The leader is frozen and keeps its lock: another daemon sees that it doesn't tick, and does.
func TestFrozenLeader(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	bin := daemon(t)
	leader := startDaemon(t, bin, db.URL)
	const leading = `select count(*) = 1 from pg_locks where locktype = 'advisory' and objid = 0
		and classid = (hashtext('oq:leader')::bigint & 4294967295)::oid
		and database = (select oid from pg_database where datname = current_database())`
	until(t, c, "the first daemon leads", leading)
	startDaemon(t, bin, db.URL)
	// Each has two sessions.
	until(t, c, "the second daemon is there", `select count(*) = 4 from pg_stat_activity
		where application_name = 'openqueued' and datname = current_database()`)
	if err := leader.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer leader.Process.Signal(syscall.SIGCONT)
	frozen := time.Now()
	run(t, c, `select oq_enqueue('q', options => '{"delay": "1 s"}')`)
	until(t, c, "the second daemon promotes", "select state = 'ready' from oq_jobs where queue_name = 'q'")
	if took := time.Since(frozen); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if !get[bool](t, c, leading) {
		t.Error("the frozen leader lost its lock: this is no test of it")
	}
	audit(t, c)
}

// The server is killed under load, with everything that it had not written.
func TestKilledServer(t *testing.T) {
	server := testdb.StartServer(t, testdb.ServerOptions{Settings: map[string]string{"fsync": "on"}})
	url := server.URL("postgres")
	l := newLedger()
	connect := func() *pgx.Conn {
		t.Helper()
		c, err := pgx.Connect(context.Background(), url)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := connect()
	run(t, c, `select oq_create_queue('q', '{"max_lost_leases": 1000}')`)
	for turn := range 4 {
		stop := l.clients(url)
		ticks, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			for ticks.Err() == nil {
				if _, err := c.Exec(ticks, "select from oq_tick()"); err != nil {
					return
				}
			}
		})
		watch := connect()
		before := len(l.snapshot())
		until(t, watch, "there is load", `select (select count(*) from oq.finished) > $1 + 300`, before)
		if turn%2 == 1 {
			// The generations' register moves in a crash as well.
			run(t, watch, "update oq.generation_state set opened_at = opened_at - interval '1 year' where stage = 'current'")
			run(t, watch, "select oq_rotate()")
		}
		pids := list[int32](t, watch, "select pid from pg_stat_activity where pid <> pg_backend_pid()")
		if turn == 2 {
			ctx, done := context.WithTimeout(context.Background(), patience)
			if err := server.Stop(ctx, "immediate"); err != nil {
				t.Fatal(err)
			}
			done()
		} else {
			_ = syscall.Kill(server.PID(), syscall.SIGKILL)
			for _, pid := range pids {
				_ = syscall.Kill(int(pid), syscall.SIGKILL)
			}
		}
		stop()
		cancel()
		wg.Wait()
		watch.Close(context.Background())
		c.Close(context.Background())

		server.Restart(t)
		url = server.URL("postgres")
		c = connect()
		l.settle(t, c)
		if t.Failed() {
			return
		}
	}
	l.finish(t, c)
	c.Close(context.Background())
}

// A sequence logs values ahead: after a crash it is further on than it was. The register of generations must not be, or
// one that is closed would be filled again.
func TestGenerationAfterACrash(t *testing.T) {
	server := testdb.StartServer(t, testdb.ServerOptions{})
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	for turn := range 3 {
		run(t, c, "select oq_enqueue('q')")
		run(t, c, "update oq.generation_state set opened_at = opened_at - interval '1 year' where stage = 'current'")
		run(t, c, "select oq_rotate()")
		if turn < 2 {
			run(t, c, "update oq.generation_state set closed_at = closed_at - interval '1 year' where stage = 'closed'")
			until(t, c, "it is emptied", "select oq_rotate() >= 0 and not exists (select from oq.generation_state where stage not in ('empty', 'current'))")
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Stop(ctx, "immediate"); err != nil {
		t.Fatal(err)
	}
	c.Close(ctx)
	server.Restart(t)
	if c, err = pgx.Connect(ctx, server.URL("postgres")); err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	if is, was := get[int](t, c, "select last_value::int from oq.generation"),
		get[int](t, c, "select gen::int from oq.generation_state where stage = 'current'"); is != was {
		t.Errorf("generation %d is filled after the crash, it was %d", is, was)
	}
	audit(t, c)
}

func (l *ledger) snapshot() map[int64]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	copied := map[int64]bool{}
	for id := range l.acked {
		copied[id] = true
	}
	return copied
}

// A copy of the database in another cluster does nothing by itself, until somebody says so.
func TestRestoredCopy(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	run(t, c, "select oq_enqueue('q')")
	run(t, c, "update oq.instance set system_identifier = system_identifier + 1")
	fresh := db.Conn(t)
	for _, sql := range []string{
		"select oq_lease('q')", "select oq_lease('q', 'w', 10, 5)", "select oq_next('q')", "select oq_tick()",
		"select oq_promote()", "select oq_reap()", "select oq_advance()", "select oq_rotate()", "select oq_compact()",
		"select oq_run_schedules()",
	} {
		_, err := fresh.Exec(context.Background(), sql)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "55000" || refused.Hint == "" {
			t.Errorf("%s in a copy: %v, want 55000 with a hint", sql, err)
		}
	}
	run(t, fresh, "select oq_enqueue('q')")
	if !get[bool](t, fresh, "select oq_adopt()") {
		t.Error("nothing was adopted")
	}
	if get[bool](t, fresh, "select oq_adopt()") {
		t.Error("adopted twice")
	}
	if n := len(list[int64](t, fresh, "select job_id from oq_lease('q', max_jobs => 5)")); n != 2 {
		t.Errorf("%d jobs leased after the adoption, want 2", n)
	}
	run(t, fresh, "select oq_tick()")
	audit(t, fresh)
}

// A dump goes to a cluster whose roles have other ids: a queue's grants are those of the same names there.
func TestGrantsOfADump(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	connect := func(roles ...string) *pgx.Conn {
		c, err := pgx.Connect(ctx, testdb.StartServer(t, testdb.ServerOptions{}).URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(context.Background()) })
		for _, role := range roles {
			run(t, c, "create role "+role+" in role oq_producer")
		}
		return c
	}
	from, to := connect("ann", "ben"), connect("ben", "ann")
	run(t, from, "select oq_create_queue('secret', '{\"restricted\": true}')")
	run(t, from, "select oq_grant('secret', 'ann', '{produce}')")
	for _, table := range []string{"oq.queue", "oq.queue_grant"} {
		var rows bytes.Buffer
		if _, err := from.PgConn().CopyTo(ctx, &rows, "copy "+table+" to stdout"); err != nil {
			t.Fatal(err)
		}
		if _, err := to.PgConn().CopyFrom(ctx, &rows, "copy "+table+" from stdin"); err != nil {
			t.Fatal(err)
		}
	}
	for role, may := range map[string]bool{"ann": true, "ben": false} {
		run(t, to, "set role "+role)
		_, err := try[int64](to, "select oq_enqueue('secret')")
		if (err == nil) != may {
			t.Errorf("%s enqueues into the restored queue: %v", role, err)
		}
		run(t, to, "reset role")
	}
}
