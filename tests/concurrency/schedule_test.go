package concurrency

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// due makes the schedules whose name is like that due now, wherever the mark stands.
func due(t testing.TB, q querier, name string) {
	t.Helper()
	exec(t, q, "update oq.schedule set due_at = clock_timestamp() where schedule_name like $1", name)
}

const runSchedules = "select oq_run_schedules()"

// runs of each schedule by instant, of which none may be there twice.
func once(t testing.TB, q querier, want int) {
	t.Helper()
	for _, twice := range list[string](t, q, `
		select headers ->> 'schedule' || ' ' || (headers ->> 'scheduled_at') from oq_jobs
		 group by headers ->> 'schedule', headers ->> 'scheduled_at' having count(*) > 1`) {
		t.Errorf("ran twice: %s", twice)
	}
	if n := get[int](t, q, "select count(*)::int from oq_jobs"); n != want {
		t.Errorf("%d runs, want %d", n, want)
	}
}

// Eight sessions run what is due, again and again: each once.
func TestSchedulesAtOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "select oq_schedule('s' || i, '@yearly', 'q' || i % 7) from generate_series(1, 200) i")
	due(t, c, "%")
	made := make([]int64, 8)
	together(t, db, len(made), func(i int, c *pgx.Conn) error {
		deadline := time.Now().Add(patience)
		for call := 0; ; call++ {
			sql := runSchedules
			if i%2 == 0 {
				sql = "select done from oq_tick() where duty = 'schedules'"
			}
			n, err := try[int64](c, sql)
			if err != nil {
				return err
			}
			made[i] += n[0]
			// One that waited in vain for a lock is left for the next call.
			left, err := try[bool](c, "select exists (select from oq.schedule where due_at <= clock_timestamp())")
			if err != nil || call >= 12 && !left[0] || time.Now().After(deadline) {
				return err
			}
		}
	})
	var sum int64
	for _, n := range made {
		sum += n
	}
	if sum != 200 {
		t.Errorf("%v: %d runs, want 200", made, sum)
	}
	once(t, c, 200)
	audit(t, c)
}

// Who comes second neither waits nor runs it again; where the first rolls back the second can.
func TestSecondTickWhileTheFirstIsOpen(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_schedule('s', '@yearly', 'q')")
	due(t, a, "s")
	for _, end := range []string{"rollback", "commit"} {
		exec(t, a, "begin")
		if n := get[int64](t, a, runSchedules); n != 1 {
			t.Fatalf("the first makes %d", n)
		}
		exec(t, b, "set lock_timeout = '10ms'")
		if n := get[int64](t, b, runSchedules); n != 0 {
			t.Errorf("the second makes %d while the first is open", n)
		}
		exec(t, a, end)
	}
	if n := get[int64](t, b, runSchedules); n != 0 {
		t.Errorf("the second makes %d after the first", n)
	}
	once(t, b, 1)
	audit(t, b)
}

// patient lets a function wait for a lock as long as the test does: where it is to wait, and not to give up.
func patient(t testing.TB, q querier, function string) {
	t.Helper()
	exec(t, q, fmt.Sprintf("alter function %s set lock_timeout = '%s'", function, patience))
}

// A second tick whose snapshot is older than the first one's commit must look at the row again.
func TestTickWithAnOlderSnapshot(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
	patient(t, c, "oq_run_schedules")
	exec(t, c, "select oq_schedule('s' || i, '@yearly', 'q') from generate_series(1, 40) i")
	due(t, c, "%")
	// B runs them one after the other and has to wait in the middle of it, for the first use of a lane's mark.
	exec(t, a, "begin; lock table oq.job in access exclusive mode")
	wait := background(t, func() error { _, err := try[int64](b, runSchedules); return err })
	blocked(t, db, pid(t, b))
	waitToo := background(t, func() error { _, err := try[int64](c, runSchedules); return err })
	blocked(t, db, pid(t, c))
	exec(t, a, "commit")
	wait()
	waitToo()
	exec(t, c, runSchedules)
	once(t, c, 40)
}

// A change of a schedule while it runs, and a run while it is being changed: neither is lost nor doubled.
func TestChangeAgainstRun(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	patient(t, a, "oq_schedule")
	patient(t, a, "oq_unschedule")
	exec(t, a, "select oq_schedule('s', '@yearly', 'q')")
	due(t, a, "s")
	exec(t, a, "begin")
	exec(t, a, runSchedules)
	wait := background(t, func() error {
		_, err := try[any](b, "select oq_schedule('s', '@monthly', 'q2')")
		return err
	})
	blocked(t, db, pid(t, b))
	exec(t, a, "commit")
	wait()
	const state = `select queue_name || ' ' || runs || ' ' || (next_run_at > now()) from oq_schedules`
	if got := get[string](t, a, state); got != "q2 1 true" {
		t.Errorf("changed while it ran: %s", got)
	}
	once(t, a, 1)

	due(t, a, "s")
	exec(t, b, "begin")
	exec(t, b, "select oq_schedule('s', '@yearly', 'q3')")
	if n := get[int64](t, a, runSchedules); n != 0 {
		t.Errorf("%d runs while it is being changed", n)
	}
	exec(t, b, "commit")
	if n := get[int64](t, a, runSchedules); n != 1 {
		t.Errorf("%d runs after the change, want the one that was due", n)
	}
	if got := get[string](t, a, state); got != "q3 2 true" {
		t.Errorf("run while it was changed: %s", got)
	}
	// An end while it runs: the run stays.
	due(t, a, "s")
	exec(t, a, "begin")
	exec(t, a, runSchedules)
	wait = background(t, func() error { _, err := try[bool](b, "select oq_unschedule('s')"); return err })
	blocked(t, db, pid(t, b))
	exec(t, a, "commit")
	wait()
	if n := get[int](t, a, "select count(*)::int from oq_jobs"); n != 3 {
		t.Errorf("%d jobs, want 3", n)
	}
	audit(t, a)
}

// Sixteen sessions declare the same schedules in different orders, as a deployment does.
func TestOneScheduleFromManySessions(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	together(t, db, 16, func(i int, c *pgx.Conn) error {
		for k := range 5 {
			if _, err := try[any](c, "select oq_schedule($1, '@yearly', 'q')", fmt.Sprintf("s%d", (i+k)%5)); err != nil {
				return err
			}
		}
		return nil
	})
	c := db.Conn(t)
	if got := get[int](t, c, "select count(*)::int from oq_schedules"); got != 5 {
		t.Errorf("%d schedules, want 5", got)
	}
	audit(t, c)
}

// A schedule that is committed after its first instants is seen: the mark waits for it, and nobody else does.
func TestLateCommitOfASchedule(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_schedule('other', '* * * * * *', 'q')")
	exec(t, a, "begin")
	first := get[any](t, a, "select oq_schedule('late', '* * * * * *', 'late')")
	// Time passes the first instant, and other schedules run meanwhile.
	for range 2 {
		until(t, b, "the next second", `select next_run_at <= clock_timestamp() from oq_schedules where schedule_name = 'other'`)
		if n := get[int64](t, b, runSchedules); n != 1 {
			t.Fatalf("%d runs, want the other schedule's", n)
		}
	}
	until(t, b, "its instant passes", "select clock_timestamp() > $1::timestamptz + interval '1 s'", first)
	exec(t, b, runSchedules)
	exec(t, a, "commit")
	audit(t, b)
	exec(t, b, runSchedules)
	if n := get[int](t, b, "select count(*)::int from oq_jobs where queue_name = 'late'"); n != 1 {
		t.Errorf("the late schedule ran %d times", n)
	}
	// And now the mark moves.
	until(t, b, "the mark follows", `select oq_run_schedules() >= 0 and (
		select max(low) from oq.mark where lane = -10) > extract(epoch from $1::timestamptz) * 1000000`, first)
}

// What may go away by itself leaves the instant due, and the others run.
func TestLockedOutRunIsTriedAgain(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_schedule('s', '@yearly', 'q')")
	due(t, a, "s")
	instant := get[any](t, a, "select next_run_at from oq_schedules")
	exec(t, a, "begin; lock table oq.ready in access exclusive mode")
	for range 2 {
		if n := get[int64](t, b, runSchedules); n != 0 {
			t.Errorf("%d runs", n)
		}
	}
	exec(t, a, "rollback")
	const noted = "select next_run_at = $1 and last_error like 'tried again: %(55P03)' from oq_schedules"
	if !get[bool](t, a, noted, instant) {
		t.Error("the instant was left out")
	}
	if n := get[int64](t, b, runSchedules); n != 1 {
		t.Errorf("%d runs, want one", n)
	}
	once(t, b, 1)
	if !get[bool](t, a, "select last_error is null from oq_schedules") {
		t.Error("the error stays")
	}
	// Not for ever: after a minute it goes on at its next instant.
	due(t, a, "s")
	exec(t, a, "update oq.schedule set last_error = 'tried again: x', last_error_at = now() - interval '61 s'")
	exec(t, a, "begin; lock table oq.ready in access exclusive mode")
	exec(t, b, runSchedules)
	exec(t, a, "rollback")
	if !get[bool](t, a, "select next_run_at > now() and last_error like '%(55P03)' and last_error not like 'tried%' from oq_schedules") {
		t.Error("tried for ever")
	}
	once(t, b, 1)
}

// The drop of a queue does not see a schedule that is committed later: it says so, and makes no queue.
func TestScheduleIntoADroppedQueue(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_create_queue('q')")
	exec(t, a, "begin")
	exec(t, a, "select oq_schedule('s', '@yearly', 'q')")
	exec(t, b, "select oq_drop_queue('q', force => true)")
	exec(t, a, "commit")
	due(t, a, "s")
	exec(t, a, runSchedules)
	if got := get[string](t, a, "select last_error from oq_schedules"); !strings.Contains(got, "OQ003") {
		t.Errorf("error %q", got)
	}
	if n := get[int](t, a, "select count(*)::int from oq_queues"); n != 0 {
		t.Errorf("%d queues", n)
	}
}

// Thousands of runs beside a held snapshot: the look for what is due does not walk what they leave behind.
func TestDueSchedulesBesideAHeldSnapshot(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, c := db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_schedule('one', 'every 3000 days', 'q')")
	exec(t, a, "begin isolation level repeatable read")
	exec(t, a, "select count(*) from oq.schedule")
	for round := range 60 {
		// What a run leaves behind is in the past: so each of these is new.
		exec(t, c, `insert into oq.schedule (schedule_name, owner_id, owner_name, due_at, queue_name, timezone, cron, fields,
				payload)
			select s.schedule_name || ' ' || $1::int || ' ' || i, s.owner_id, s.owner_name, clock_timestamp(), s.queue_name,
				s.timezone, s.cron, s.fields, s.payload
			  from oq.schedule s, generate_series(1, 50) i where s.schedule_name = 'one'`, round)
		if n := get[int64](t, c, runSchedules); n != 50 {
			t.Fatalf("%d runs", n)
		}
	}
	// Raised at most once a second.
	passes(t, c, 1100e6)
	due(t, c, "one")
	exec(t, c, runSchedules)
	if dead := get[int](t, c, `select count(*)::int from pg_class where relname = 'schedule' and
		pg_relation_size(oid) > 50 * 8192`); dead != 1 {
		t.Error("nothing is left behind: this is no test of it")
	}
	exec(t, c, "set enable_seqscan = off; set enable_bitmapscan = off")
	raw := get[[]byte](t, c, `explain (analyze, buffers, format json)
		select due_at from oq.schedule where due_at >= oq.time_low(-10) order by due_at limit 1`)
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal(raw, &plans); err != nil {
		t.Fatal(err)
	}
	n := plans[0].Plan.Hit + plans[0].Plan.Read
	t.Logf("%d buffers after 3000 runs", n)
	if n > 30 {
		t.Errorf("%d buffers", n)
	}
}
