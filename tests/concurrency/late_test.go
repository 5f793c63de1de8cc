package concurrency

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// flow lets other jobs go through the queue until its marks stand above everything drawn so far.
func flow(t testing.TB, c *pgx.Conn, queue string) {
	t.Helper()
	drawn := get[int64](t, c, "select last_value from oq.position")
	for range 2 {
		exec(t, c, "select oq_enqueue_bulk($1, array_fill('{}'::jsonb, array[150]))", queue)
		ids, tokens := split(lease(t, c, queue, 150))
		exec(t, c, "select oq_ack_many($1, $2)", ids, tokens)
		age(t, c)
		tick(t, c, 1)
	}
	until(t, c, "the marks rise", `select oq_advance() >= 0 and bool_and(low > $1)
		from (select max(low) as low from oq.mark where lane >= 0 group by lane) k`, drawn)
}

// Positions are drawn in one order and committed in another. Whatever puts jobs into ready may stay
// open while others pass: its jobs come with the first tick after its commit, each once.
func TestLateCommitsBelowTheMark(t *testing.T) {
	t.Parallel()
	released := func(sql string) func(testing.TB, *pgx.Conn) []int64 {
		return func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			id := get[int64](t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, c, "begin")
			exec(t, c, sql, j.ID, j.Token)
			return []int64{id}
		}
	}
	cases := []struct {
		name string
		open func(t testing.TB, c *pgx.Conn) []int64
	}{
		{"enqueue", func(t testing.TB, c *pgx.Conn) []int64 {
			return []int64{get[int64](t, c, "select oq_enqueue('q')"), get[int64](t, c, "select oq_enqueue('q')")}
		}},
		{"enqueue with options", func(t testing.TB, c *pgx.Conn) []int64 {
			return []int64{get[int64](t, c, `select oq_enqueue('q', priority => 7, options => '{"ttl": "1 h"}')`)}
		}},
		{"enqueue_bulk", func(t testing.TB, c *pgx.Conn) []int64 {
			return list[int64](t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[20]), 7)")
		}},
		{"enqueue_many", func(t testing.TB, c *pgx.Conn) []int64 {
			return list[int64](t, c, `select job_id from oq_enqueue_many(
				'[{"queue_name": "q"}, {"queue_name": "q", "priority": 7}]')`)
		}},
		{"enqueue at repeatable read", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			exec(t, c, "begin isolation level repeatable read")
			return []int64{get[int64](t, c, "select oq_enqueue('q')")}
		}},
		{"enqueue at serializable", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			exec(t, c, "begin isolation level serializable")
			return []int64{get[int64](t, c, "select oq_enqueue('q', priority => 7)")}
		}},
		{"release", released("select oq_release($1, $2)")},
		{"nack", released("select oq_nack($1, $2, retry_after => '0')")},
		{"redrive", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			id := get[int64](t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, c, "select oq_nack($1, $2, retry => false)", j.ID, j.Token)
			exec(t, c, "begin")
			if n := len(list[int64](t, c, "select oq_redrive('q')")); n != 1 {
				t.Fatalf("%d jobs redriven", n)
			}
			return []int64{id}
		}},
		{"promote", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			id := get[int64](t, c, `select oq_enqueue('q', options => '{"delay": "10 ms"}')`)
			passes(t, c, 20*time.Millisecond)
			exec(t, c, "begin")
			if n := get[int64](t, c, "select oq_promote()"); n != 1 {
				t.Fatalf("%d jobs promoted", n)
			}
			return []int64{id}
		}},
		{"reap", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			id := get[int64](t, c, "select oq_enqueue('q')")
			lease(t, c, "q", 1, 1)
			passes(t, c, 1010*time.Millisecond)
			exec(t, c, "begin")
			if n := get[int64](t, c, "select oq_reap()"); n != 1 {
				t.Fatalf("%d jobs reaped", n)
			}
			return []int64{id}
		}},
		{"update", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "rollback")
			id := get[int64](t, c, `select oq_enqueue('q', options => '{"delay": "1 hour"}')`)
			exec(t, c, "begin")
			exec(t, c, `select oq_update($1, '{"run_at": null, "priority": 7}')`, id)
			return []int64{id}
		}},
		{"lease that advances in the same transaction", func(t testing.TB, c *pgx.Conn) []int64 {
			id := get[int64](t, c, "select oq_enqueue('q')")
			advanceByLease(t, db(t, c), c)
			exec(t, c, "savepoint s")
			return []int64{id}
		}},
		{"lease that advances in the same transaction, then more", func(t testing.TB, c *pgx.Conn) []int64 {
			id := get[int64](t, c, "select oq_enqueue('q')")
			advanceByLease(t, db(t, c), c)
			return []int64{id, get[int64](t, c, "select oq_enqueue('q')")}
		}},
		{"old transaction", func(t testing.TB, c *pgx.Conn) []int64 {
			passes(t, c, 5100*time.Millisecond)
			id := get[int64](t, c, "select oq_enqueue('q')")
			tick(t, db(t, c), 3)
			return []int64{id, get[int64](t, c, "select oq_enqueue('q', priority => 7)")}
		}},
		{"old transaction that says it has entered", func(t testing.TB, c *pgx.Conn) []int64 {
			exec(t, c, "set oq.entered = '1'")
			passes(t, c, 5100*time.Millisecond)
			return []int64{get[int64](t, c, "select oq_enqueue('q')")}
		}},
		{"old transaction after a savepoint", func(t testing.TB, c *pgx.Conn) []int64 {
			passes(t, c, 5100*time.Millisecond)
			exec(t, c, "savepoint s")
			exec(t, c, "select oq_enqueue('q')")
			exec(t, c, "rollback to s")
			return []int64{get[int64](t, c, "select oq_enqueue('q')")}
		}},
	}
	besideOthers(t, func(t *testing.T, beside func(*testdb.DB, func())) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				db := testdb.New(t)
				a, b := db.Conn(t), db.Conn(t)
				exec(t, b, "select oq_enqueue('q', priority => 7), oq_enqueue('q')")
				drain(t, db, "q")
				exec(t, a, "begin")
				var want []int64
				beside(db, func() { want = tc.open(t, a) })
				exec(t, b, "set lock_timeout = '2s'")
				flow(t, b, "q")
				exec(t, a, "commit")
				tick(t, b, 1)
				got := map[int64]job{}
				for _, j := range lease(t, b, "q", 100) {
					got[j.ID] = j
					ack(t, b, j)
				}
				expect(t, got, want...)
				expect(t, drain(t, db, "q"))
				audit(t, b)
			})
		}
	})
}

// besideOthers runs a test by itself, and then with others that are members of the same epochs: one that stays open to the
// end, one that has left before.
func besideOthers(t *testing.T, run func(t *testing.T, beside func(*testdb.DB, func()))) {
	run(t, func(_ *testdb.DB, open func()) { open() })
	t.Run("beside one that stays open", func(t *testing.T) {
		run(t, func(db *testdb.DB, open func()) {
			stays, goes := db.Conn(t), db.Conn(t)
			exec(t, stays, "begin")
			exec(t, goes, "begin")
			enter := func() {
				exec(t, stays, "select oq.enter()")
				exec(t, goes, "select oq.enter()")
			}
			enter()
			open()
			enter()
			exec(t, goes, "commit")
		})
	})
}

// db opens one more session beside c.
func db(t testing.TB, c *pgx.Conn) *pgx.Conn {
	t.Helper()
	other, err := pgx.ConnectConfig(t.Context(), c.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close(t.Context()) })
	return other
}

// The same for the lanes of time: what is due goes by while its transaction is open.
func TestLateCommitsBelowTheTimeMarks(t *testing.T) {
	t.Parallel()
	const scheduled, timers, leased = -1, -2, 0 // leases have no mark: all are looked at
	// taken is a lease of a job with a time to live that passes soon: before the lease where the machine stands still.
	taken := func(t testing.TB, c *pgx.Conn, ttl string, seconds ...int) job {
		t.Helper()
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			exec(t, c, "select oq_enqueue('q', options => jsonb_build_object('ttl', $1::text))", ttl)
			if jobs := lease(t, c, "q", 1, seconds...); len(jobs) == 1 {
				return jobs[0]
			}
		}
		t.Fatal("no job lives long enough to be leased")
		return job{}
	}
	cases := []struct {
		name string
		lane int
		open func(t testing.TB, c *pgx.Conn) int64
		// The state that the job has after the first tick that follows the commit.
		want string
	}{
		{"enqueue", scheduled, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "begin")
			return get[int64](t, c, `select oq_enqueue('q', run_at => clock_timestamp() + interval '1500 ms')`)
		}, "ready"},
		{"enqueue_bulk", scheduled, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "begin isolation level repeatable read")
			return get[int64](t, c, `select oq_enqueue_bulk('q', '{"{}"}', run_at => clock_timestamp() + interval '1500 ms')`)
		}, "ready"},
		{"enqueue_many", scheduled, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "begin")
			return get[int64](t, c, `select job_id from oq_enqueue_many('[{"queue_name": "q", "delay": "50 ms"}]')`)
		}, "ready"},
		{"nack", scheduled, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, c, "begin")
			exec(t, c, "select oq_nack($1, $2, retry_after => '50 ms')", j.ID, j.Token)
			return j.ID
		}, "ready"},
		{"release", scheduled, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, c, "begin")
			exec(t, c, "select oq_release($1, $2, '50 ms')", j.ID, j.Token)
			return j.ID
		}, "ready"},
		{"update", scheduled, func(t testing.TB, c *pgx.Conn) int64 {
			id := get[int64](t, c, "select oq_enqueue('q')")
			exec(t, c, "begin")
			exec(t, c, `select oq_update($1, jsonb_build_object('run_at', clock_timestamp() + interval '1500 ms'))`, id)
			return id
		}, "ready"},
		{"lease", leased, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			exec(t, c, "begin")
			return lease(t, c, "q", 1, 1)[0].ID
		}, "ready"},
		{"lease of many", leased, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			exec(t, c, "begin")
			return lease(t, c, "q", 10, 1)[0].ID
		}, "ready"},
		{"next", leased, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			exec(t, c, "begin isolation level repeatable read")
			return get[int64](t, c, "select job_id from oq_next('q', null, 1)")
		}, "ready"},
		{"heartbeat", leased, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, c, "begin")
			exec(t, c, "select oq_heartbeat($1, $2, 1)", j.ID, j.Token)
			return j.ID
		}, "ready"},
		{"heartbeat_many", leased, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "select oq_enqueue('q')")
			j := lease(t, c, "q", 1)[0]
			exec(t, c, "begin")
			exec(t, c, "select oq_heartbeat_many(array[$1::bigint], array[$2::bigint], 1)", j.ID, j.Token)
			return j.ID
		}, "ready"},
		{"ttl", timers, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "begin")
			return get[int64](t, c, `select oq_enqueue('q', options => '{"ttl": "50 ms"}')`)
		}, "expired"},
		{"ttl of many", timers, func(t testing.TB, c *pgx.Conn) int64 {
			exec(t, c, "begin")
			return get[int64](t, c, `select job_id from oq_enqueue_many('[{"queue_name": "q", "ttl": "50 ms"}]')`)
		}, "expired"},
		{"ttl of a released job", timers, func(t testing.TB, c *pgx.Conn) int64 {
			j := taken(t, c, "300 ms")
			exec(t, c, "begin")
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			return j.ID
		}, "expired"},
		{"ttl of a job to retry", timers, func(t testing.TB, c *pgx.Conn) int64 {
			j := taken(t, c, "300 ms")
			exec(t, c, "begin")
			exec(t, c, "select oq_nack($1, $2, retry_after => '10 ms')", j.ID, j.Token)
			return j.ID
		}, "expired"},
		{"ttl of a reaped job", timers, func(t testing.TB, c *pgx.Conn) int64 {
			j := taken(t, c, "1500 ms", 1)
			passes(t, c, 1010*time.Millisecond)
			exec(t, c, "begin")
			exec(t, c, "select oq_reap()")
			return j.ID
		}, "expired"},
	}
	besideOthers(t, func(t *testing.T, beside func(*testdb.DB, func())) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				db := testdb.New(t)
				a, b := db.Conn(t), db.Conn(t)
				tick(t, b, 1)
				var id int64
				beside(db, func() { id = tc.open(t, a) })
				column := map[int]string{
					scheduled: "(select due_at from oq.scheduled where job_id = $1)",
					leased:    "(select expires_at from oq.leased where job_id = $1)",
					timers:    "(select expires_at from oq.job where job_id = $1)",
				}[tc.lane]
				due := get[time.Time](t, a, "select "+column, id)
				if tc.lane == leased {
					until(t, b, "the lease ends", "select count(*) > 0 and clock_timestamp() > $1 from oq_tick()", due)
					exec(t, a, "commit")
					until(t, b, "the job is back", "select count(*) > 0 and (select state = 'ready' from oq_get($1)) from oq_tick()", id)
				} else {
					// The mark keeps a distance, and it stays where a row is: others must go by as well.
					until(t, b, "the mark passes what is not committed", fmt.Sprintf(`select count(*) > 0 and
				(select max(low) > (date_part('epoch', $1::timestamptz) * 1000000)::bigint
				   from oq.mark where lane = %d) from oq_tick()`, tc.lane), due)
					exec(t, a, "commit")
					tick(t, b, 1)
				}
				if got := get[string](t, b, "select state from oq_get($1)", id); got != tc.want {
					t.Fatalf("job is %s, want %s", got, tc.want)
				}
				if tc.want == "ready" {
					expect(t, drain(t, db, "q"), id)
				} else {
					expect(t, drain(t, db, "q"))
				}
				audit(t, b)
			})
		}
	})
}

// A worker that enqueues and then finds another queue empty does the duties itself where no daemon
// does: its own epoch must stay open until it ends.
func TestLeaseDoesNotResolveItsOwnEpoch(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_enqueue('q'), oq_enqueue('empty')")
	drain(t, db, "q", "empty")
	alone(t, a)
	age(t, a)
	exec(t, a, "begin")
	first := get[int64](t, a, "select oq_enqueue('q')")
	if jobs := lease(t, a, "empty", 1); len(jobs) != 0 {
		t.Fatalf("leased %v", jobs)
	}
	second := get[int64](t, b, "select oq_enqueue('q')")
	jobs := lease(t, b, "q", 1)
	if len(jobs) != 1 || jobs[0].ID != second {
		t.Fatalf("leased %v, want %d", jobs, second)
	}
	ack(t, b, jobs[0])
	third := get[int64](t, a, "select oq_enqueue('q')")
	exec(t, a, "commit")
	expect(t, drain(t, db, "q"), first, third)
	audit(t, b)
}

// A worker whose transaction stays open must not keep the others, nor a daemon that comes back, from
// advancing.
func TestOpenLeaseKeepsNoAdvanceOut(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_enqueue('q'), oq_enqueue('empty')")
	expect(t, drain(t, db, "q", "empty"), 1, 2)
	alone(t, a)
	age(t, a)
	exec(t, a, "begin")
	if jobs := lease(t, a, "empty", 1); len(jobs) != 0 {
		t.Fatalf("leased %v", jobs)
	}
	late := db.Conn(t)
	exec(t, late, "begin")
	first := get[int64](t, late, "select oq_enqueue('q')")
	exec(t, b, "set lock_timeout = '2s'")
	exec(t, b, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[150]))")
	ids, tokens := split(lease(t, b, "q", 150))
	exec(t, b, "select oq_ack_many($1, $2)", ids, tokens)
	overtake(t, b)
	if mark := low(t, b, "q"); mark <= first {
		t.Fatalf("the mark stands at %d: no advance beside an open lease", mark)
	}
	exec(t, late, "commit")
	tick(t, b, 1)
	if jobs := lease(t, b, "q", 1); len(jobs) != 1 || jobs[0].ID != first {
		t.Errorf("leased %v, want job %d", jobs, first)
	}
}

// What the transaction holds in shared memory is bounded, however long it enqueues while epochs pass.
func TestLongTransactionHoldsFewLocks(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_enqueue('q')")
	expect(t, drain(t, db, "q"), 1)
	const count = `select count(*)::int from pg_locks where pid = $1`
	exec(t, a, "begin")
	total := 0
	put := func(seconds float64) int {
		stop := time.Now().Add(time.Duration(seconds * float64(time.Second)))
		for time.Now().Before(stop) {
			exec(t, a, "select count(oq_enqueue('q')) from generate_series(1, 20)")
			total += 20
			exec(t, b, "select oq_advance() from pg_sleep(0.02)") // the daemon's pace
		}
		return get[int](t, b, count, pid(t, a))
	}
	put(5.2)
	old := put(0.3)
	older := put(1.5)
	if older > old+2 || older > 400 {
		t.Errorf("%d locks, then %d: they grow with the epochs", old, older)
	}
	t.Logf("%d enqueues hold %d locks", total, older)
	exec(t, a, "commit")
	if n := len(drain(t, db, "q")); n != total {
		t.Errorf("%d jobs leased, want %d", n, total)
	}
	audit(t, b)
}

// advanceByLease makes a session's lease do the advance, as where no daemon runs.
func advanceByLease(t testing.TB, other, c querier) {
	t.Helper()
	exec(t, other, agedBeat)
	exec(t, other, agedEpoch)
	exec(t, other, "select oq_create_queue('empty')")
	before := get[int64](t, other, "select last_value from oq.epoch")
	exec(t, c, "select count(*) from oq_lease('empty')")
	if get[int64](t, other, "select last_value from oq.epoch") == before {
		t.Fatal("the lease did not advance")
	}
}

// Of an epoch that stays open others may leave: it is looked at once for each time that its holders change, not at each tick.
func TestWhoLeavesAnOpenEpochIsLookedForOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	stays, goes, b := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_enqueue('q')")
	drain(t, db, "q")
	exec(t, stays, "begin")
	exec(t, stays, "select oq_enqueue('other')")
	exec(t, goes, "begin")
	late := get[int64](t, goes, "select oq_enqueue('q')")
	const looks = "select coalesce(max(row_id), 0) - max(epoch) from oq.epoch_open"
	began := get[int64](t, b, looks)
	for n, step := range []func(){
		func() {},
		func() { exec(t, goes, "commit") },
		// Still the same member, though not to all versions.
		func() { exec(t, stays, "prepare transaction 'an open member'") },
	} {
		step()
		flow(t, b, "q")
		tick(t, b, 3)
		if got := get[int64](t, b, looks) - began; got != int64(n+1) && (n < 2 || got != int64(n)) {
			t.Errorf("looked for %d times, want %d", got, n+1)
		}
		if n := get[int](t, b, "select count(*)::int from oq.epoch_open"); n != 2 {
			t.Errorf("%d rows of epochs, want those of the one that is open and of the current one", n)
		}
	}
	if state := get[string](t, b, "select state from oq_get($1)", late); state != "completed" {
		t.Errorf("the late job is %s, want completed, in the flow of the others", state)
	}
	exec(t, b, "commit prepared 'an open member'")
	tick(t, b, 2)
	audit(t, b)
}

// Whoever leases right after the commit of a young transaction finds its jobs, though ticks have come meanwhile: all of them, in
// their order, none moved, and not those of others.
func TestALeaseRightAfterACommit(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_enqueue('q'), oq_enqueue('other'), oq_enqueue('q', priority => 7)")
	drain(t, db, "q", "other")
	for _, c := range []struct {
		name, sql string
		most      int
	}{
		{"one", "select oq_enqueue('q')", 10},
		{"with a priority", "select oq_enqueue('q', priority => 7)", 10},
		{"many", "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[5000]))", 10000},
		{"one by one", "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[50]))", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			for try := 0; ; try++ {
				exec(t, a, "begin")
				want := list[int64](t, a, c.sql)
				age(t, b)
				began := time.Now()
				tick(t, b, 2)
				young := time.Since(began) < 100*time.Millisecond
				exec(t, a, "commit")
				if !young && try < 50 {
					drain(t, db, "q")
					continue
				}
				if jobs := lease(t, b, "other", 10); len(jobs) != 0 {
					t.Fatalf("leased %v from another queue", jobs)
				}
				var got []int64
				for len(got) < len(want) {
					jobs := lease(t, b, "q", c.most)
					if len(jobs) == 0 {
						t.Fatalf("a lease finds nothing after %d of %d", len(got), len(want))
					}
					ids, tokens := split(jobs)
					exec(t, b, "select oq_ack_many($1, $2)", ids, tokens)
					got = append(got, ids...)
				}
				if !slices.Equal(got, want) {
					t.Errorf("leased %d jobs in another order", len(got))
				}
				if drawn := get[int64](t, b, "select last_value from oq.position"); drawn != want[len(want)-1] {
					t.Errorf("%d positions were drawn to move jobs", drawn-want[len(want)-1])
				}
				break
			}
			age(t, b)
			tick(t, b, 2)
			audit(t, b)
		})
	}
}
