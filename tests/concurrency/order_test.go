package concurrency

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Calls for the same leases in every order, in many sessions: a deadlock is an error of one of them.
// Each transaction stays open over its call's end, so that locks taken in two orders would meet.
func TestBatchesInOppositeOrders(t *testing.T) {
	t.Parallel()
	calls := map[string]string{
		"oq_ack_many": "select count(*)::int from oq_ack_many($1, $2)",
		"oq_next": `select count(*)::int from oq_next('q', null, 600, 5, $1, $2)
			where pg_sleep(0) is not null`,
		"oq_heartbeat_many": "select count(*)::int from oq_heartbeat_many($1, $2) where status = 'ok'",
	}
	for name, sql := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c := db.Conn(t)
			for round := range 8 {
				exec(t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[200]))")
				jobs := lease(t, c, "q", 200, 600)
				together(t, db, 8, func(i int, c *pgx.Conn) error {
					mine := slices.Clone(jobs)
					switch i % 3 {
					case 1:
						slices.Reverse(mine)
					case 2:
						random := rand.New(rand.NewPCG(uint64(i), uint64(round)))
						random.Shuffle(len(mine), func(a, b int) { mine[a], mine[b] = mine[b], mine[a] })
					}
					ids, tokens := split(mine)
					return pgx.BeginFunc(context.Background(), c, func(tx pgx.Tx) error {
						if _, err := try[int](tx, sql, ids, tokens); err != nil {
							return err
						}
						if round%2 == 1 {
							return errRollback
						}
						return nil
					})
				})
				ids, tokens := split(jobs)
				exec(t, c, "select oq_ack_many($1, $2)", ids, tokens)
			}
			audit(t, c)
		})
	}
}

var errRollback = rollback{}

// rollback ends a transaction without being a failure: see together.
type rollback struct{}

func (rollback) Error() string { return "rollback" }

// Two sessions, step by step: the second waits for the first and goes on, in either order.
func TestOppositeOrdersStepByStep(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{
		"select array_agg(x) from oq_ack_many($1, $2) x",
		"select array_agg(job_id) from oq_heartbeat_many($1, $2) where status = 'ok'",
	} {
		db := testdb.New(t)
		a, b := db.Conn(t), db.Conn(t)
		exec(t, a, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[2]))")
		jobs := lease(t, a, "q", 2)
		ids, tokens := split(jobs)
		// A third session holds the higher id. If a call took it first, the other order would be seen here.
		c := db.Conn(t)
		exec(t, c, "begin")
		exec(t, c, "select from oq.leased where job_id = $1 for update", ids[1])
		var first, second []int64
		waitA := background(t, func() error {
			got, err := try[[]int64](a, sql, []int64{ids[1], ids[0]}, []int64{tokens[1], tokens[0]})
			if err == nil {
				first = got[0]
			}
			return err
		})
		blocked(t, db, pid(t, a))
		// A has locked the lower id although it was named last: so everybody begins with it.
		if n := get[int](t, c, `select count(*)::int from (select from oq.leased where job_id = $1
			for update skip locked) x`, ids[0]); n != 0 {
			t.Errorf("%s does not lock ids ascending", sql)
		}
		waitB := background(t, func() error {
			got, err := try[[]int64](b, sql, ids, tokens)
			if err == nil {
				second = got[0]
			}
			return err
		})
		blocked(t, db, pid(t, b))
		exec(t, c, "rollback")
		waitA()
		waitB()
		if slices.Sort(first); !slices.Equal(first, ids) {
			t.Errorf("%s: the first got %v, want %v", sql, first, ids)
		}
		if len(second) != 0 && len(second) != 2 {
			t.Errorf("%s: the second got %v", sql, second)
		}
		audit(t, a)
	}
}

// The first use of a queue or a priority in an open transaction blocks nobody, in any order.
func TestFirstUsesInOppositeOrders(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	var want []int64
	for _, c := range []*pgx.Conn{a, b} {
		exec(t, c, "set lock_timeout = '1s'")
		exec(t, c, "begin")
	}
	enqueue := func(c *pgx.Conn, queue string, priority int) {
		t.Helper()
		want = append(want, get[int64](t, c, "select oq_enqueue($1, priority => $2)", queue, priority))
	}
	enqueue(a, "one", 3)
	enqueue(b, "two", 4)
	enqueue(a, "two", 4)
	enqueue(b, "one", 3)
	want = append(want, list[int64](t, a, "select oq_enqueue_bulk('three', '{\"1\"}', 5)")...)
	want = append(want, list[int64](t, b, `select job_id from oq_enqueue_many(
		'[{"queue_name": "four"}, {"queue_name": "three", "priority": 5}]')`)...)
	want = append(want, list[int64](t, a, `select job_id from oq_enqueue_many(
		'[{"queue_name": "four"}, {"queue_name": "one", "priority": 3}]')`)...)
	exec(t, a, "select oq_listen('five')")
	enqueue(b, "five", 0)
	exec(t, b, "commit")
	exec(t, a, "commit")
	expect(t, drain(t, db, "one", "two", "three", "four", "five"), want...)
	audit(t, a)

	// The rows that several first uses left are put together, and what was told to a queue stays.
	tick(t, a, 1)
	exec(t, a, "select oq_rotate()")
	if n := get[int](t, a, "select count(*)::int from oq.queue"); n != 5 {
		t.Errorf("%d rows for 5 queues", n)
	}
}

func TestFirstUsesAtOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	want := make([][]int64, 12)
	together(t, db, len(want), func(i int, c *pgx.Conn) error {
		queues := []string{"a", "b", "c", "d"}
		if i%2 == 1 {
			slices.Reverse(queues)
		}
		level := []string{"read committed", "repeatable read"}[i/2%2]
		if _, err := c.Exec(context.Background(), "begin isolation level "+level+"; set local lock_timeout = '5s'"); err != nil {
			return err
		}
		for round := range 5 {
			for _, queue := range queues {
				id, err := try[int64](c, "select oq_enqueue($1, priority => $2)", queue, round)
				if err != nil {
					return err
				}
				want[i] = append(want[i], id...)
			}
		}
		_, err := c.Exec(context.Background(), "commit")
		return err
	})
	expect(t, drain(t, db, "a", "b", "c", "d"), slices.Concat(want...)...)
	audit(t, db.Pool)
}

// Drop and purge see what is committed; a job that is being enqueued meanwhile is no orphan.
func TestDropAndPurgeAgainstOpenTransactions(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		open  func(t testing.TB, c *pgx.Conn, visible job) int64
		sql   string
		state string
	}{
		"enqueue, drop": {func(t testing.TB, c *pgx.Conn, _ job) int64 {
			return get[int64](t, c, "select oq_enqueue('q')")
		}, "select oq_drop_queue('q', true)", "ready"},
		"enqueue with priority, drop": {func(t testing.TB, c *pgx.Conn, _ job) int64 {
			return get[int64](t, c, "select oq_enqueue('q', priority => 5)")
		}, "select oq_drop_queue('q', true)", "ready"},
		"enqueue for later, drop": {func(t testing.TB, c *pgx.Conn, _ job) int64 {
			return get[int64](t, c, `select oq_enqueue('q', options => '{"delay": "1 hour"}')`)
		}, "select oq_drop_queue('q', true)", "scheduled"},
		"enqueue, purge": {func(t testing.TB, c *pgx.Conn, _ job) int64 {
			return get[int64](t, c, "select oq_enqueue('q')")
		}, "select oq_purge('q', 'ready')", "ready"},
		"lease, drop": {func(t testing.TB, c *pgx.Conn, _ job) int64 {
			return lease(t, c, "q", 1)[0].ID
		}, "select oq_drop_queue('q', true)", "leased"},
		"lease, purge": {func(t testing.TB, c *pgx.Conn, _ job) int64 {
			return lease(t, c, "q", 1)[0].ID
		}, "select oq_purge('q', 'ready')", "leased"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b := db.Conn(t), db.Conn(t)
			exec(t, a, `select oq_create_queue('q', '{"lease_seconds": 3600, "max_retries": 9}')`)
			exec(t, a, "select oq_enqueue('q')")
			exec(t, a, "begin")
			id := tc.open(t, a, job{})
			exec(t, b, "set lock_timeout = '1s'")
			exec(t, b, tc.sql)
			tick(t, b, 1)
			exec(t, a, "commit")
			tick(t, b, 1)
			if got := get[string](t, b, "select state from oq_get($1)", id); got != tc.state {
				t.Fatalf("job is %q, want %s", got, tc.state)
			}
			comesDue(t, b)
			exec(t, b, testdb.Lapse(""))
			until(t, b, "the queue is seen again", `select exists (select from oq_queues where queue_name = 'q')
				and (select count(*) > 0 from oq_tick())`)
			until(t, b, "the job is ready", `select count(*) > 0 and
				(select state = 'ready' from oq_get($1)) from oq_tick()`, id)
			expect(t, drain(t, db, "q"), id)
			audit(t, b)
		})
	}
}

func TestEnqueueIntoDroppedQueueAtEveryLevel(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		db := testdb.New(t)
		a, b := db.Conn(t), db.Conn(t)
		exec(t, a, "select oq_create_queue('q')")
		exec(t, a, "select oq_drop_queue('q')")
		exec(t, a, "begin isolation level "+level)
		exec(t, a, "select 1")
		first := get[int64](t, b, "select oq_enqueue('q')")
		second := get[int64](t, a, "select oq_enqueue('q')")
		exec(t, a, "commit")
		expect(t, drain(t, db, "q"), first, second)
		audit(t, b)
	}
}

// What is said of a queue holds, though an open transaction that commits later was the first to use it, to put a
// job of it in a group, or throttles it.
func TestOptionsBesideOpenTransactions(t *testing.T) {
	t.Parallel()
	const there = "select oq_create_queue('q')"
	for name, tc := range map[string]struct {
		before, open, said, holds string
		later                     bool // after a rotation
	}{
		"first use": {"select 1", "select oq_enqueue('q', group_key => 'g')",
			`select oq_create_queue('q', '{"restricted": true, "max_retries": 7}')`,
			"select restricted and max_retries = 7 from oq_queues", false},
		"grouped and throttled": {there,
			"select oq_enqueue('q', group_key => 'g'), oq_throttle('q', clock_timestamp() + interval '1 hour')",
			`select oq_create_queue('q', '{"restricted": true}')`, "select restricted from oq_queues", false},
		"limited": {there, "select oq_enqueue('q', group_key => 'g')", "select oq_limit('q', max_running => 2)",
			"select count(*) = 2 from oq_lease('q', max_jobs => 9)", false},
		"throttled, changed": {there, "select oq_throttle('q', clock_timestamp() + interval '1 hour')",
			`select oq_create_queue('q', '{"max_retries": 7}')`, "select count(*) = 0 from oq_lease('q')", true},
		"throttled, paused": {there, "select oq_throttle('q', clock_timestamp() + interval '1 hour')",
			"select oq_pause('q'), oq_resume('q')", "select count(*) = 0 from oq_lease('q')", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b := db.Conn(t), db.Conn(t)
			exec(t, b, tc.before)
			exec(t, a, "begin")
			exec(t, a, tc.open)
			exec(t, b, "set lock_timeout = '1s'")
			exec(t, b, tc.said)
			exec(t, a, "commit")
			exec(t, b, "select oq_enqueue('q') from generate_series(1, 5)")
			for _, rotated := range []bool{false, true} {
				if rotated {
					exec(t, b, "select oq_rotate()")
				} else if tc.later {
					continue
				}
				exec(t, b, "begin")
				if !get[bool](t, b, tc.holds) {
					t.Errorf("not so, rotated %v: %s", rotated, tc.holds)
				}
				exec(t, b, "rollback")
			}
			if strings.Contains(tc.open, "group_key") && !get[bool](t, b, "select bool_and(linked) from oq.queue") {
				t.Error("the queue is not linked any more")
			}
			audit(t, b)
		})
	}
}

// A change of options by a snapshot that does not see others, of the row that it sees or of another, takes nothing back of
// them and is not lost beneath them.
func TestOptionsOfAnOldSnapshot(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	n := 0
	for _, before := range []string{"select oq_create_queue(%q)", `select oq_create_queue(%q, '{"max_retries": 1}')`, "select %q"} {
		for _, said := range []string{`select oq_create_queue(%q, '{"max_retries": 7}')`, "select oq_resume(%q)"} {
			for _, linked := range []bool{false, true} {
				for changes := range 3 {
					if before == "select %q" && said == "select oq_resume(%q)" {
						continue
					}
					n++
					name := fmt.Sprintf("'q%d'", n)
					call := func(sql string) string { return strings.ReplaceAll(sql, "%q", name) }
					exec(t, b, call(before))
					exec(t, a, "begin isolation level repeatable read")
					exec(t, a, "select 1")
					if linked {
						exec(t, b, call("select oq_enqueue(%q, group_key => 'g')"))
					}
					exec(t, b, call("select oq_create_queue(%q)"))
					for i := range changes {
						exec(t, b, call(`select oq_create_queue(%q, jsonb_build_object('lease_seconds', $1::int))`), i+1)
					}
					exec(t, b, call("select oq_pause(%q)"))
					if _, err := try[any](a, call(said)); code(err) != "40001" {
						t.Errorf("%s, linked %v, %d changes: %s: %v", call(before), linked, changes, call(said), err)
					}
					exec(t, a, "rollback")
					if !get[bool](t, b, call("select paused from oq_queues where queue_name = %q")) {
						t.Errorf("%s, linked %v, %d changes: the pause is lost to %s", call(before), linked, changes, call(said))
					}
				}
			}
		}
	}
	audit(t, b)
}

// A link that commits in the middle of a rotation is not cleared away with the row in which it stands.
func TestLinkCommitsDuringARotation(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, r := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, b, "select oq_create_queue('q')")
	// The rotation stops when it has looked for links.
	exec(t, b, `create function stop() returns trigger language plpgsql as $$
		begin
			while current_setting('test.stops', true) = '1' and not pg_try_advisory_xact_lock(1, 2) loop
				perform pg_sleep(0.002);
			end loop;
			return null;
		end $$;
		create trigger stop after update on oq.queue for each statement execute function public.stop()`)
	exec(t, b, "select pg_advisory_lock(1, 2)")
	exec(t, a, "begin")
	exec(t, a, "select oq_enqueue('q', group_key => 'g')")
	exec(t, b, `select oq_create_queue('q', '{"max_retries": 7}')`)
	exec(t, r, "set test.stops = '1'")
	wait := background(t, func() error {
		_, err := r.Exec(context.Background(), "select oq_rotate()")
		return err
	})
	until(t, b, "the rotation stops", "select exists (select from pg_stat_activity where pid = $1 and wait_event = 'PgSleep')", pid(t, r))
	exec(t, a, "commit")
	exec(t, b, "select pg_advisory_unlock(1, 2)")
	wait()
	exec(t, b, "select oq_rotate()")
	if !get[bool](t, b, "select count(*) = 1 and bool_and(linked and max_retries = 7) from oq.queue") {
		t.Error("the queue is not linked any more")
	}
}

// Every producing and consuming call at the stricter levels, beside others that do the same: an
// enqueue never fails, the others may have to try again and lose nothing.
func TestStricterIsolationLevels(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			exec(t, db.Pool, `select oq_create_queue('q', '{"max_retries": 1000}')`)
			exec(t, db.Pool, "select oq_enqueue('q', priority => 2)")
			drain(t, db, "q")
			options := pgx.TxOptions{IsoLevel: level}
			const each = 60
			ids := make([][]int64, 4)
			together(t, db, len(ids)+1, func(i int, c *pgx.Conn) error {
				if i == len(ids) {
					for range 50 {
						if _, err := c.Exec(context.Background(), "select from oq_tick()"); err != nil {
							return err
						}
					}
					return nil
				}
				for n := range each {
					err := pgx.BeginTxFunc(context.Background(), c, options, func(tx pgx.Tx) error {
						sql := []string{"select oq_enqueue('q')", "select oq_enqueue('q', priority => 2)",
							`select oq_enqueue_bulk('q', '{"1"}')`,
							`select job_id from oq_enqueue_many('[{"queue_name": "q"}]')`,
							`select oq_enqueue('q', options => '{"delay": "10 ms"}')`}[n%5]
						id, err := try[int64](tx, sql)
						ids[i] = append(ids[i], id...)
						return err
					})
					if err != nil {
						return fmt.Errorf("enqueue: %w", err)
					}
				}
				return nil
			})
			acked := make([][]int64, 4)
			total := len(slices.Concat(ids...))
			deadline := time.Now().Add(patience)
			together(t, db, len(acked), func(i int, c *pgx.Conn) error {
				for call := 0; time.Now().Before(deadline); call++ {
					var mine []int64
					err := pgx.BeginTxFunc(context.Background(), c, options, func(tx pgx.Tx) error {
						jobs, err := tryLease(tx, "q", 1+call%3)
						if err != nil {
							return err
						}
						for _, j := range jobs {
							sql := "select oq_ack($1, $2)"
							switch (call + i) % 5 {
							case 1:
								sql = "select oq_nack($1, $2, retry_after => '0') <> 'ready'"
							case 2:
								sql = "select not oq_release($1, $2)"
							case 3:
								sql = "select oq_heartbeat($1, $2) = 'ok' and oq_ack($1, $2)"
							}
							done, err := try[bool](tx, sql, j.ID, j.Token)
							if err != nil {
								return err
							}
							if done[0] {
								mine = append(mine, j.ID)
							}
						}
						return nil
					})
					if failure := code(err); failure != "" && failure != "40001" && failure != "40P01" {
						return err
					}
					if err == nil {
						acked[i] = append(acked[i], mine...)
					}
					if left, err := try[int](c, "select count(*)::int from oq.finished"); err != nil || left[0] == total+1 {
						return err
					}
					// What was committed below a mark after the last tick waits for the next: no lease at these levels does it.
					if call%20 == 19 {
						if _, err := try[int](c, "select count(*)::int from oq_tick()"); err != nil {
							return err
						}
					}
				}
				return errors.New("never done")
			})
			all := slices.Concat(acked...)
			slices.Sort(all)
			want := slices.Concat(ids...)
			slices.Sort(want)
			if !slices.Equal(all, want) {
				t.Errorf("%d jobs acked, want each of %d once", len(all), len(want))
			}
			audit(t, db.Pool)
		})
	}
}

// A snapshot older than a compaction sees an empty table. What finds nothing in it can't say "lost".
func TestOldSnapshotsAreTold(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		db := testdb.New(t)
		a, b := db.Conn(t), db.Conn(t)
		exec(t, a, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[2]))")
		j := lease(t, a, "q", 1)[0]
		for _, sql := range []string{
			"select oq_ack($1, $2)",
			"select oq_ack($1, $2, strict => true)",
			"select oq_ack_many(array[$1::bigint], array[$2::bigint])",
			"select oq_next('q', acked_job_ids => array[$1::bigint], acked_tokens => array[$2::bigint])",
			"select oq_nack($1, $2)",
			"select oq_release($1, $2)",
			"select oq_heartbeat($1, $2)",
			"select oq_heartbeat_many(array[$1::bigint], array[$2::bigint])",
			"select oq_cancel($1), $2::bigint",
		} {
			exec(t, a, "begin isolation level "+level)
			exec(t, a, "select 1")
			exec(t, b, "select oq.rewrite('leased'), oq.rewrite('ready')")
			_, err := a.Exec(context.Background(), sql, j.ID, j.Token)
			if code(err) != "40001" {
				t.Errorf("%s: %s gives %q, want 40001", level, sql, code(err))
			}
			exec(t, a, "rollback")
		}
		// In a snapshot that is younger all is there.
		exec(t, a, "begin isolation level "+level)
		if !ack(t, a, j) {
			t.Errorf("%s: the ack was refused", level)
		}
		exec(t, a, "commit")
		audit(t, a)
	}
}
