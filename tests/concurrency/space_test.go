package concurrency

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// load is producers and workers at work; each job's payload says which it is.
type load struct {
	mu       sync.Mutex
	enqueued map[int64]string
	acked    map[int64]int
	errs     []error
	stop     chan struct{}
	once     sync.Once
	wg       sync.WaitGroup
}

// startLoad runs producers and workers until finish. Some jobs fail once, some leases are left to expire.
func startLoad(t *testing.T, db *testdb.DB, producers, workers int) *load {
	t.Helper()
	l := &load{enqueued: map[int64]string{}, acked: map[int64]int{}, stop: make(chan struct{})}
	for i := range producers {
		c := db.Conn(t)
		l.wg.Go(func() {
			for n := 0; l.going(); n++ {
				l.note(l.produce(c, fmt.Sprintf("%d-%d", i, n), n))
				time.Sleep(time.Millisecond) // a pace at which the workers keep up
			}
		})
	}
	for i := range workers {
		c := db.Conn(t)
		l.wg.Go(func() {
			for n := i; l.going(); n++ {
				l.note(l.work(c, n))
			}
		})
	}
	t.Cleanup(l.end) // before their sessions are closed
	return l
}

// end stops the load, however often it is called.
func (l *load) end() {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
}

func (l *load) going() bool {
	select {
	case <-l.stop:
		return false
	default:
		return true
	}
}

func (l *load) note(err error) {
	if err == nil {
		return
	}
	l.mu.Lock()
	l.errs = append(l.errs, err)
	l.mu.Unlock()
}

func (l *load) produce(c *pgx.Conn, name string, n int) error {
	sql := "select oq_enqueue('q', to_jsonb($1::text))"
	switch n % 7 {
	case 1:
		sql = "select oq_enqueue('q', to_jsonb($1::text), priority => 3)"
	case 2:
		sql = `select oq_enqueue('q', to_jsonb($1::text), options => '{"delay": "100 ms"}')`
	case 3:
		sql = "select oq_enqueue_bulk('q', array_fill(to_jsonb($1::text), array[20]))"
	}
	ids, err := try[int64](c, sql, name)
	if err != nil {
		return fmt.Errorf("enqueue: %w", err)
	}
	l.mu.Lock()
	for _, id := range ids {
		l.enqueued[id] = name
	}
	l.mu.Unlock()
	return nil
}

func (l *load) work(c *pgx.Conn, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rows, err := c.Query(ctx, `select job_id, lease_token, payload #>> '{}', attempt
		from oq_lease('q', 'worker', 1, $1)`, 1+n%30)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	type leased struct {
		ID, Token int64
		Payload   string
		Attempt   int
	}
	jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leased])
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if len(jobs) == 0 {
		time.Sleep(time.Millisecond)
		return nil
	}
	ids, tokens := []int64{}, []int64{}
	for i, j := range jobs {
		l.mu.Lock()
		name, known := l.enqueued[j.ID]
		l.mu.Unlock()
		if known && name != j.Payload {
			return fmt.Errorf("job %d has the payload of %s, want %s", j.ID, j.Payload, name)
		}
		switch {
		case j.Attempt == 1 && (n+i)%11 == 0:
			if _, err := try[string](c, "select coalesce(oq_nack($1, $2, 'again', retry_after => '50 ms'), '')",
				j.ID, j.Token); err != nil {
				return fmt.Errorf("nack: %w", err)
			}
		case j.Attempt == 1 && (n+i)%97 == 0:
			// Left to the reaper.
		default:
			ids = append(ids, j.ID)
			tokens = append(tokens, j.Token)
		}
	}
	acked, err := try[int64](c, "select oq_ack_many($1, $2)", ids, tokens)
	if err != nil {
		return fmt.Errorf("ack: %w", err)
	}
	l.mu.Lock()
	for _, id := range acked {
		l.acked[id]++
	}
	l.mu.Unlock()
	return nil
}

// finish stops the load, works off what is left and compares: each job was acked once.
func (l *load) finish(t *testing.T, db *testdb.DB) {
	t.Helper()
	l.end()
	if len(l.errs) > 0 {
		t.Errorf("%d errors under load, the first: %v", len(l.errs), l.errs[0])
	}
	c := db.Conn(t)
	before, moved := 0, time.Now()
	for len(l.acked) < len(l.enqueued) {
		if len(l.acked) > before {
			before, moved = len(l.acked), time.Now()
		} else if time.Since(moved) > patience {
			t.Errorf("%d of %d jobs were acked, and no more", len(l.acked), len(l.enqueued))
			break
		}
		tick(t, c, 1)
		if err := l.work(c, 1); err != nil {
			t.Fatal(err)
		}
	}
	for id := range l.enqueued {
		if l.acked[id] != 1 {
			t.Errorf("job %d was acked %d times", id, l.acked[id])
		}
	}
	t.Logf("%d jobs", len(l.enqueued))
	audit(t, c)
}

// Generations close, are emptied and truncated beside the load. What is not finished is carried on
// with everything that is known of it.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `select oq_create_queue('q', '{"retention": "1 second", "max_lost_leases": 1000}')`)
	exec(t, c, `select oq_create_queue('old', '{"max_retries": 0, "retention": "1 second"}')`)
	later := get[int64](t, c, `select oq_enqueue('old', '"later"', headers => '{"a": 1}', options => '{"delay": "1 day", "tags": ["x"]}')`)
	dead := get[int64](t, c, `select oq_enqueue('old', '"dead"')`)
	j := lease(t, c, "old", 1)[0]
	exec(t, c, "select oq_nack($1, $2, 'broken')", j.ID, j.Token)
	held := get[int64](t, c, `select oq_enqueue('old', '"held"')`)
	j = lease(t, c, "old", 1, 3600)[0]
	done := get[int64](t, c, `select oq_enqueue('old', '"done"')`)
	last := lease(t, c, "old", 1)[0]
	finished := time.Now() // Or later.
	exec(t, c, "select oq_ack($1, $2, '\"result\"')", last.ID, last.Token)

	l := startLoad(t, db, 2, 3)
	warnings := make(chan string, 1000)
	clock := watched(t, db, warnings)
	turns, readable := 0, 0
	generation := int64(0)
	deadline := time.Now().Add(3 * patience)
	for turn := 0; turns < 4; turn++ {
		if time.Now().After(deadline) {
			t.Errorf("%d generations in %s", turns, 3*patience)
			break
		}
		tick(t, clock, 1)
		// However often it found a lock taken, it tries again at once.
		exec(t, clock, "update oq.generation_state set try_after = null where try_after is not null")
		exec(t, clock, "select oq_rotate(2000)")
		if now := get[int64](t, clock, "select last_value from oq.generation"); now != generation {
			generation = now
			turns++
		}
		if turn%10 == 0 {
			audit(t, clock) // the laws hold at any moment
		}
		result := list[string](t, clock, "select result #>> '{}' from oq_result($1)", done)
		if len(result) == 1 && result[0] == "result" {
			readable++
		} else if since := time.Since(finished); since < time.Second {
			t.Fatalf("the result was gone after %s, before the retention", since)
		}
	}
	if readable == 0 {
		t.Error("the result was never there")
	}
	if n := len(list[string](t, clock, "select state from oq_result($1)", done)); n != 0 {
		t.Error("the result is kept for ever")
	}
	close(warnings)
	for warning := range warnings {
		t.Errorf("warning: %s", warning)
	}
	if n := get[int](t, c, "select count(*)::int from oq.finished"); n == 0 {
		t.Error("nothing finished")
	}
	l.finish(t, db)

	for id, want := range map[int64]string{
		later: `scheduled "later" {"a": 1} 0`, dead: `dead "dead" - 1 broken`, held: `leased "held" - 1`,
	} {
		got := get[string](t, c, `select concat_ws(' ', state, payload, coalesce(headers::text, '-'), attempt, error)
			from oq_get($1)`, id)
		if got != want {
			t.Errorf("job is %q after the rotations, want %q", got, want)
		}
	}
	if got := list[string](t, c, "select outcome || ' ' || error from oq_attempts($1)", dead); len(got) != 1 || got[0] != "failed broken" {
		t.Errorf("attempts of the dead job: %v", got)
	}
	if !ack(t, c, j) {
		t.Error("the lease was lost")
	}
	audit(t, c)
}

// Every narrow table is rewritten again and again beside the load.
func TestCompactionUnderLoad(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `select oq_create_queue('q', '{"max_lost_leases": 1000}')`)
	l := startLoad(t, db, 2, 3)
	ticks := db.Conn(t)
	l.wg.Go(func() {
		for l.going() {
			_, err := ticks.Exec(context.Background(), "select from oq_tick()")
			l.note(err)
		}
	})
	tables := []string{"ready", "leased", "scheduled", "ttl", "mark", "epoch_open", "passed"}
	rewrites := map[string]int{}
	deadline := time.Now().Add(patience)
	wait := 20 // ms, and more where the machine is slow
	for n := 0; ; n++ {
		table := tables[n%len(tables)]
		exec(t, c, fmt.Sprintf("set lock_timeout = %d", wait))
		_, err := c.Exec(context.Background(), "select oq.rewrite($1)", table)
		switch code(err) {
		case "":
			rewrites[table]++
			wait = max(wait/2, 20)
		case "55P03":
			wait = min(2*wait, 1000)
		default:
			t.Fatalf("rewrite of %s: %v", table, err)
		}
		few := false
		for _, table := range tables {
			few = few || rewrites[table] < 15
		}
		if !few {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("rewrites in %s: %v", patience, rewrites)
			break
		}
	}
	t.Logf("rewrites: %v", rewrites)
	l.finish(t, db)
}

// Compaction gives up when somebody holds the table, and nobody queues up behind it for long.
func TestCompactionWaitsForNobody(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_enqueue('q')")
	exec(t, a, "begin")
	j := lease(t, a, "q", 1)[0]
	exec(t, b, "set lock_timeout = '20ms'")
	for _, table := range []string{"ready", "leased", "mark"} {
		_, err := b.Exec(context.Background(), "select oq.rewrite($1)", table)
		if code(err) != "55P03" {
			t.Errorf("rewrite of %s beside an open lease: %q, want 55P03", table, code(err))
		}
	}
	if settings := get[[]string](t, b, "select proconfig from pg_proc where proname = 'oq_compact'"); !slices.Contains(settings, "lock_timeout=20ms") {
		t.Errorf("oq_compact is set to %v", settings)
	}
	exec(t, a, "commit")
	if !ack(t, a, j) {
		t.Error("the lease was lost")
	}
	audit(t, a)
}

// Indexes that are all empty pages are built anew, and who holds a snapshot still sees every job. Pages by the tens
// of thousands take minutes to leave behind; the catalog says here that they are there.
func TestCompactionOfHollowIndexes(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	list[int64](t, a, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[100]))")
	jobs := lease(t, a, "q", 40)
	exec(t, b, "begin isolation level repeatable read")
	if n := get[int](t, b, "select count(*)::int from pg_class"); n == 0 {
		t.Fatal("no snapshot")
	}
	if n := get[int](t, a, "select oq_compact()::int"); n != 0 {
		t.Errorf("%d tables were built anew for nothing", n)
	}
	exec(t, a, "set allow_system_table_mods = on")
	for table, lines := range map[string]int{"ready": 60, "leased": 40} {
		exec(t, a, "update pg_class set relpages = 10000 where relname = $1", table+"_pk")
		if n := get[int](t, a, "select oq_compact()::int"); n != 1 {
			t.Errorf("%s: %d tables were built anew, want 1", table, n)
		}
		if pages := get[int](t, a, "select relpages from pg_class where relname = $1", table+"_pk"); pages > 10 {
			t.Errorf("%s_pk has %d pages", table, pages)
		}
		if n := get[int](t, b, "select count(*)::int from oq."+table); n != lines {
			t.Errorf("an older snapshot sees %d rows of %s, want %d", n, table, lines)
		}
		// Not again for five seconds, unless the clock is past that.
		exec(t, a, "select setval('oq.compact_after', 1)")
	}
	exec(t, b, "commit")
	for _, j := range jobs {
		if !ack(t, a, j) {
			t.Fatalf("the lease of job %d was lost", j.ID)
		}
	}
	audit(t, a)
}

// The table of leases is read as a whole each second, so it is rewritten where most of it is empty, as the catalog says here;
// not where the statistics know of no rows, as after a crash, and VACUUM had counted many.
func TestCompactionOfHollowLeases(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a := db.Conn(t)
	list[int64](t, a, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[40]))")
	jobs := lease(t, a, "q", 40)
	exec(t, a, "set allow_system_table_mods = on")
	for i, want := range []int{0, 1, 0} {
		if i < 2 {
			exec(t, a, "update pg_class set relpages = 10000, reltuples = $1 where relname = 'leased'", []float32{800000, 40}[i])
		}
		if n := get[int](t, a, "select oq_compact()::int"); n != want {
			t.Errorf("%d tables were rewritten, want %d", n, want)
		}
		exec(t, a, "select setval('oq.compact_after', 1)")
	}
	for _, j := range jobs {
		if !ack(t, a, j) {
			t.Fatalf("the lease of job %d was lost", j.ID)
		}
	}
	audit(t, a)
}

// A table that an open transaction keeps does not keep the others from their turn: the next is tried in the same call.
// What is to be done is said by indexes that the catalog makes look hollow.
func TestCompactionTriesTheNextTable(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_enqueue('q')")
	exec(t, a, "set allow_system_table_mods = on")
	for _, free := range []string{"ready", "leased", "todo"} {
		exec(t, b, "begin")
		for _, table := range []string{"ready", "leased", "todo"} {
			exec(t, a, "update pg_class set relpages = 10000 where relname = $1", table+"_pk")
			if table != free {
				exec(t, b, fmt.Sprintf("lock table oq.%s in row exclusive mode", table))
			}
		}
		exec(t, a, "select setval('oq.compact_after', 1)")
		if n := get[int](t, a, "select oq_compact()::int"); n != 1 {
			t.Errorf("beside two locked tables %d were built anew, want 1", n)
		}
		if pages := get[int](t, a, "select relpages from pg_class where relname = $1", free+"_pk"); pages > 10 {
			t.Errorf("%s_pk has %d pages", free, pages)
		}
		exec(t, a, "select setval('oq.compact_after', 1)")
		if n := get[int](t, a, "select oq_compact()::int"); n != 0 {
			t.Errorf("%d locked tables were built anew", n)
		}
		exec(t, b, "commit")
	}
	audit(t, a)
}

// A table that can't be rewritten, here by a trigger of somebody's own, is warned of, and the next has its turn.
func TestCompactionThatFails(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	warnings := make(chan string, 10)
	a := watched(t, db, warnings)
	exec(t, a, `create function refuse() returns trigger language plpgsql as $$ begin raise exception 'never'; end $$`)
	exec(t, a, "alter table oq.todo set (autovacuum_enabled = off)")
	exec(t, a, "insert into oq.todo (kind, id, queue_id, due_at) select 'child', i, 0, 'infinity' from generate_series(1, 25001) i")
	exec(t, a, "delete from oq.todo where id > 1")
	exec(t, a, "create trigger refuse before truncate on oq.todo execute function refuse()")
	until(t, a, "the statistics know", "select pg_stat_get_dead_tuples('oq.todo'::regclass) > 20000")
	exec(t, a, "set allow_system_table_mods = on")
	exec(t, a, "update pg_class set relpages = 10000 where relname = 'ready_pk'")
	if n := get[int](t, a, "select oq_compact()::int"); n != 1 {
		t.Errorf("beside a table that fails %d were built anew, want 1", n)
	}
	if pages := get[int](t, a, "select relpages from pg_class where relname = 'ready_pk'"); pages > 10 {
		t.Errorf("ready_pk has %d pages", pages)
	}
	select {
	case warning := <-warnings:
		t.Log(warning)
	default:
		t.Error("nobody is warned")
	}
	exec(t, a, "delete from oq.todo")
	audit(t, a)
}

// A tick that puts jobs in line, as oq_promote does, and then empties that table: what is to be done before its commit is
// done first, since TRUNCATE refuses a table that has triggers to fire.
func TestCompactionOfWaitingInTheTickThatFillsIt(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	first := get[int64](t, c, "select oq_enqueue('q', group_key => 'a')")
	second := get[int64](t, c, `select oq_enqueue('q', group_key => 'a', options => '{"delay": "1 ms"}')`)
	other := get[int64](t, c, `select oq_enqueue('q', group_key => 'b', options => '{"delay": "1 ms"}')`)
	passes(t, c, 2*time.Millisecond)
	exec(t, c, "begin")
	if n := get[int](t, c, "select oq_promote()::int"); n != 2 {
		t.Fatalf("%d jobs were promoted, want 2", n)
	}
	exec(t, c, "select oq.rewrite('waiting')")
	exec(t, c, "commit")
	if n := get[int](t, c, "select count(*)::int from oq.waiting where first"); n != 0 {
		t.Errorf("%d jobs are newly in line again", n)
	}
	audit(t, c)
	if got := get[string](t, c, "select string_agg(state, ' ' order by job_id) from oq_jobs"); got != "ready waiting ready" {
		t.Errorf("the jobs are %s", got)
	}
	expect(t, drain(t, db, "q"), first, second, other)
	audit(t, c)
}

// What a dump shows that was taken in the middle of a compaction: a job that stands nowhere.
func TestRepairAfterADumpInTheMiddleOfACompaction(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	ids := list[int64](t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[3]))")
	j := lease(t, c, "q", 1)[0]
	exec(t, c, "select oq_nack($1, $2, retry_after => '0')", j.ID, j.Token)
	lease(t, c, "q", 1)
	tick(t, c, 2)
	exec(t, c, "truncate oq.ready, oq.leased")
	law := "select violations from oq_audit() where law = 'job_without_place'"
	if n := get[int64](t, c, law); n != 3 {
		t.Errorf("the audit sees %d jobs that stand nowhere, want 3", n)
	}
	exec(t, c, "select oq_repair()")
	audit(t, c)
	seen := drain(t, db, "q")
	expect(t, seen, ids...)
	if back := seen[j.ID]; back.Attempt != 2 || back.Token <= j.Token {
		t.Errorf("the job came back as %+v, after %+v", back, j)
	}
	audit(t, c)
}

// noTimeout ends a short statement_timeout, under which this statement itself may be cancelled.
func noTimeout(t testing.TB, c *pgx.Conn) {
	t.Helper()
	for range 100 {
		if _, err := c.Exec(context.Background(), "set statement_timeout = 0"); code(err) != "57014" {
			if err != nil {
				t.Fatal(err)
			}
			// A time-out that fired at the very end of a statement cancels the next one.
			if _, err := c.Exec(context.Background(), "select"); err != nil && code(err) != "57014" {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("a SET is cancelled a hundred times")
}

// A duty that is cancelled in the middle has done nothing, and the next one goes on.
func TestDutiesCutShort(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `select oq_create_queue('q', '{"retention": "1 second", "max_lost_leases": 1000}')`)
	l := startLoad(t, db, 1, 1)
	cut, done := 0, 0
	times, ms := 1, 1 // So that about half are cut short, however fast the machine is at the moment.
	deadline := time.Now().Add(2 * patience)
	for n := 0; cut < 150 || done < 150; n++ {
		if time.Now().After(deadline) {
			t.Fatalf("%d duties cut short, %d done, the last %d times in %d ms", cut, done, times, ms)
		}
		switch {
		case cut > done && times > 1:
			times--
		case cut > done:
			ms++
		case ms > 1:
			ms--
		case done > cut:
			times++
		}
		sql := []string{"oq_tick()", "oq_rotate()", "oq_advance()", "oq_reap()", "oq_promote()", "oq_tick(20)"}[n%6]
		exec(t, c, fmt.Sprintf("set statement_timeout = '%dms'", ms))
		_, err := c.Exec(context.Background(), fmt.Sprintf(
			"select count(d) from (select %s as d from generate_series(1, %d) offset 0) s", sql, times))
		switch code(err) {
		case "":
			done++
		case "57014":
			cut++
		default:
			t.Fatalf("%s: %v", sql, err)
		}
		noTimeout(t, c)
		if n := get[int](t, c, "select count(*)::int from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"); n != 0 {
			t.Fatalf("%s was cut short and left %d session locks", sql, n)
		}
		if n%20 == 0 {
			tick(t, c, 1)
		}
	}
	t.Logf("%d cut short, %d done", cut, done)
	l.finish(t, db)
}

// turn opens the next generation, as half a retention after the last.
func turn(t testing.TB, q querier) {
	t.Helper()
	before := get[int64](t, q, "select last_value from oq.generation")
	exec(t, q, "update oq.generation_state set opened_at = opened_at - interval '1 year' where stage = 'current'")
	exec(t, q, "select oq_rotate()")
	if get[int64](t, q, "select last_value from oq.generation") == before {
		t.Fatal("the generation did not change")
	}
}

// outlive lets the retention of all that has ended pass, and empties what is closed as far as that goes.
func outlive(t testing.TB, q querier) {
	t.Helper()
	exec(t, q, "update oq.generation_state set closed_at = closed_at - interval '1 year' where closed_at is not null")
	exec(t, q, "update oq.finished set finished_at = finished_at - interval '1 year'")
	for range 16 {
		exec(t, q, "update oq.generation_state set try_after = null")
		exec(t, q, "select oq_rotate()")
	}
}

// An ack that is open while the generation of its job is emptied: its end must not be older than the job's row, or
// it goes first, and the job stands nowhere.
func TestOpenAckBesideRotations(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "rollback"} {
		db := testdb.New(t)
		w, c := db.Conn(t), db.Conn(t)
		exec(t, c, "select oq_enqueue('q')")
		turn(t, c)
		j := lease(t, c, "q", 1)[0]
		exec(t, w, "begin")
		if !ack(t, w, j) {
			t.Fatal("the ack was refused")
		}
		turn(t, c)
		exec(t, c, "update oq.generation_state set closed_at = closed_at - interval '1 year' where closed_at is not null")
		for range 8 {
			exec(t, c, "update oq.generation_state set try_after = null")
			exec(t, c, "select oq_rotate()")
		}
		exec(t, w, end)
		outlive(t, c)
		audit(t, c)
		if n := get[int](t, c, "select count(*)::int from oq.generation_state where stage = 'empty'"); n != 2 {
			t.Errorf("%s: %d generations are empty, want 2", end, n)
		}
		if end == "commit" {
			turn(t, c)
			outlive(t, c)
			audit(t, c)
			if n := get[int](t, c, "select count(*)::int from oq.job"); n != 0 {
				t.Errorf("%d jobs are carried on that have ended", n)
			}
		} else if !ack(t, c, j) {
			t.Error("the lease was lost")
		}
	}
}

// A call that waits for another session, while the generations turn, writes into the one that is current then.
func TestGenerationOfACallThatWaits(t *testing.T) {
	t.Parallel()
	cases := []struct{ name, hold, sql, where string }{
		{"oq_ack_many", "select oq_heartbeat($1, $2)",
			"select count(*)::int from oq_ack_many(array[$1::bigint], array[$2::bigint], '{1}')", "oq.finished"},
		{"oq_next", "select oq_heartbeat($1, $2)", `select count(*)::int from oq_next('none',
			acked_job_ids => array[$1::bigint, 0], acked_tokens => array[$2::bigint, 0])`, "oq.finished"},
		{"oq_enqueue_many", "select oq_enqueue('q', unique_key => 'k') where $1::bigint + $2::bigint > 0",
			`select count(*)::int from oq_enqueue_many('[{"queue_name": "q", "unique_key": "k"}]')
				where $1::bigint + $2::bigint > 0`, "oq.job"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
			exec(t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, a, "begin")
			exec(t, a, tc.hold, j.ID, j.Token)
			wait := background(t, func() error {
				_, err := try[int](b, tc.sql, j.ID, j.Token)
				return err
			})
			blocked(t, db, pid(t, b))
			turn(t, c)
			exec(t, a, "rollback")
			wait()
			if n := get[int](t, c, "select count(*)::int from "+tc.where+" where gen = 1"); n != 1 {
				t.Errorf("%d rows are in the current generation, want 1", n)
			}
			audit(t, c)
		})
	}
}

// In a dump the registers, which are outside its snapshot, are younger than the rows. A generation that is not empty
// must not be filled again: its jobs would end in an older one.
func TestRegisterOfADumpIsYoungerThanItsRows(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[3]))")
	turn(t, c)
	jobs := lease(t, c, "q", 3)
	ack(t, c, jobs[0])
	exec(t, c, "select setval('oq.generation', 0)")
	ack(t, c, jobs[1]) // before the first tick
	exec(t, c, "select oq_enqueue('q')")
	exec(t, c, "select oq_rotate()")
	if got := get[int](t, c, "select last_value::int from oq.generation"); got != 1 {
		t.Errorf("generation %d is filled, which was closed", got)
	}
	ack(t, c, jobs[2])
	for range 3 {
		outlive(t, c)
		audit(t, c)
		turn(t, c)
	}
	if n := len(drain(t, db, "q")); n != 1 {
		t.Errorf("%d jobs are left, want 1", n)
	}
	outlive(t, c)
	audit(t, c)
}

// A clock that was ten years ahead: the generations turn as before once it is right.
func TestRotationAfterTheClockWentBack(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	id := get[int64](t, c, "select oq_enqueue('q')")
	turn(t, c)
	exec(t, c, "update oq.generation_state set opened_at = opened_at + interval '10 years', closed_at = closed_at + interval '10 years'")
	exec(t, c, "select oq_rotate()")
	turn(t, c)
	outlive(t, c)
	if n := get[int](t, c, "select count(*)::int from oq.generation_state where stage = 'empty'"); n != 2 {
		t.Errorf("%d generations are empty, want 2", n)
	}
	expect(t, drain(t, db, "q"), id)
	audit(t, c)
}

// A job was committed in a queue after it was dropped, and somebody is just making the queue again: oq_rotate does the rest
// of its work, and this one later.
func TestRotationBesideAnOpenCreateQueue(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, w := db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_create_queue('q')")
	exec(t, w, "begin")
	exec(t, w, "select oq_enqueue('q')")
	exec(t, c, "select oq_drop_queue('q')")
	exec(t, w, "commit")
	exec(t, w, "begin")
	exec(t, w, "select oq_create_queue('q', '{\"max_retries\": 7}')")
	exec(t, c, "select oq_rotate()")
	exec(t, w, "rollback")
	exec(t, c, "select oq_rotate()")
	if n := get[int](t, c, "select count(*)::int from oq_queues where queue_name = 'q'"); n != 1 {
		t.Error("the queue with a job is not there")
	}
	audit(t, c)
}
