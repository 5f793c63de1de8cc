package concurrency

import (
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// aged makes a queue's mark and the last tick old, as if the daemon had been away for a while.
const (
	agedMarks = "update oq.mark set raised_at = raised_at - interval '1 minute' where lane >= 0"
	agedBeat  = "select setval('oq.beat', 1)"
	agedEpoch = "update oq.epoch_open set opened_at = opened_at - interval '1 minute'"
)

// A lease raises the mark and stays open; the epoch of a late commit is resolved by somebody who can't
// see that mark; then the lease commits. The late job must not be below a mark that nobody sweeps.
func TestMarkOfAnOpenLease(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w, l, d := db.Conn(t), db.Conn(t), db.Conn(t)
	first := get[int64](t, d, "select oq_enqueue('q')")
	tick(t, d, 1)
	exec(t, w, "begin")
	late := get[int64](t, w, "select oq_enqueue('q')")
	tick(t, d, 1)
	exec(t, d, agedMarks)
	exec(t, l, "begin")
	if got := get[int64](t, l, "select job_id from oq_lease('q')"); got != first {
		t.Fatalf("leased %d, want %d", got, first)
	}
	exec(t, w, "commit")
	tick(t, d, 2)
	exec(t, l, "commit")
	tick(t, d, 3)
	audit(t, d)
	if got := list[int64](t, d, "select job_id from oq_lease('q')"); len(got) != 1 || got[0] != late {
		t.Fatalf("leased %v, want the late job %d", got, late)
	}
}

// The same with a lease that advances because no daemon does, and with an advance by hand.
func TestMarkOfAnOpenAdvance(t *testing.T) {
	t.Parallel()
	for name, advance := range map[string]string{
		"lease": "select count(*) from oq_lease('empty')", "call": "select oq_advance()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			w, a, d := db.Conn(t), db.Conn(t), db.Conn(t)
			exec(t, d, "select oq_create_queue('empty')")
			exec(t, d, "select oq_enqueue('q')")
			tick(t, d, 1)
			exec(t, d, "select oq_lease('q')")
			exec(t, w, "begin")
			late := get[int64](t, w, "select oq_enqueue('q')")
			exec(t, d, agedMarks)
			exec(t, d, agedEpoch)
			exec(t, d, agedBeat)
			exec(t, a, "begin")
			exec(t, a, advance)
			exec(t, w, "commit")
			tick(t, d, 2)
			exec(t, a, "commit")
			tick(t, d, 3)
			audit(t, d)
			if got := list[int64](t, d, "select job_id from oq_lease('q')"); len(got) != 1 || got[0] != late {
				t.Fatalf("leased %v, want the late job %d", got, late)
			}
		})
	}
}

// Two advances in a transaction that rolls back: the second must not believe what the first deleted.
func TestAdvancedTwiceRolledBack(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w, a, d := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, d, "select oq_enqueue('q')")
	tick(t, d, 1)
	exec(t, d, "select oq_lease('q')")
	exec(t, w, "begin")
	late := get[int64](t, w, "select oq_enqueue('q')")
	overtake(t, d)
	if mark := low(t, d, "q"); mark <= late {
		t.Fatalf("the mark is at %d, not above %d", mark, late)
	}
	exec(t, w, "commit")
	exec(t, a, "begin")
	exec(t, a, "select oq_advance()")
	exec(t, a, "select oq_advance()")
	exec(t, a, "rollback")
	tick(t, d, 3)
	audit(t, d)
	if got := list[int64](t, d, "select job_id from oq_lease('q')"); len(got) != 1 || got[0] != late {
		t.Fatalf("leased %v, want the late job %d", got, late)
	}
}

// The marks wait for a young transaction, but not for one that stays open, nor for one that many jobs have gone past.
func TestMarksPassAnOldTransaction(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w, d := db.Conn(t), db.Conn(t)
	exec(t, d, "select oq_enqueue('q')")
	drain(t, db, "q")
	for name, sql := range map[string]string{
		"a while":    agedEpoch,
		"many ahead": "select setval('oq.position', nextval('oq.position') + 10000)",
	} {
		exec(t, w, "begin")
		late := get[int64](t, w, "select oq_enqueue('q')")
		tick(t, d, 1)
		exec(t, d, sql)
		exec(t, d, agedMarks)
		tick(t, d, 1)
		if mark := low(t, d, "q"); mark <= late {
			t.Errorf("%s: the mark stays at %d below %d", name, mark, late)
		}
		exec(t, w, "commit")
		tick(t, d, 1)
		expect(t, drain(t, db, "q"), late)
	}
	audit(t, d)
}

// A transaction enqueues, others raise the mark over what they can't see, and the same transaction leases:
// it finds its own jobs, in their order, and nobody else does.
func TestOwnJobsBelowTheMark(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w, d := db.Conn(t), db.Conn(t)
	exec(t, d, "select oq_enqueue('q')")
	tick(t, d, 1)
	exec(t, w, "begin")
	mine := list[int64](t, w, "select oq_enqueue_bulk('q', '{1,2}')")
	tick(t, d, 1)
	exec(t, d, "select oq_ack(job_id, lease_token) from oq_lease('q')")
	overtake(t, d)
	if low := get[int64](t, d, "select max(low) from oq.mark where lane > 0"); low <= mine[1] {
		t.Fatalf("the mark is at %d, not above %v", low, mine)
	}
	until(t, w, "the transaction is not of this instant", "select now() < clock_timestamp() - interval '6 ms'")
	if got := lease(t, w, "q", 3); len(got) != 2 || got[0].ID != mine[0] || got[1].ID != mine[1] {
		t.Fatalf("leased %v, want %v", got, mine)
	}
	if got := lease(t, w, "q", 1); len(got) != 0 {
		t.Fatalf("leased %v again", got)
	}
	exec(t, w, "rollback")
	tick(t, d, 2)
	if got := lease(t, d, "q", 1); len(got) != 0 {
		t.Fatalf("leased %v, which was rolled back", got)
	}
	audit(t, d)
}

// In a dump the registers, which are outside its snapshot, are younger than the rows: the epochs that were open when it
// was taken seem to be resolved, and what was committed late stands below the marks.
func TestLateCommitInADump(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w, d := db.Conn(t), db.Conn(t)
	exec(t, d, "select oq_enqueue('q')")
	drain(t, db, "q")
	exec(t, w, "begin")
	late := []int64{get[int64](t, w, "select oq_enqueue('q')"),
		get[int64](t, w, `select oq_enqueue('q', options => '{"delay": "10 ms"}')`)}
	flow(t, d, "q")
	until(t, d, "the time marks rise", `select count(*) > 0 and (select max(m.low) from oq.mark m where m.lane = -1)
		> (select (date_part('epoch', clock_timestamp()) * 1000000)::bigint - 200000) from oq_tick()`)
	exec(t, w, "commit")
	exec(t, d, "select setval('oq.epoch', last_value + 60) from oq.epoch")
	exec(t, d, "select setval('oq.epoch_low', last_value - 5) from oq.epoch")
	tick(t, db.Conn(t), 3)
	expect(t, drain(t, db, "q"), late...)
	audit(t, d)
}

// The clock goes back by less than what shows that it did. What is due then is below a mark that was raised before.
func TestClockThatGoesBackALittle(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	tick(t, c, 2)
	exec(t, c, `insert into oq.mark (lane, low)
		select l, (date_part('epoch', clock_timestamp() + interval '800 ms') * 1000000)::bigint from generate_series(-2, -1) l`)
	tick(t, c, 1)
	id := get[int64](t, c, `select oq_enqueue('q', options => '{"delay": "100 ms"}')`)
	mortal := get[int64](t, c, `select oq_enqueue('q', options => '{"ttl": "100 ms"}')`)
	until(t, c, "the job is ready", "select count(*) > 0 and (select state = 'ready' from oq_get($1)) from oq_tick()", id)
	until(t, c, "the other expires", "select count(*) > 0 and (select state = 'expired' from oq_get($1)) from oq_tick()", mortal)
	audit(t, c)
}

// A clock that goes back by less than a minute leaves a time of the next look for expired leases that may be right. The marks tell.
func TestClockThatGoesBackBesideALease(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	flow(t, c, "q")
	id := get[int64](t, c, "select oq_enqueue('q')")
	lease(t, c, "q", 1, 1)
	until(t, c, "the marks of time move",
		"select count(*) > 0 and (select count(*) = 2 from oq.mark where lane in (-1, -2) and low > 0) from oq_tick()")
	exec(t, c, "update oq.mark set low = low + 40000000 where lane in (-1, -2)")
	exec(t, c, "select setval('oq.reap_after', (extract(epoch from clock_timestamp() + interval '40 s') * 1000)::bigint)")
	passes(t, c, time.Second)
	tick(t, c, 2)
	if got := get[string](t, c, "select state from oq_get($1)", id); got != "ready" {
		t.Errorf("the job is %s", got)
	}
}

// The clock goes back while a worker, which advanced because no daemon did, stays open: the daemon that comes back
// does not wait for it, and takes the marks away when it is gone.
func TestClockThatGoesBackBesideAnOpenAdvance(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "rollback"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, d := db.Conn(t), db.Conn(t)
			exec(t, d, "select oq_enqueue('q')")
			tick(t, d, 2)
			exec(t, d, `insert into oq.mark (lane, low)
				select l, (date_part('epoch', clock_timestamp() + interval '1 hour') * 1000000)::bigint from generate_series(-2, -1) l`)
			exec(t, a, "begin")
			advanceByLease(t, d, a)
			exec(t, d, "set statement_timeout = '2s'")
			tick(t, d, 2)
			exec(t, a, end)
			tick(t, d, 2)
			id := get[int64](t, d, `select oq_enqueue('q', options => '{"delay": "50 ms"}')`)
			until(t, d, "the job is ready", "select count(*) > 0 and (select state = 'ready' from oq_get($1)) from oq_tick()", id)
			audit(t, d)
		})
	}
}

// What is due stays in the hands of an open transaction. The mark passes over it after a second, so that nobody walks
// what dies from there on, and what it gives back is found. Leases have no mark: what is locked is tried again.
func TestOpenTransactionAtTheFrontOfTime(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, hold, end, want string
		leased                bool
	}{
		{"ack, rolled back", "select oq_ack($1, $2)", "rollback", "ready", true},
		{"ack", "select oq_ack($1, $2)", "commit", "completed", true},
		{"heartbeat, rolled back", "select oq_heartbeat($1, $2, 1)", "rollback", "ready", true},
		{"heartbeat", "select oq_heartbeat($1, $2, 1)", "commit", "ready", true},
		{"heartbeat for long", "select oq_heartbeat($1, $2, 600)", "commit", "leased", true},
		{"update", `select oq_update($1, '{"payload": 1}'), $2::bigint`, "commit", "ready", false},
		{"update, rolled back", `select oq_update($1, '{"payload": 1}'), $2::bigint`, "rollback", "ready", false},
		{"cancel", "select oq_cancel($1), $2::bigint", "commit", "cancelled", false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b := db.Conn(t), db.Conn(t)
			j := job{}
			if tc.leased {
				exec(t, b, "select oq_enqueue('q')")
				j = lease(t, b, "q", 1, 1)[0]
			} else {
				j.ID = get[int64](t, b, `select oq_enqueue('q', options => '{"delay": "300 ms"}')`)
			}
			exec(t, a, "begin")
			exec(t, a, tc.hold, j.ID, j.Token)
			exec(t, b, "set lock_timeout = '1s'")
			if tc.leased {
				passes(t, b, 1010*time.Millisecond)
				tick(t, b, 3)
				exec(t, a, tc.end)
				passes(t, b, 1010*time.Millisecond)
			} else {
				until(t, b, "the mark passes", `select count(*) > 0 and (select max(low) > (date_part('epoch', now()) * 1000000)::bigint
					- 300000 from oq.mark where lane = -1) and exists (select from oq.passed where lane = -1) from oq_tick()`)
				audit(t, b)
				tick(t, b, 3)
				exec(t, a, tc.end)
			}
			tick(t, b, 2)
			if got := get[string](t, b, "select state from oq_get($1)", j.ID); got != tc.want {
				t.Errorf("job is %s, want %s", got, tc.want)
			}
			if n := get[int](t, b, "select count(*)::int from oq.passed"); n != 0 {
				t.Errorf("%d notes are left", n)
			}
			// Late commits are swept up while it lasts, and after.
			if n := get[int](t, b, "select count(*)::int from oq.epoch_open"); n > 5 {
				t.Errorf("%d epochs are not resolved", n)
			}
			audit(t, b)
		})
	}
}

// After a crash, and in a dump, the sequence of epochs is ahead of their rows. One row stands for all of them, but one that
// somebody holds has its own, or the others could be resolved over his head.
func TestEpochsWithoutRows(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, w := db.Conn(t), db.Conn(t)
	flow(t, c, "q")
	exec(t, c, "select setval('oq.epoch', nextval('oq.epoch') + 50000)")
	exec(t, w, "begin")
	late := get[int64](t, w, "select oq_enqueue('q')")
	exec(t, c, "select setval('oq.epoch', nextval('oq.epoch') + 50000)")
	tick(t, c, 1)
	if n := get[int](t, c, "select count(*)::int from oq.epoch_open"); n > 5 {
		t.Errorf("%d epochs are open after 100,000 that have no row", n)
	}
	flow(t, c, "q")
	tick(t, c, 5)
	exec(t, w, "commit")
	tick(t, c, 2)
	if got := list[int64](t, c, "select job_id from oq_lease('q')"); len(got) != 1 || got[0] != late {
		t.Errorf("leased %v, want the late job %d", got, late)
	}
	audit(t, c)
}

// Nobody ticked for two days, or the dump is as old: what is committed late then is found within some ticks that follow
// each other at once, though the epochs begin two days, and a million positions, ago.
func TestLateCommitAfterTwoDays(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, w := db.Conn(t), db.Conn(t)
	flow(t, c, "q")
	id := get[int64](t, c, "select oq_enqueue('q')")
	j := lease(t, c, "q", 1)[0]
	exec(t, c, "update oq.mark set low = low - 172800000000 where lane between -2 and -1 and low > 0")
	exec(t, c, `update oq.epoch_open set lo_scheduled = greatest(lo_scheduled - 172800000000, 1),
		lo_ttl = greatest(lo_ttl - 172800000000, 1)`)
	exec(t, c, "select setval('oq.position', nextval('oq.position') + 10000000)")
	exec(t, w, "begin")
	exec(t, w, "select oq_nack($1, $2, 'no', retry_after => '100 ms')", j.ID, j.Token)
	passes(t, c, 200*time.Millisecond)
	tick(t, c, 2)
	exec(t, w, "commit")
	for n := 1; ; n++ {
		slept := get[int](t, c, "select done::int from oq_tick() where duty = 'sleep_ms'")
		if get[string](t, c, "select state from oq_get($1)", id) == "ready" {
			t.Logf("ready after %d ticks", n)
			break
		}
		if slept > 100 || n > 20 {
			t.Fatalf("after %d ticks the job is not ready, and the next comes in %d ms", n, slept)
		}
	}
	until(t, c, "the epochs are resolved", "select oq_advance() >= 0 and (select count(*) from oq.epoch_open) < 4")
	audit(t, c)
}

// A tick while the clock was an hour ahead leaves times that nothing waits for when it is right again.
func TestClockThatWasAhead(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, leader, w := db.Conn(t), db.Conn(t), db.Conn(t)
	tick(t, c, 1)
	const ahead = "(extract(epoch from clock_timestamp() + interval '1 hour') * 1000)::bigint"
	if !get[bool](t, leader, "select oq_lead()") {
		t.Fatal("the first session does not lead")
	}
	exec(t, c, "select setval('oq.led', "+ahead+"), setval('oq.beat', "+ahead+"), setval('oq.compact_after', "+ahead+")")
	if !get[bool](t, c, "select oq_lead()") {
		t.Error("nobody leads in place of a leader that ticks no more")
	}
	exec(t, leader, "select from oq_tick()")
	if get[bool](t, c, "select oq_lead()") {
		t.Error("the leader's tick is not seen")
	}

	exec(t, c, "select oq_create_queue('r'), oq_create_queue('none')")
	exec(t, c, "select oq_limit('r', rate => 2, per => '1 minute')")
	exec(t, c, "select oq_enqueue('r') from generate_series(1, 3)")
	lease(t, c, "r", 2)
	exec(t, c, "update oq.limit_slot set taken_at = taken_at + interval '1 hour'")
	if n := len(lease(t, c, "r", 2)); n != 1 {
		t.Errorf("%d jobs leased of a queue with a rate, want 1", n)
	}

	// No daemon: a lease expires what is due and raises the marks.
	expired := get[int64](t, c, "select oq_enqueue('e', options => '{\"ttl\": \"1 ms\"}')")
	exec(t, c, "select setval('oq.beat', "+ahead+")")
	exec(t, c, "update oq.epoch_open set opened_at = opened_at + interval '1 hour'")
	epoch := get[int64](t, c, "select last_value from oq.epoch")
	passes(t, c, 2*time.Millisecond)
	lease(t, c, "none", 1)
	if got := get[string](t, c, "select state from oq_get($1)", expired); got != "expired" {
		t.Errorf("the job is %s", got)
	}
	if get[int64](t, c, "select last_value from oq.epoch") == epoch {
		t.Error("the lease did not advance")
	}

	exec(t, w, "begin isolation level repeatable read")
	exec(t, w, "select 1 from pg_class limit 1")
	exec(t, c, "insert into oq.throttled (queue_id, until) select 1, now() from generate_series(1, 30000)")
	exec(t, c, "delete from oq.throttled")
	until(t, c, "the table is compacted", "select oq_compact() = 1")
	audit(t, c)
}
