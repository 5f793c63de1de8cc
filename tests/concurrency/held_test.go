package concurrency

import (
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// What one transaction keeps for long may not stand before what nobody keeps: each duty looks at a bounded number.

// More jobs with a time to live than a call looks at are in a lease that has not committed.
func TestHeldTimersKeepNoneFromExpiring(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, holder := db.Conn(t), db.Conn(t)
	exec(t, c, "select count(oq_enqueue('held', options => '{\"ttl\": \"200 ms\"}')) from generate_series(1, 30)")
	exec(t, holder, "begin")
	if n := len(lease(t, holder, "held", 30)); n != 30 {
		t.Fatalf("leased %d, want 30", n)
	}
	free := get[int64](t, c, "select oq_enqueue('free', options => '{\"ttl\": \"300 ms\"}')")
	until(t, c, "the other queue's job expires", "select oq_expire(10) >= 0 and (select state from oq_get($1)) = 'expired'", free)
	audit(t, c)
	exec(t, holder, "rollback")
	until(t, c, "the others expire",
		"select oq_expire(10) >= 0 and not exists (select from oq_jobs where state <> 'expired')")
	if n := get[int](t, c, "select count(*)::int from oq.ttl"); n != 0 {
		t.Errorf("%d timers are left", n)
	}
	audit(t, c)
}

// The unique keys of schedules that come first are somebody's.
func TestHeldKeysKeepNoOtherScheduleWaiting(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, holder := db.Conn(t), db.Conn(t)
	exec(t, c, `select oq_schedule('s' || i, '@yearly', 'q', options => jsonb_build_object('unique_key', i::text))
		from generate_series(1, 12) i`)
	exec(t, c, "select oq_schedule('z', '@yearly', 'z')")
	exec(t, holder, "begin")
	exec(t, holder, "select oq_enqueue('q', unique_key => i::text) from generate_series(1, 12) i")
	due(t, c, "s%")
	due(t, c, "z")
	for range 4 {
		exec(t, c, runSchedules)
	}
	if n := get[int](t, c, "select count(*)::int from oq_jobs where queue_name = 'z'"); n != 1 {
		t.Errorf("%d runs of the schedule that waits for nobody, want 1", n)
	}
	exec(t, holder, "rollback")
	until(t, c, "the others run", "select oq_run_schedules() >= 0 and (select count(*) from oq_jobs) = 13")
	once(t, c, 13)
	audit(t, c)
}

// Somebody runs schedules in a transaction that stays open: more than a call takes are his.
func TestOpenRunOfSchedulesKeepsNoOther(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, holder := db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_schedule('s' || i, '@yearly', 'q') from generate_series(1, 60) i")
	exec(t, c, "select oq_schedule('z', '@yearly', 'z')")
	due(t, c, "s%")
	due(t, c, "z")
	exec(t, holder, "begin")
	if n := get[int64](t, holder, runSchedules); n != 50 {
		t.Fatalf("%d runs, want 50", n)
	}
	if n := get[int64](t, c, runSchedules); n != 11 {
		t.Errorf("%d runs beside an open call, want 11", n)
	}
	exec(t, holder, "rollback")
	until(t, c, "the others run", "select oq_run_schedules() >= 0 and (select count(*) from oq_jobs) = 61")
	once(t, c, 61)
}

// A late commit that somebody holds again keeps no epoch from being resolved, and so no other late commit waiting.
func TestHeldLateCommitKeepsNoEpochOpen(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]string{
		"due":   "select oq_enqueue('q', run_at => clock_timestamp() + interval '50 ms')",
		"ready": "select oq_enqueue('q')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c, w, other, holder := db.Conn(t), db.Conn(t), db.Conn(t), db.Conn(t)
			flow(t, c, "q")
			// A member of many epochs.
			exec(t, w, "begin")
			for range 25 {
				exec(t, w, "select oq_enqueue('bulk')")
				tick(t, c, 1)
			}
			first := get[int64](t, w, late)
			exec(t, other, "begin")
			second := get[int64](t, other, late)
			for range 4 {
				flow(t, c, "q")
				passes(t, c, 50*time.Millisecond)
				age(t, c)
				tick(t, c, 1)
			}
			exec(t, holder, "begin")
			exec(t, w, "commit")
			exec(t, holder, "select oq_update($1, '{\"max_retries\": 1}')", first)
			tick(t, c, 30)
			exec(t, other, "commit")
			until(t, c, "the other late commit is resolved", `select (select count(*) from oq_tick()) > 0
				and exists (select from oq_lease('q', max_jobs => 10) where job_id = $1)`, second)
			if n := get[int](t, c, "select count(*)::int from oq.epoch_open"); n > 3 {
				t.Errorf("%d epochs are open", n)
			}
			exec(t, holder, "rollback")
			until(t, c, "the held one comes back", `select (select count(*) from oq_tick()) > 0
				and exists (select from oq_lease('q', max_jobs => 10) where job_id = $1)`, first)
			exec(t, c, "select oq_purge('bulk', 'ready')")
			audit(t, c)
		})
	}
}
