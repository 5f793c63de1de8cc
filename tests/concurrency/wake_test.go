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
	exec(t, b, "select oq_pause('q'), oq_enqueue('q')")
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

// Commits that notify wait for each other. While two are on their way a third leaves its wake-up to the tick; one whose
// transaction stays open keeps nobody from his, and where nobody ticks each notifies.
func TestOfManyCommitsTwoNotify(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	sleeper, a, b, c := db.Conn(t), db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, sleeper, "select oq_listen('q'), oq_listen('other')")
	tick(t, c, 1)
	for _, s := range []*pgx.Conn{a, b} {
		exec(t, s, "begin")
		exec(t, s, "select oq_enqueue('q'), oq_enqueue('q')")
	}
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
	exec(t, c, "select oq_enqueue('other')")
	if woken(t, sleeper, c, "other") {
		t.Error("a third notifies as well")
	}
	tick(t, c, 1)
	if !woken(t, sleeper, c, "other") {
		t.Error("the tick doesn't wake whom the third left to it")
	}
	alone(t, c)
	exec(t, c, "select oq_enqueue('other')")
	if !woken(t, sleeper, c, "other") {
		t.Error("nobody ticks, and not woken")
	}
	tick(t, c, 1)
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

// What the wake-ups of a transaction leave behind is taken away, unless somebody is about to make one.
func TestWakeupsAreTruncated(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	sleeper, a, c := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, sleeper, "select oq_listen('q')")
	exec(t, c, "alter table oq.wakeup disable trigger wakeup_notify")
	exec(t, c, "insert into oq.wakeup select repeat('q', 57) from generate_series(1, 120000)")
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
