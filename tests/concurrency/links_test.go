package concurrency

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

const child = "select oq_enqueue('c', options => jsonb_build_object('depends_on', array[$1::bigint]))"

func state(t testing.TB, q querier, id int64) string {
	t.Helper()
	return get[string](t, q, "select state from oq_get($1)", id)
}

// links is the duty of the tick that these tests are about, without the sweep, which would make up for what it missed.
const links = "(select count(oq.do_links(1000, null, true))) > 0"

// duty does it some times.
func duty(t testing.TB, q querier, times int) {
	t.Helper()
	for range times {
		exec(t, q, "select "+links)
	}
}

// reaches does it until a job is in a state: nothing else is to be waited for.
func reaches(t testing.TB, q querier, id int64, want string) {
	t.Helper()
	until(t, q, fmt.Sprintf("job %d is %s", id, want),
		"select "+links+" and (select state from oq_get($1)) = $2", id, want)
}

// The parent ends while the child is being enqueued: neither sees the other, whoever commits first.
func TestParentEndsBesideAnOpenEnqueue(t *testing.T) {
	t.Parallel()
	for _, linked := range []bool{false, true} {
		for _, level := range levels {
			for _, first := range []string{"ack", "enqueue"} {
				for _, end := range []string{"ack", "cancel", "ack_many", "next", "nack", "lease and ack"} {
					if level != "read committed" && end != "ack" && end != "nack" {
						continue
					}
					t.Run(fmt.Sprint(level, " ", first, " ", end, " ", linked), func(t *testing.T) {
						t.Parallel()
						db := testdb.New(t)
						p, c := db.Conn(t), db.Conn(t)
						if linked {
							other := get[int64](t, db.Pool, "select oq_enqueue('p', priority => -9)")
							get[int64](t, db.Pool, child, other)
						}
						parent := get[int64](t, db.Pool, "select oq_enqueue('p')")
						var j job
						if end != "lease and ack" {
							j = lease(t, db.Pool, "p", 1)[0]
						}
						exec(t, p, "begin")
						exec(t, c, "begin isolation level "+level)
						exec(t, c, "select 1 from pg_class limit 1")
						if end == "lease and ack" {
							j = lease(t, p, "p", 1)[0]
						}
						finish := func() {
							switch end {
							case "cancel":
								exec(t, p, "select oq_cancel($1)", parent)
							case "ack_many":
								exec(t, p, "select oq_ack_many($1, $2)", []int64{j.ID}, []int64{j.Token})
							case "next":
								exec(t, p, "select count(*) from oq_next('none', acked_job_ids => $1, acked_tokens => $2)",
									[]int64{j.ID}, []int64{j.Token})
							case "nack":
								exec(t, p, "select oq_nack($1, $2, 'no', retry => false)", j.ID, j.Token)
							default:
								exec(t, p, "select oq_ack($1, $2)", j.ID, j.Token)
							}
						}
						var id int64
						if first == "ack" {
							finish()
							id = get[int64](t, c, child, parent)
							exec(t, p, "commit")
							exec(t, c, "commit")
						} else {
							id = get[int64](t, c, child, parent)
							duty(t, db.Pool, 1)
							finish()
							exec(t, c, "commit")
							duty(t, db.Pool, 1)
							exec(t, p, "commit")
						}
						want := "ready"
						if end == "cancel" || end == "nack" {
							want = "cancelled"
						}
						reaches(t, db.Pool, id, want)
						audit(t, db.Pool)
					})
				}
			}
		}
	}
}

// The ack is rolled back after the tick has looked: the child waits, and is freed by the ack that counts.
func TestAckOfAParentRolledBack(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	p := db.Conn(t)
	parent := get[int64](t, db.Pool, "select oq_enqueue('p')")
	id := get[int64](t, db.Pool, child, parent)
	j := lease(t, db.Pool, "p", 1)[0]
	exec(t, p, "begin")
	ack(t, p, j)
	if got := state(t, p, id); got != "ready" {
		t.Fatalf("the child is %s to its parent", got)
	}
	duty(t, db.Pool, 2)
	exec(t, p, "rollback")
	duty(t, db.Pool, 2)
	if got := state(t, db.Pool, id); got != "waiting" {
		t.Fatalf("the child is %s", got)
	}
	ack(t, db.Pool, j)
	reaches(t, db.Pool, id, "ready")
	audit(t, db.Pool)
}

// What a rollback has left on an edge or on a parent's row looks like somebody who is just ending it. The duty tells
// them apart once, and does not come back for as long as the parent is open. Then the end that counts frees the child.
func TestRollbacksAreNotPolled(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"leased", "ready", "scheduled", "waiting"} {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c := db.Conn(t)
			enqueue := map[string]string{
				"leased": "select oq_enqueue('p', group_key => 'k')", "ready": "select oq_enqueue('p', priority => 3)",
				"scheduled": "select oq_enqueue('p', run_at => now() + interval '1 hour')",
				"waiting":   "select oq_enqueue('p', options => jsonb_build_object('depends_on', array[oq_enqueue('r')]))",
			}[place]
			first := get[int64](t, db.Pool, enqueue)
			second := get[int64](t, db.Pool, "select oq_enqueue('s')")
			if place == "leased" {
				lease(t, db.Pool, "p", 1)
			}
			if got := state(t, db.Pool, first); got != place {
				t.Fatalf("the parent is %s", got)
			}
			id := get[int64](t, db.Pool, "select oq_enqueue('c', options => jsonb_build_object('depends_on', array[$1::bigint, $2]))",
				first, second)
			exec(t, c, "begin")
			if !get[bool](t, c, "select oq_cancel($1)", first) {
				t.Fatal("not cancelled")
			}
			// Seen while it is open, and after.
			duty(t, db.Pool, 1)
			exec(t, c, "rollback")
			ack(t, db.Pool, lease(t, db.Pool, "s", 1)[0])
			if rows := list[string](t, db.Pool, "select xmax::text from oq.dependency where child_id = $1", id); len(rows) != 1 || rows[0] == "0" {
				t.Fatalf("edges %v: the rollback has left nothing", rows)
			}
			until(t, db.Pool, "nothing is left to do", "select "+links+" and not exists (select from oq.todo)")
			if got := state(t, db.Pool, id); got != "waiting" {
				t.Fatalf("the child is %s", got)
			}
			if !get[bool](t, db.Pool, "select oq_cancel($1)", first) {
				t.Fatal("not cancelled")
			}
			reaches(t, db.Pool, id, "cancelled")
			audit(t, db.Pool)
		})
	}
}

// The last two parents are acked at once, in every order of commits and rollbacks.
func TestLastTwoParentsAtOnce(t *testing.T) {
	t.Parallel()
	for _, ends := range [][2]string{{"commit", "commit"}, {"rollback", "commit"}, {"commit", "rollback"}} {
		for _, level := range levels {
			for _, swap := range []bool{false, true} {
				t.Run(fmt.Sprint(ends, level, swap), func(t *testing.T) {
					t.Parallel()
					db := testdb.New(t)
					a, b := db.Conn(t), db.Conn(t)
					ids := list[int64](t, db.Pool, "select oq_enqueue('p') from generate_series(1, 2)")
					id := get[int64](t, db.Pool,
						"select oq_enqueue('c', options => jsonb_build_object('depends_on', $1::bigint[]))", ids)
					batch := get[int64](t, db.Pool, `select oq_batch('{"on_complete": {"queue_name": "b"}}')`)
					leases := lease(t, db.Pool, "p", 2)
					exec(t, a, "begin isolation level "+level)
					exec(t, b, "begin")
					ack(t, a, leases[0])
					ack(t, b, leases[1])
					if swap {
						a, b = b, a
					}
					exec(t, a, ends[0])
					duty(t, db.Pool, 1)
					exec(t, b, ends[1])
					for i, end := range ends {
						if j := leases[i^map[bool]int{true: 1}[swap]]; end == "rollback" {
							duty(t, db.Pool, 1)
							if got := state(t, db.Pool, id); got != "waiting" {
								t.Errorf("the child is %s", got)
							}
							ack(t, db.Pool, j)
						}
					}
					reaches(t, db.Pool, id, "ready")
					exec(t, db.Pool, "select oq_batch_seal($1)", batch)
					audit(t, db.Pool)
				})
			}
		}
	}
}

// The seal and the last ack, both open at once.
func TestSealAgainstTheLastAck(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		for _, sealFirst := range []bool{true, false} {
			for _, sealCommits := range []bool{true, false} {
				t.Run(fmt.Sprint(level, sealFirst, sealCommits), func(t *testing.T) {
					t.Parallel()
					db := testdb.New(t)
					s, a := db.Conn(t), db.Conn(t)
					batch := get[int64](t, db.Pool, `select oq_batch('{"on_success": {"queue_name": "b"}}')`)
					exec(t, db.Pool, "select oq_enqueue('m', options => jsonb_build_object('batch_id', $1::bigint))", batch)
					j := lease(t, db.Pool, "m", 1)[0]
					exec(t, s, "begin isolation level "+level)
					exec(t, a, "begin isolation level "+level)
					seal := func() {
						if !get[bool](t, s, "select oq_batch_seal($1)", batch) {
							t.Error("not sealed")
						}
					}
					if sealFirst {
						seal()
						ack(t, a, j)
					} else {
						ack(t, a, j)
						seal()
					}
					duty(t, db.Pool, 1)
					if sealCommits {
						exec(t, s, "commit")
						exec(t, a, "commit")
					} else {
						exec(t, a, "commit")
						exec(t, s, "commit")
					}
					until(t, db.Pool, "the batch has fired",
						"select "+links+" and (select count(*) from oq_jobs where queue_name = 'b') = 1")
					duty(t, db.Pool, 3)
					if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs where queue_name = 'b'"); n != 1 {
						t.Errorf("fired %d times", n)
					}
					audit(t, db.Pool)
				})
			}
		}
	}
}

// A member comes while the batch is sealed: it is waited for, or refused; and neither waits for the other.
func TestMemberAgainstTheSeal(t *testing.T) {
	t.Parallel()
	const member = "select oq_enqueue('m', options => jsonb_build_object('batch_id', $1::bigint))"
	for _, level := range levels {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			m, s := db.Conn(t), db.Conn(t)
			open := func() int64 {
				return get[int64](t, db.Pool, `select oq_batch('{"on_success": {"queue_name": "b"}}')`)
			}
			fired := func() int { return get[int](t, db.Pool, "select count(*)::int from oq_jobs where queue_name = 'b'") }
			batch := open()
			exec(t, m, "begin isolation level "+level)
			exec(t, m, member, batch)
			if !get[bool](t, db.Pool, "select oq_batch_seal($1)", batch) {
				t.Error("not sealed")
			}
			duty(t, db.Pool, 2)
			if fired() != 0 {
				t.Error("fired beside an open member")
			}
			exec(t, m, "commit")
			duty(t, db.Pool, 2)
			if fired() != 0 {
				t.Error("fired before its member")
			}
			ack(t, db.Pool, lease(t, db.Pool, "m", 1)[0])
			until(t, db.Pool, "the batch has fired",
				"select "+links+" and (select count(*) from oq_jobs where queue_name = 'b') = 1")

			// The member rolls back.
			batch = open()
			exec(t, m, "begin isolation level "+level)
			exec(t, m, member, batch)
			exec(t, db.Pool, "select oq_batch_seal($1)", batch)
			exec(t, m, "rollback")
			until(t, db.Pool, "the batch has fired",
				"select "+links+" and (select count(*) from oq_jobs where queue_name = 'b') = 2")

			// Sealed, and gone, since the snapshot of who adds to it.
			batch = open()
			exec(t, m, "begin isolation level "+level)
			exec(t, m, "select count(*) from oq_queues")
			exec(t, db.Pool, "select oq_batch_seal($1)", batch)
			want := "40001"
			if level == "read committed" {
				want = "OQ001"
			}
			if _, err := try[int64](m, member, batch); code(err) != want {
				t.Errorf("a member of a batch that is over: %v", err)
			}
			exec(t, m, "rollback")

			// The seal is open: refused at once.
			batch = open()
			exec(t, s, "begin")
			exec(t, s, "select oq_batch_seal($1)", batch)
			exec(t, m, "begin isolation level "+level)
			if _, err := try[int64](m, member, batch); code(err) != "OQ001" {
				t.Errorf("a member while the batch is sealed: %v", err)
			}
			exec(t, m, "rollback")
			exec(t, s, "commit")
			audit(t, db.Pool)
		})
	}
}

// Two seals: one is true, whoever rolls back.
func TestTwoSeals(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	batch := get[int64](t, db.Pool, `select oq_batch('{"on_success": {"queue_name": "b"}}')`)
	sealed := make([]bool, 8)
	together(t, db, 8, func(i int, c *pgx.Conn) error {
		got, err := try[bool](c, "select oq_batch_seal($1)", batch)
		if err == nil {
			sealed[i] = got[0]
		}
		return err
	})
	n := 0
	for _, yes := range sealed {
		if yes {
			n++
		}
	}
	if fired := get[int](t, db.Pool, "select count(*)::int from oq_jobs where queue_name = 'b'"); n != 1 || fired != 1 {
		t.Errorf("sealed %d times, fired %d times", n, fired)
	}
}

// Ten thousand members, acked by eight workers: no row that all of them write, nobody who waits, and one job in the end.
func TestFanInOfTenThousand(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	batch := get[int64](t, db.Pool, `select oq_batch('{"on_success": {"queue_name": "b"}, "on_failure": {"queue_name": "f"}}')`)
	exec(t, db.Pool, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'm',
		'batch_id', $1::bigint)) from generate_series(1, 10000)))`, batch)
	id := get[int64](t, db.Pool, `select oq_enqueue('after', options => jsonb_build_object('depends_on',
		(select jsonb_agg(job_id) from oq_jobs where queue_name = 'm')))`)
	exec(t, db.Pool, "select oq_batch_seal($1)", batch)
	together(t, db, 8, func(i int, c *pgx.Conn) error {
		for {
			jobs, err := tryLease(c, "m", 1+i*3)
			if err != nil || len(jobs) == 0 {
				return err
			}
			ids, tokens := split(jobs)
			if _, err := try[int64](c, "select oq_ack_many($1, $2)", ids, tokens); err != nil {
				return err
			}
		}
	})
	reaches(t, db.Pool, id, "ready")
	until(t, db.Pool, "the batch has fired",
		"select "+links+" and (select count(*) from oq_jobs where queue_name = 'b') = 1")
	duty(t, db.Pool, 2)
	if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs where queue_name in ('b', 'f')"); n != 1 {
		t.Errorf("%d jobs were made", n)
	}
	if n := get[int](t, db.Pool, "select count(*)::int from oq.dependency"); n != 0 {
		t.Errorf("%d edges are left", n)
	}
	audit(t, db.Pool)
}

// Who cancels or changes a child holds up nobody, and nothing is lost.
func TestChildUnderSomebodysHands(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		for _, does := range []string{"select oq_cancel($1)", `select oq_update($1, '{"priority": 3}')`} {
			for _, end := range []string{"commit", "rollback"} {
				t.Run(fmt.Sprint(fails, does, end), func(t *testing.T) {
					t.Parallel()
					db := testdb.New(t)
					c := db.Conn(t)
					parent := get[int64](t, db.Pool, "select oq_enqueue('p')")
					id := get[int64](t, db.Pool, child, parent)
					grandchild := get[int64](t, db.Pool, child, id)
					exec(t, c, "begin")
					exec(t, c, does, id)
					if fails {
						exec(t, db.Pool, "select oq_cancel($1)", parent)
					} else {
						ack(t, db.Pool, lease(t, db.Pool, "p", 1)[0])
					}
					duty(t, db.Pool, 2)
					exec(t, c, end)
					want := "ready"
					if fails || end == "commit" && does == "select oq_cancel($1)" {
						want = "cancelled"
						reaches(t, db.Pool, grandchild, "cancelled")
					}
					reaches(t, db.Pool, id, want)
					audit(t, db.Pool)
				})
			}
		}
	}
}

// Graphs from many sessions beside workers that ack, fail and roll back: everything ends.
func TestGraphsUnderLoad(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	const graph = `select job_id from oq_enqueue_many('[{"queue_name": "q", "ref": "a"},
		{"queue_name": "q", "ref": "b", "depends_on_refs": ["a"]}, {"queue_name": "q", "ref": "c", "depends_on_refs": ["a"]},
		{"queue_name": "q", "ref": "d", "depends_on_refs": ["b", "c"], "on_parent_failure": "run"}]')`
	together(t, db, 6, func(i int, c *pgx.Conn) error {
		if i == 0 {
			for range 60 {
				if _, err := try[int64](c, "select count(*) from oq_tick()"); err != nil {
					return err
				}
			}
			return nil
		}
		if i < 3 {
			var last int64
			for range 40 {
				ids, err := try[int64](c, graph)
				if err != nil {
					return err
				}
				if last > 0 {
					if _, err := try[int64](c, child, last); err != nil {
						return err
					}
				}
				last = ids[3]
			}
			return nil
		}
		for range 150 {
			_, err := try[string](c, `select case when l.job_id % 7 = 0 then oq_nack(l.job_id, l.lease_token, 'no', retry => false)
				else oq_ack(l.job_id, l.lease_token)::text end from oq_lease('q', max_jobs => 2) l`)
			if err != nil {
				return err
			}
		}
		return nil
	})
	until(t, db.Pool, "everything has ended", "select "+links+` and (
		select count(oq_ack(l.job_id, l.lease_token)) from unnest('{q,c}'::text[]) n cross join lateral oq_lease(n, max_jobs => 100) l) = 0
		and not exists (select from oq_jobs where state in ('waiting', 'ready', 'leased'))`)
	audit(t, db.Pool)
	if n := get[int](t, db.Pool, "select count(*)::int from oq.dependency"); n != 0 {
		t.Errorf("%d edges are left", n)
	}
}

// The unique key of a batch's job is an open transaction's: neither the worker that ends the batch waits for it nor the
// tick, whose other duties go on. When the key is had, the job comes soon.
func TestKeyOfABatchIsHeld(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, holder := db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_create_queue('done')")
	tick(t, c, 1)
	for i := range 30 {
		id := get[int64](t, c, `select oq_batch(jsonb_build_object('on_success',
			jsonb_build_object('queue_name', 'done', 'unique_key', 'k' || $1::int)))`, i)
		exec(t, c, "select oq_enqueue('m', options => jsonb_build_object('batch_id', $1::bigint))", id)
		exec(t, c, "select oq_batch_seal($1)", id)
	}
	exec(t, holder, "begin")
	exec(t, holder, "select count(oq_enqueue('done', unique_key => 'k' || i)) from generate_series(0, 29) i")
	ids, tokens := split(lease(t, c, "m", 30))
	exec(t, c, "set statement_timeout = '2s'")
	if n := len(list[int64](t, c, "select oq_ack_many($1, $2)", ids, tokens)); n != 30 {
		t.Fatalf("%d jobs acked, want 30", n)
	}
	due := get[int64](t, c, "select oq_enqueue('other', run_at => clock_timestamp() + interval '100 ms')")
	until(t, c, "the tick promotes another queue's job",
		"select (select count(*) from oq_tick()) > 0 and (select state = 'ready' from oq_get($1))", due)
	exec(t, holder, "rollback")
	since := time.Now()
	until(t, c, "the batches' jobs are made",
		"select (select count(*) from oq_tick()) > 0 and (select count(*) from oq_jobs where queue_name = 'done') = 30")
	if took := time.Since(since); took > 5*time.Second {
		t.Errorf("the jobs came %v after the key was free", took)
	}
	audit(t, c)
}

// The parent is completed and purged while the child is being enqueued: it was completed all the same.
func TestParentPurgedBesideAnOpenEnqueue(t *testing.T) {
	t.Parallel()
	for _, linked := range []bool{false, true} {
		t.Run(fmt.Sprint(linked), func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c, open := db.Conn(t), db.Conn(t)
			if linked {
				get[int64](t, c, child, get[int64](t, c, "select oq_enqueue('p', priority => -9)"))
			}
			parent := get[int64](t, c, "select oq_enqueue('p')")
			failed := get[int64](t, c, "select oq_enqueue('p')")
			jobs := lease(t, c, "p", 2)
			exec(t, c, "select oq_nack($1, $2, 'no')", jobs[0].ID, jobs[0].Token)
			exec(t, c, "update oq.scheduled set due_at = clock_timestamp()")
			exec(t, open, "begin")
			id := get[int64](t, open, child, parent)
			other := get[int64](t, open, child, failed)
			tick(t, c, 1)
			ack(t, c, lease(t, c, "p", 1)[0])
			exec(t, c, "select oq_nack($1, $2, 'no', retry => false)", jobs[1].ID, jobs[1].Token)
			if n := get[int](t, c, "select oq_purge('p', 'completed')::int + oq_purge('p', 'dead')::int"); n != 2 {
				t.Fatalf("%d jobs purged, want 2", n)
			}
			exec(t, open, "commit")
			reaches(t, c, id, "ready")
			reaches(t, c, other, "cancelled")
			if n := get[int](t, c, "select oq_purge('p', 'completed')::int + (select count(*)::int from oq_get($1))", parent); n != 0 {
				t.Error("the parent is there again")
			}
			audit(t, c)
		})
	}
}
