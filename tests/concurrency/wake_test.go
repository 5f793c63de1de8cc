package concurrency

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

const sleepers = `select count(*)::int from pg_locks where pid = $1 and locktype = 'advisory' and mode = 'ShareLock'
	and classid = (hashtext('oq:sleeper')::bigint & 4294967295)::oid`

// woken waits for the next notification, and sends one of its own first: so it also ends when there is none.
func woken(t testing.TB, c, other *pgx.Conn, queue string) bool {
	t.Helper()
	exec(t, other, `select pg_notify('oq:' || $1, 'marker')`, queue)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	before := 0
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n.Payload == "marker" {
			return before > 0
		}
		before++
	}
}

func TestOnlySleepersAreNotified(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	producing := []string{
		"select oq_enqueue('q')", "select oq_enqueue('q', priority => 1)", `select oq_enqueue_bulk('q', '{"1"}')`,
		`select oq_enqueue_many('[{"queue_name": "q"}]')`, `select oq_enqueue('q' collate "POSIX")`,
	}
	// Listens, but doesn't sleep.
	exec(t, a, `listen "oq:q"`)
	for _, sql := range producing {
		exec(t, b, sql)
		if woken(t, a, b, "q") {
			t.Errorf("%s notified while nobody slept", sql)
		}
	}
	tick(t, b, 1)
	if woken(t, a, b, "q") {
		t.Error("the tick notified while nobody slept")
	}
	exec(t, a, "select oq_listen('q')")
	for _, sql := range append(producing, "select from oq_tick()", "select oq_wake()") {
		exec(t, b, sql)
		if !woken(t, a, b, "q") {
			t.Errorf("%s did not wake the sleeper", sql)
		}
	}
	// Scheduled jobs, other queues and what rolls back wake nobody.
	drain(t, db, "q")
	woken(t, a, b, "q")
	exec(t, b, `select oq_enqueue('q', options => '{"delay": "1 hour"}'), oq_enqueue('other')`)
	exec(t, b, "begin; select oq_enqueue('q'); rollback")
	tick(t, b, 1)
	if woken(t, a, b, "q") {
		t.Error("woken for nothing")
	}
	// What comes back does.
	for _, sql := range []string{"select oq_release($1, $2)", "select oq_nack($1, $2, retry_after => '0')"} {
		exec(t, a, "select oq_enqueue('q')")
		woken(t, a, b, "q")
		j := lease(t, b, "q", 1)[0]
		exec(t, b, sql, j.ID, j.Token)
		if !woken(t, a, b, "q") {
			t.Errorf("%s did not wake the sleeper", sql)
		}
		j = lease(t, b, "q", 1)[0]
		ack(t, b, j)
	}
	exec(t, a, "select oq_unlisten('q')")
	exec(t, a, `listen "oq:q"`)
	exec(t, b, "select oq_enqueue('q')")
	if woken(t, a, b, "q") {
		t.Error("notified though the sleeper is awake")
	}
	// A session that ends sleeps no more.
	exec(t, db.Pool, "select oq_enqueue('q')")
	c := db.Conn(t)
	exec(t, c, "select oq_listen('q')")
	c.Close(context.Background())
	until(t, b, "the sleeper's lock is gone", `select not exists (select from pg_locks where locktype = 'advisory'
		and pid = $1)`, pid(t, c))
	exec(t, b, "select oq_enqueue('q')")
	if woken(t, a, b, "q") {
		t.Error("notified though the sleeper is gone")
	}
}

// A session that enqueues into the queue that it sleeps on, and jobs promoted and reaped: the tick wakes.
func TestTheTickWakes(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_listen('q')")
	exec(t, a, "select oq_enqueue('q')")
	tick(t, b, 1)
	if !woken(t, a, b, "q") {
		t.Error("not woken for its own job")
	}
	drain(t, db, "q")
	woken(t, a, b, "q")

	exec(t, a, "select oq_enqueue('q')")
	lease(t, b, "q", 1, 1)
	exec(t, a, `select oq_enqueue('q', priority => 2, options => '{"delay": "10 ms"}')`)
	woken(t, a, b, "q")
	for _, place := range []string{"scheduled", "leased"} {
		until(t, b, "nothing "+place, "select count(*) > 0 and (select count(*) = 0 from oq."+place+") from oq_tick()")
		if !woken(t, a, b, "q") {
			t.Errorf("not woken for what was %s", place)
		}
		drain := lease(t, b, "q", 1, 600)
		if len(drain) != 1 {
			t.Fatalf("leased %v", drain)
		}
		if place == "leased" {
			ack(t, b, drain[0])
		} else {
			ack(t, b, drain[0])
			woken(t, a, b, "q")
		}
	}
	exec(t, b, "select oq_enqueue('q'), oq_pause('q')")
	woken(t, a, b, "q")
	tick(t, b, 1)
	if woken(t, a, b, "q") {
		t.Error("woken for a paused queue")
	}
}

func TestListenTwiceUnlistenOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	for range 3 {
		exec(t, a, "select oq_listen('q'), oq_listen('q'), oq_listen('p')")
		if n := get[int](t, b, sleepers, pid(t, a)); n != 2 {
			t.Errorf("%d sleeper's locks, want 2", n)
		}
		exec(t, a, "select oq_unlisten('q')")
		if n := get[int](t, b, sleepers, pid(t, a)); n != 1 {
			t.Errorf("%d sleeper's locks, want 1", n)
		}
		exec(t, a, "select oq_unlisten('q'), oq_unlisten('p'), oq_unlisten('never')")
		if n := get[int](t, b, sleepers, pid(t, a)); n != 0 {
			t.Errorf("%d sleeper's locks, want none", n)
		}
		if n := len(list[string](t, a, "select pg_listening_channels()")); n != 0 {
			t.Errorf("still listening to %d channels", n)
		}
	}
}

// Many sleepers and many producers at once: the sleepers' listen never hangs, nobody loses a lock.
func TestListenBesideProducers(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db.Pool, "select oq_enqueue('q')")
	together(t, db, 8, func(i int, c *pgx.Conn) error {
		for range 150 {
			sql := "select oq_enqueue('q')"
			if i%2 == 1 {
				sql = "select oq_listen('q'), pg_sleep(0.001), oq_unlisten('q')"
			}
			if _, err := c.Exec(context.Background(), sql); err != nil {
				return err
			}
		}
		n, err := try[int](c, "select count(*)::int from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'")
		if err == nil && n[0] != 0 {
			err = fmt.Errorf("%d locks left", n[0])
		}
		return err
	})
}

// Somebody holds the sleeper's key for a reason of his own: all goes on, by polling.
func TestSquattedKey(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	squatter, a, b := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_enqueue('q')")
	exec(t, squatter, `select pg_advisory_lock(hashtext('oq:sleeper'), (queue_id & 2147483647)::int)
		from oq.queue where queue_name = 'q' limit 1`)
	for _, c := range []*pgx.Conn{a, b} {
		exec(t, c, "set statement_timeout = '20s'") // a call that waits for the squatter waits for ever
	}
	exec(t, a, "select oq_listen('q')")
	exec(t, b, "select oq_enqueue('q')")
	exec(t, b, "select from oq_tick()")
	if n := len(lease(t, a, "q", 10)); n != 2 {
		t.Errorf("%d jobs leased, want 2", n)
	}
	exec(t, a, "select oq_unlisten('q')")
}

// The probe's lock and unlock are one expression: wherever a cancel falls, none is left.
func TestCancelledEnqueueLeaksNoLock(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a := db.Conn(t)
	exec(t, a, "select oq_enqueue('q')")
	cancelled := 0
	for n := 0; cancelled < 100; n++ {
		if n > 2000 {
			t.Fatalf("only %d calls were cancelled", cancelled)
		}
		exec(t, a, fmt.Sprintf("set statement_timeout = '%dms'", 1+n%5))
		_, err := a.Exec(context.Background(), `select oq_enqueue('q', priority => i % 2) from generate_series(1, 2000) i`)
		if code(err) == "57014" {
			cancelled++
		} else if err != nil {
			t.Fatal(err)
		}
		noTimeout(t, a)
		if n := get[int](t, a, `select count(*)::int from pg_locks
			where pid = pg_backend_pid() and locktype = 'advisory'`); n != 0 {
			t.Fatalf("%d session locks are left", n)
		}
	}
	audit(t, a)
}

// A full notification queue fails the commit of whoever notifies. Nobody can fill eight gigabytes here, so
// the measure is replaced in the function that asks for it.
func TestFullNotificationQueueFailsNoEnqueue(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	source := get[string](t, b, "select pg_get_functiondef('oq.wake(text)'::regprocedure)")
	full := strings.ReplaceAll(source, "pg_notification_queue_usage()", "0.9")
	if full == source {
		t.Fatal("the wake-up doesn't look at pg_notification_queue_usage()")
	}
	exec(t, b, full)
	exec(t, a, "select oq_listen('q')")
	exec(t, b, "select oq_enqueue('q')")
	tick(t, b, 1)
	if woken(t, a, b, "q") {
		t.Error("notified into a full queue")
	}
	if n := len(lease(t, a, "q", 1)); n != 1 {
		t.Errorf("%d jobs leased by polling, want 1", n)
	}
}

// PREPARE TRANSACTION refuses a transaction that notifies.
func TestPreparedTransactions(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, sleeper := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, a, `select oq_create_queue('quiet', '{"notify": "daemon"}')`)
	exec(t, a, "select oq_enqueue('q')")
	drain(t, db, "q", "quiet")
	prepare := func(queue string) (int64, string, error) {
		exec(t, a, "begin")
		id := get[int64](t, a, "select oq_enqueue($1)", queue)
		name := fmt.Sprintf("%s %d %d", queue, id, time.Now().UnixNano())
		_, err := a.Exec(context.Background(), "prepare transaction '"+name+"'")
		return id, name, err
	}
	finish := func(queue, name string, id int64) {
		t.Helper()
		// It is an open transaction: others pass, and its job comes when it commits.
		flow(t, b, queue)
		exec(t, b, "commit prepared '"+name+"'")
		tick(t, b, 1)
		jobs := lease(t, b, queue, 10)
		if len(jobs) != 1 || jobs[0].ID != id {
			t.Fatalf("leased %v, want job %d", jobs, id)
		}
		ack(t, b, jobs[0])
	}

	id, name, err := prepare("q")
	if err != nil {
		t.Fatalf("prepare, while nobody sleeps: %v", err)
	}
	finish("q", name, id)

	exec(t, sleeper, "select oq_listen('quiet'), oq_listen('q')")
	id, name, err = prepare("quiet")
	if err != nil {
		t.Fatalf("prepare, with notify => daemon: %v", err)
	}
	finish("quiet", name, id)
	if !woken(t, sleeper, b, "quiet") {
		t.Error("the daemon did not wake the sleeper")
	}

	var refused *pgconn.PgError
	if _, _, err = prepare("q"); !errors.As(err, &refused) {
		t.Errorf("prepare of a transaction that notifies: %v; is the option of any use?", err)
	}
	audit(t, b)
}

// Whoever stands in for a leader that is frozen goes on until that one ticks again, whatever ticks himself.
func TestStandInLeadsUntilTheLeaderTicks(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	leader, other := db.Conn(t), db.Conn(t)
	leads := func(c *pgx.Conn) bool {
		t.Helper()
		return get[bool](t, c, "select oq_lead()")
	}
	// Five seconds without a tick of the leader.
	freeze := func() { exec(t, db.Pool, "select setval('oq.led', greatest(last_value - 6000, 0)) from oq.led") }
	if !leads(leader) || leads(other) {
		t.Fatal("the first leads, before it ticks as well, and the second does not")
	}
	freeze()
	for range 3 {
		if !leads(other) {
			t.Fatal("nobody leads while the leader is frozen")
		}
		tick(t, other, 1)
	}
	tick(t, leader, 1)
	if leads(other) {
		t.Error("the other leads while the leader ticks")
	}
	if !leads(leader) {
		t.Error("the leader has lost its lock")
	}
	// A tick by anybody else, pg_cron or a person, is no sign of the leader.
	freeze()
	tick(t, db.Conn(t), 1)
	if !leads(other) {
		t.Error("a tick by hand counts as the leader's")
	}
	// Who was leader and is not any more does not tick in its name.
	exec(t, leader, "select pg_advisory_unlock_all()")
	if !leads(other) || leads(leader) {
		t.Error("the lock is free, and the other does not take it")
	}
	freeze()
	tick(t, leader, 1)
	if !leads(leader) {
		t.Error("who gave the lock away ticks as the leader")
	}
}

// A sleeper that does not take what is ready: the tick says it again, but not at each of its thirty a second.
func TestTheTickDoesNotRepeatItselfForEver(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_listen('q'), oq_enqueue('q')")
	woke := func() int {
		t.Helper()
		return get[int](t, b, "select done::int from oq_tick() where duty = 'wake'")
	}
	// After 20, 40, 80, 160, 320 and 640 ms, then once a second.
	said, began := 0, time.Now()
	for said < 2 || time.Since(began) < time.Second {
		said += woke()
		if time.Since(began) > patience {
			t.Fatal("it is not said again")
		}
	}
	if took := time.Since(began); said > 7+int(took/time.Second) {
		t.Errorf("%d times in %s: want it soon again, and then less and less often", said, took)
	}
	// Another first job, and another queue's, are news.
	exec(t, a, "select oq_enqueue('q', priority => 1)")
	if woke() != 1 {
		t.Error("a new first job wakes nobody")
	}
	exec(t, c, "select oq_listen('other'), oq_enqueue('other')")
	tick(t, b, 1)
	if !woken(t, c, b, "other") {
		t.Error("another queue's job wakes nobody")
	}
	// Whoever asks himself is not put off.
	if n := get[int](t, b, "select oq_wake()::int"); n != 2 {
		t.Errorf("oq_wake woke %d queues", n)
	}
	drain(t, db, "q")
	drain(t, db, "other")
	if woke() != 0 {
		t.Error("woken for nothing")
	}
	exec(t, a, "select oq_enqueue('q')")
	if woke() != 1 {
		t.Error("a new job after none wakes nobody")
	}
}

// led is as if a leader had just ticked, unled as if it had gone, and quiet as if nothing had moved for long: only a leader who
// looks every 50 ms has wake-ups left to it.
const (
	led   = `select setval('oq.led', (extract(epoch from clock_timestamp()) * 500)::bigint * 2)`
	unled = `select setval('oq.led', (extract(epoch from clock_timestamp()) * 500)::bigint * 2 - 5000)`
	quiet = `select setval('oq.led', (extract(epoch from clock_timestamp()) * 500)::bigint * 2 + 1)`
)

// Commits that notify wait for each other. While two are on their way a third leaves its wake-up to the tick; one whose
// transaction stays open keeps nobody from his, and where no tick is to come soon each notifies.
func TestOfManyCommitsTwoNotify(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	sleeper, a, b, c := db.Conn(t), db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, sleeper, "select oq_listen('q'), oq_listen('other')")
	exec(t, c, "select oq_lead()")
	for _, s := range []*pgx.Conn{a, b} {
		exec(t, s, "begin")
		exec(t, s, "select oq_enqueue('q'), oq_enqueue('q')")
	}
	exec(t, c, led)
	exec(t, c, "select oq_enqueue('other')")
	if !woken(t, sleeper, c, "other") {
		t.Error("not woken, since others have enqueued in open transactions")
	}
	// As in the middle of their commits.
	exec(t, a, "set constraints all immediate")
	exec(t, b, "set constraints all immediate")
	drain(t, db, "other")
	tick(t, c, 1)
	woken(t, sleeper, c, "other")
	exec(t, c, led)
	exec(t, c, "select oq_enqueue('other')")
	if woken(t, sleeper, c, "other") {
		t.Error("a third notifies as well")
	}
	tick(t, c, 1)
	if !woken(t, sleeper, c, "other") {
		t.Error("the tick doesn't wake whom the third left to it")
	}
	exec(t, c, unled)
	exec(t, c, "select oq_enqueue('other')")
	if !woken(t, sleeper, c, "other") {
		t.Error("nobody leads, and not woken")
	}
	exec(t, c, quiet)
	exec(t, c, "select oq_enqueue('other')")
	if !woken(t, sleeper, c, "other") {
		t.Error("nothing has moved for long, and not woken")
	}
	exec(t, c, led)
	exec(t, a, "commit")
	if !woken(t, sleeper, c, "q") {
		t.Error("not woken by the first")
	}
	exec(t, c, "select oq_enqueue('other')")
	if !woken(t, sleeper, c, "other") {
		t.Error("one of the two is gone, and a third doesn't notify")
	}
	exec(t, b, "rollback")
	audit(t, c)
}

const nextTick = "select done::int from oq_tick() where duty = 'sleep_ms'"

// Between its ticks the leader asks whether anything has come due, and ticks if so. Whoever leaves his wake-up to the tick may
// still be committing when it comes: then it ticks on for a second.
func TestTheLeaderLooksWhetherAnythingIsDue(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	leader, sleeper, a, b := db.Conn(t), db.Conn(t), db.Conn(t), db.Conn(t)
	idle := func() bool {
		t.Helper()
		return get[int](t, leader, "select oq_idle()::int") > 0
	}
	if idle() {
		t.Error("a session that has not ticked is idle")
	}
	exec(t, a, "select oq_enqueue('q'), oq_pause('q')")
	rests := func() {
		t.Helper()
		until(t, leader, "nothing moves", "select done > 500 from oq_tick() where duty = 'sleep_ms'")
		if !idle() || !idle() {
			t.Fatal("nothing has come due, and it is not idle")
		}
	}
	// An enqueue needs no tick: one in the middle of its transaction would raise the marks over its jobs.
	rests()
	exec(t, a, "begin")
	exec(t, a, "select oq_enqueue('other')")
	if !idle() {
		t.Error("ticks in the middle of an enqueue")
	}
	exec(t, a, "commit")
	drain(t, db, "other")
	// A retry of less than a second comes due, which its own transaction did not.
	exec(t, a, "select oq_enqueue('other')")
	j := lease(t, a, "other", 1)[0]
	rests()
	exec(t, a, "select oq_nack($1, $2, retry_after => '20 ms')", j.ID, j.Token)
	passes(t, a, 25*time.Millisecond)
	if idle() {
		t.Error("what has come due goes unnoticed")
	}
	tick(t, leader, 1)
	drain(t, db, "other")
	// Two parents end at once, and the last leaves their child to the tick.
	parents := list[int64](t, a, `select oq_enqueue_bulk('other', '{"1","2"}')`)
	child := get[int64](t, a, "select oq_enqueue('child', options => jsonb_build_object('depends_on', $1::bigint[]))", parents)
	jobs := lease(t, a, "other", 2)
	rests()
	exec(t, b, "begin")
	ack(t, b, jobs[0])
	ack(t, a, jobs[1])
	exec(t, b, "commit")
	until(t, leader, "what an ack has left to the tick is due", "select oq_idle() = 0")
	tick(t, leader, 1)
	if state := get[string](t, a, "select state from oq_get($1)", child); state != "ready" {
		t.Errorf("the child is %s", state)
	}
	// Two that are on their way leave the locks to nobody else; what wakes here moves nothing.
	rests()
	exec(t, sleeper, "select oq_listen('q')")
	exec(t, b, "select pg_advisory_lock(hashtext('oq:notifier'), 0), pg_advisory_lock(hashtext('oq:notifier'), 1)")
	exec(t, a, led)
	exec(t, a, "begin")
	exec(t, a, "select oq_resume('q')")
	exec(t, a, "set constraints all immediate")
	for range 3 {
		if idle() {
			t.Fatal("a wake-up was left, and it is idle")
		}
		if n := get[int](t, leader, nextTick); n > 20 {
			t.Fatalf("the next tick in %d ms", n)
		}
	}
	exec(t, a, "commit")
	if woken(t, sleeper, b, "q") {
		t.Error("a third notifies as well")
	}
	tick(t, leader, 1)
	if !woken(t, sleeper, b, "q") {
		t.Error("the tick doesn't wake whom the third left to it")
	}
}

// Where nothing has moved for ten seconds the leader looks less often, and says so, until something does.
func TestTheLeaderOfAQuietDatabase(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	leader, a := db.Conn(t), db.Conn(t)
	exec(t, leader, "select oq_lead()")
	const state = "select oq_idle() || ' ' || pg_sequence_last_value('oq.led') % 2"
	for _, c := range []struct{ seconds, want string }{{"9", "50 0"}, {"11", "250 1"}} {
		until(t, leader, "nothing moves", "select done > 500 from oq_tick() where duty = 'sleep_ms'")
		exec(t, leader, "select set_config('oq.moved', (extract(epoch from clock_timestamp()) * 1000)::bigint - $1 || '', false)",
			c.seconds+"000")
		tick(t, leader, 1)
		if got := get[string](t, leader, state); got != c.want {
			t.Errorf("still for %s s: %s, want %s", c.seconds, got, c.want)
		}
	}
	exec(t, a, "select oq_enqueue('q')")
	if got := get[string](t, leader, state); got != "250 1" {
		t.Errorf("an enqueue: %s", got)
	}
	tick(t, leader, 2)
	if got := get[string](t, leader, state); got != "50 0" {
		t.Errorf("something has moved: %s", got)
	}
}

// A worker that falls asleep while a transaction goes on is woken by its commit, without a tick.
func TestWhoFallsAsleepBeforeTheCommitIsWoken(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_enqueue('limited'), oq_enqueue('limited')")
	exec(t, b, "select oq_limit('limited', null, max_running => 1)")
	running := lease(t, b, "limited", 1)[0]
	for _, c := range []struct{ queue, sql string }{
		{"q", "select oq_enqueue('q'), oq_enqueue('other'), oq_enqueue('q')"},
		{"other", "select oq_enqueue('q'), oq_enqueue('other'), oq_enqueue('q')"},
		{"q", `select oq_enqueue_bulk('q', '{"1"}')`},
		{"q", `select oq_enqueue_many('[{"queue_name": "q"}]')`},
		{"q", "select oq_enqueue('q', group_key => 'g')"},
		{"limited", fmt.Sprintf("select oq_ack(%d, %d)", running.ID, running.Token)},
	} {
		exec(t, b, "begin")
		passes(t, b, 2*time.Millisecond)
		exec(t, b, c.sql)
		exec(t, a, "select oq_listen($1)", c.queue)
		if woken(t, a, db.Conn(t), c.queue) {
			t.Errorf("%s: woken before the commit", c.sql)
		}
		exec(t, b, "commit")
		if !woken(t, a, b, c.queue) {
			t.Errorf("%s: not woken by the commit", c.sql)
		}
		exec(t, a, "select oq_unlisten($1)", c.queue)
		exec(t, b, "begin")
		passes(t, b, 2*time.Millisecond)
		exec(t, b, "select oq_enqueue($1)", c.queue)
		exec(t, b, "commit")
		exec(t, a, fmt.Sprintf(`listen "oq:%s"`, c.queue))
		if woken(t, a, b, c.queue) {
			t.Errorf("%s: nobody sleeps, and notified", c.queue)
		}
	}
}

// What an open transaction commits below a mark is found by the next tick. So that comes soon, in proportion to the
// transaction's age, though nothing moves.
func TestTheTickComesSoonForOpenTransactions(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "begin")
	exec(t, a, "select oq_enqueue('q')")
	until(t, b, "nothing moves", "select sum(done) = 0 from oq_tick() where duty <> 'sleep_ms'")
	for old, most := range map[string]int{"0": 100, "3 s": 300, "6 s": 700} {
		exec(t, b, "update oq.epoch_open set opened_at = clock_timestamp() - $1::text::interval", old)
		exec(t, b, "select setval('oq.unsaid', 0)")
		if n := get[int](t, b, nextTick); n > most || n < 20 || old == "6 s" && n < 400 {
			t.Errorf("a transaction is %s old, and the next tick comes in %d ms", old, n)
		}
	}
	exec(t, a, "commit")
	drain(t, db, "q")
	until(t, b, "the tick sleeps", "select done > 900 from oq_tick() where duty = 'sleep_ms'")
}

// A turn that leases as many as it acks wakes nobody: each would look in vain. One that leases fewer, or after which
// others become ready as well, does.
func TestTurnsWakeNobody(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	for range 20 {
		exec(t, b, "select oq_enqueue('limited'), oq_enqueue('groups', group_key => 'a'), oq_enqueue('groups', group_key => 'b')")
	}
	exec(t, b, "select oq_limit('limited', null, max_running => 2)")
	turn := func(queue string, n int, jobs []job) []job {
		t.Helper()
		ids, tokens := split(jobs)
		rows, err := b.Query(context.Background(), `select job_id, lease_token, priority, attempt
			from oq_next($1, max_jobs => $2, acked_job_ids => $3, acked_tokens => $4)`, queue, n, ids, tokens)
		if err != nil {
			t.Fatal(err)
		}
		next, err := pgx.CollectRows(rows, pgx.RowToStructByPos[job])
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	for _, queue := range []string{"limited", "groups"} {
		exec(t, a, "select oq_listen($1)", queue)
		jobs := turn(queue, 2, nil)
		for range 3 {
			if jobs = turn(queue, 2, jobs); len(jobs) != 2 {
				t.Fatalf("%s: leased %v, want two", queue, jobs)
			}
			one := turn(queue, 1, jobs[:1])
			if len(one) != 1 {
				t.Fatalf("%s: leased %v, want one", queue, one)
			}
			jobs = append(one, jobs[1])
		}
		if woken(t, a, b, queue) {
			t.Errorf("%s: turns have woken the others", queue)
		}
		if jobs = turn(queue, 1, jobs); len(jobs) != 1 || !woken(t, a, b, queue) {
			t.Errorf("%s: who acks two and leases %d has woken nobody", queue, len(jobs))
		}
		ack(t, b, jobs[0])
		if !woken(t, a, b, queue) {
			t.Errorf("%s: an ack has woken nobody", queue)
		}
		// A turn in one queue wakes those of the other.
		jobs = turn(queue, 1, nil)
		turn("elsewhere", 1, jobs)
		if !woken(t, a, b, queue) {
			t.Errorf("%s: a turn elsewhere has woken nobody", queue)
		}
		// What is enqueued in the same transaction is not part of the turn.
		jobs = turn(queue, 1, nil)
		woken(t, a, b, queue)
		exec(t, b, "begin")
		turn(queue, 1, jobs)
		exec(t, b, "select oq_enqueue($1)", queue)
		exec(t, b, "commit")
		if !woken(t, a, b, queue) {
			t.Errorf("%s: an enqueue after a turn has woken nobody", queue)
		}
	}
	parent := get[int64](t, b, "select oq_enqueue('family')")
	exec(t, b, `select oq_enqueue('family', options => jsonb_build_object('depends_on', array[$1::bigint])) from generate_series(1, 3)`,
		parent)
	exec(t, a, "select oq_listen('family')")
	jobs := turn("family", 1, nil)
	turn("family", 1, jobs)
	if !woken(t, a, b, "family") {
		t.Error("three children of one parent, and nobody is woken")
	}
}

// Nobody is woken for a queue of which no worker can lease: the ack, the resume that opens it wakes.
func TestAClosedGateWakesNobody(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_enqueue('limited'), oq_enqueue('paused'), oq_enqueue('throttled')")
	exec(t, b, "select oq_limit('limited', null, max_running => 1), oq_pause('paused'), oq_throttle('throttled', now() + interval '1 hour')")
	exec(t, a, "select oq_listen('limited'), oq_listen('paused'), oq_listen('throttled')")
	running := lease(t, b, "limited", 1)[0]
	for _, queue := range []string{"limited", "paused", "throttled"} {
		exec(t, b, led)
		exec(t, b, "select oq_enqueue($1)", queue)
		if woken(t, a, b, queue) {
			t.Errorf("%s: woken in vain", queue)
		}
		// It may be opened while this one commits, and then the tick wakes: not where none is to come.
		exec(t, b, unled)
		exec(t, b, "select oq_enqueue($1)", queue)
		if !woken(t, a, b, queue) {
			t.Errorf("%s: nobody leads, and nobody is woken", queue)
		}
	}
	exec(t, b, led)
	ack(t, b, running)
	if !woken(t, a, b, "limited") {
		t.Error("the ack that frees the slot wakes nobody")
	}
	exec(t, b, led)
	exec(t, b, "select oq_resume('paused')")
	if !woken(t, a, b, "paused") {
		t.Error("resume wakes nobody")
	}
}

// What the wake-ups of a transaction leave behind is taken away, unless somebody is about to make one.
func TestWakeupsAreTruncated(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	sleeper, a, c := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, sleeper, "select oq_listen('q')")
	exec(t, c, "alter table oq.wakeup disable trigger wakeup_notify")
	exec(t, c, "insert into oq.wakeup select 1, repeat('q', 57), false from generate_series(1, 120000)")
	exec(t, c, "alter table oq.wakeup enable always trigger wakeup_notify")
	size := func() int64 { return get[int64](t, c, "select pg_relation_size('oq.wakeup')") }
	full := size()
	exec(t, a, "begin")
	exec(t, a, "select oq_enqueue('q')")
	exec(t, c, "select oq_compact()")
	if size() != full {
		t.Error("truncated beside an open transaction")
	}
	exec(t, a, "commit")
	exec(t, c, "select setval('oq.compact_after', 1)")
	// In a transaction that has wake-ups of its own to make, as the tick may.
	exec(t, c, "begin")
	exec(t, c, "select oq_enqueue('q')")
	if n := get[int64](t, c, "select oq_compact()"); n != 1 || size() >= full {
		t.Errorf("compacted %d, %d bytes are left", n, size())
	}
	exec(t, c, "commit")
	if !woken(t, sleeper, c, "q") {
		t.Error("not woken")
	}
	audit(t, c)
}
