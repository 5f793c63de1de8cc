package concurrency

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

const enqueueGroup = "select oq_enqueue($1, group_key => $2)"

func inGroup(t testing.TB, q querier, queue, key string) int64 {
	t.Helper()
	return get[int64](t, q, enqueueGroup, queue, key)
}

// next leases what comes next and fails unless it is these, in any order.
func next(t testing.TB, q querier, queue string, want ...int64) []job {
	t.Helper()
	jobs := lease(t, q, queue, 100)
	got, _ := split(jobs)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("leased %v, want %v", got, want)
	}
	return jobs
}

// works off a queue one by one with ticks in between, and gives the order.
func inOrder(t testing.TB, q querier, queue string) (ids []int64) {
	t.Helper()
	for idle := 0; idle < 3; {
		jobs := lease(t, q, queue, 100)
		if len(jobs) == 0 {
			idle++
			tick(t, q, 1)
			continue
		}
		idle = 0
		for _, j := range jobs {
			ids = append(ids, j.ID)
			ack(t, q, j)
		}
	}
	return ids
}

// comesDue makes what is scheduled due, as if its time had gone by: by who enters the epoch, as everyone does who
// writes a due time.
func comesDue(t testing.TB, q querier) {
	t.Helper()
	exec(t, q, "begin; select oq.enter()")
	exec(t, q, "update oq.scheduled set due_at = clock_timestamp()")
	exec(t, q, "commit")
}

func same(t testing.TB, what string, got, want []int64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

var levels = []string{"read committed", "repeatable read", "serializable"}

// An open producer holds nothing: the group goes on, and its job comes when it commits, in the order of commits.
func TestOpenProducerHoldsNoGroup(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b := db.Conn(t), db.Conn(t)
			exec(t, b, "select oq_create_queue('q')")
			exec(t, a, "begin isolation level "+level)
			late := inGroup(t, a, "q", "g")
			late2 := inGroup(t, a, "q", "g")
			other := inGroup(t, a, "q", "h")
			first := inGroup(t, b, "q", "g")
			second := inGroup(t, b, "q", "g")
			jobs := next(t, b, "q", first)
			ack(t, b, jobs[0])
			exec(t, a, "commit")
			tick(t, b, 2)
			jobs = next(t, b, "q", second, other)
			for _, j := range jobs {
				ack(t, b, j)
			}
			same(t, "after the commit", inOrder(t, b, "q"), []int64{late, late2})
			audit(t, b)
		})
	}
}

// The order is that of the commits, not that of the ids, also where the line is long and nothing runs.
func TestCommitOrderInGroups(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			w := db.Conn(t)
			ack(t, w, next(t, w, "q", inGroup(t, w, "q", "g"))[0])
			exec(t, w, "select oq_pause('q')")
			var sessions []*pgx.Conn
			ids := make([][]int64, 6)
			for i := range ids {
				c := db.Conn(t)
				exec(t, c, "begin isolation level "+level)
				exec(t, c, "savepoint s")
				for range 3 {
					ids[i] = append(ids[i], inGroup(t, c, "q", "g"))
				}
				sessions = append(sessions, c)
			}
			var want []int64
			for _, i := range []int{3, 5, 0, 4, 1, 2} {
				exec(t, sessions[i], "commit")
				want = append(want, ids[i]...)
			}
			exec(t, w, "select oq_resume('q')")
			tick(t, w, 2)
			if level == "serializable" {
				slices.Sort(want) // Not what others committed, but the ids.
			}
			same(t, "order", inOrder(t, w, "q"), want)
			audit(t, w)
		})
	}
}

// A late commit whose group was worked off meanwhile, above its place, is found.
func TestLateCommitBelowTheLow(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b := db.Conn(t), db.Conn(t)
			exec(t, b, "select oq_create_queue('q')")
			exec(t, a, "begin isolation level "+level)
			late := inGroup(t, a, "q", "g")
			for range 5 {
				id := inGroup(t, b, "q", "g")
				ack(t, b, next(t, b, "q", id)[0])
			}
			exec(t, a, "commit")
			alone(t, b)
			next(t, b, "q", late)
			audit(t, b)
		})
	}
}

// One ends and one is enqueued at the same time, each in a transaction that can't see the other, whoever
// commits first: the next runs, by the tick or, without a daemon, by the lease alone.
func TestFinishAndEnqueueAtOnce(t *testing.T) {
	t.Parallel()
	for _, finisher := range levels {
		for _, producer := range levels {
			for _, finishFirst := range []bool{true, false} {
				for _, daemon := range []bool{true, false} {
					t.Run(fmt.Sprint(finisher, " ", producer, " ", finishFirst, " ", daemon), func(t *testing.T) {
						db := testdb.New(t)
						a, b, w := db.Conn(t), db.Conn(t), db.Conn(t)
						inGroup(t, w, "q", "g")
						j := lease(t, w, "q", 1)[0]
						exec(t, a, "begin isolation level "+finisher)
						exec(t, b, "begin isolation level "+producer)
						exec(t, a, "select 1 from oq_queues")
						exec(t, b, "select 1 from oq_queues")
						order := []func(){
							func() { ack(t, a, j) },
							func() { inGroup(t, b, "q", "g") },
						}
						if !finishFirst {
							slices.Reverse(order)
						}
						order[0]()
						order[1]()
						commits := []*pgx.Conn{a, b}
						if j.ID%2 == 0 {
							slices.Reverse(commits)
						}
						exec(t, commits[0], "commit")
						audit(t, w)
						exec(t, commits[1], "commit")
						audit(t, w)
						if daemon {
							tick(t, w, 1)
							if n := get[int](t, w, "select count(*)::int from oq_jobs where state = 'ready'"); n != 1 {
								t.Errorf("%d ready after the tick", n)
							}
						} else {
							alone(t, w)
						}
						if n := len(lease(t, w, "q", 10)); n != 1 {
							t.Errorf("leased %d", n)
						}
						audit(t, w)
					})
				}
			}
		}
	}
}

// What an open transaction has put in line behind others is found when it commits, though whoever saw those end, or let the
// last of them in, could not see it.
func TestOpenEnqueueBehindOthers(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 3} {
		for _, together := range []bool{true, false} {
			t.Run(fmt.Sprint(limit, " ", together), func(t *testing.T) {
				t.Parallel()
				db := testdb.New(t)
				a, w := db.Conn(t), db.Conn(t)
				exec(t, w, `select oq_create_queue('q', '{"notify": "daemon"}')`)
				if limit > 1 {
					exec(t, w, "select oq_limit('q', 'g', max_running => $1)", limit)
				}
				var before []int64
				for range limit + 1 {
					before = append(before, inGroup(t, w, "q", "g"))
				}
				jobs := next(t, w, "q", before[:limit]...)
				exec(t, a, "begin")
				late := inGroup(t, a, "q", "g")
				name := fmt.Sprintf("'behind others %d %t'", limit, together)
				exec(t, a, "prepare transaction "+name)
				t.Cleanup(func() { _, _ = w.Exec(context.Background(), "rollback prepared "+name) })
				ids, tokens := split(jobs)
				if together {
					same(t, "acked", list[int64](t, w, "select oq_ack_many($1, $2)", ids, tokens), ids)
				} else {
					for _, j := range jobs {
						ack(t, w, j)
					}
				}
				last := next(t, w, "q", before[limit:]...)[0]
				if limit == 1 {
					ack(t, w, last)
				}
				tick(t, w, 1)
				exec(t, a, "commit prepared "+name)
				audit(t, w)
				time.Sleep(600 * time.Millisecond) // it is looked for twice a second
				next(t, w, "q", late)
				audit(t, w)
			})
		}
	}
}

// A job that died gives its slot up. Where the transaction that takes it is open, a redrive for later does not bring the
// job back into it.
func TestRedriveWhileTheSlotIsTaken(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "rollback"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, w := db.Conn(t), db.Conn(t)
			dead := inGroup(t, w, "q", "g")
			j := next(t, w, "q", dead)[0]
			exec(t, w, "select oq_nack($1, $2, retry => false)", j.ID, j.Token)
			exec(t, a, "begin")
			other := inGroup(t, a, "q", "g")
			held := next(t, a, "q", other)[0]
			exec(t, w, `select oq_redrive('q', patch => jsonb_build_object('run_at', clock_timestamp() + interval '50 ms'))`)
			for range 5 {
				time.Sleep(50 * time.Millisecond)
				tick(t, w, 1)
				next(t, w, "q")
			}
			exec(t, a, end)
			if end == "commit" {
				time.Sleep(150 * time.Millisecond)
				tick(t, w, 1)
				next(t, w, "q")
				audit(t, w)
				ack(t, w, held)
			}
			time.Sleep(150 * time.Millisecond)
			tick(t, w, 1)
			next(t, w, "q", dead)
			audit(t, w)
		})
	}
}

// A redrive whose snapshot is older than who took the dead job's slot does not take it from him.
func TestRedriveInAnOlderSnapshot(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, w := db.Conn(t), db.Conn(t)
			j := next(t, w, "q", inGroup(t, w, "q", "g"))[0]
			exec(t, w, "select oq_nack($1, $2, retry => false)", j.ID, j.Token)
			exec(t, a, "begin isolation level "+level)
			exec(t, a, "select 1 from oq_queues")
			second, third := inGroup(t, w, "q", "g"), inGroup(t, w, "q", "g")
			held := next(t, w, "q", second)[0]
			_, err := try[int64](a, "select oq_redrive('q')")
			if level == "read committed" && err != nil || level != "read committed" && err != nil && code(err) != "40001" {
				t.Fatal(err)
			}
			exec(t, a, "commit")
			tick(t, w, 2)
			next(t, w, "q")
			audit(t, w)
			ack(t, w, held)
			tick(t, w, 1)
			next(t, w, "q", third)
		})
	}
}

// A job that is put off by hand gives its group's turn on, though a producer of the group is just committing.
func TestPutOffBesideAProducer(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, w := db.Conn(t), db.Conn(t)
	first := inGroup(t, w, "q", "g")
	exec(t, a, "begin")
	second := inGroup(t, a, "q", "g")
	exec(t, a, "set constraints all immediate") // as its commit does, which takes a moment
	done := make(chan error)
	go func() {
		time.Sleep(30 * time.Millisecond)
		_, err := a.Exec(context.Background(), "commit")
		done <- err
	}()
	exec(t, w, "select oq_update($1, jsonb_build_object('run_at', clock_timestamp() + interval '1 hour'))", first)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	tick(t, w, 1)
	next(t, w, "q", second)
	audit(t, w)
}

// Jobs that are redriven one after the other hold up nobody of their groups before their time, in however many groups.
func TestPacedRedriveOfManyGroups(t *testing.T) {
	t.Parallel()
	const groups = 300
	db := testdb.New(t)
	c := db.Conn(t)
	enqueue := func() {
		exec(t, c, "select oq_enqueue('q', group_key => 'g' || i) from generate_series(1, $1) i", groups)
		tick(t, c, 4)
	}
	enqueue()
	for _, j := range lease(t, c, "q", groups) {
		exec(t, c, "select oq_nack($1, $2, retry => false)", j.ID, j.Token)
	}
	if ids := list[int64](t, c, "select oq_redrive('q', per_second => 0.01)"); len(ids) != groups {
		t.Fatalf("%d jobs are redriven", len(ids))
	}
	enqueue()
	// But the first is due at once, before the new job of its group.
	if n := len(lease(t, c, "q", groups)); n != groups {
		t.Errorf("%d groups go on, of %d", n, groups)
	}
	audit(t, c)
}

// Who is refused the lock of a group leaves a note, and goes on.
func TestRefusedGroupLock(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, w := db.Conn(t), db.Conn(t), db.Conn(t)
	first := inGroup(t, w, "q", "g")
	second := inGroup(t, w, "q", "g")
	third := inGroup(t, w, "q", "g")
	j := next(t, w, "q", first)[0]
	// Two that end it and cancel the next, in transactions that stay open: the second finds the first's lock.
	exec(t, a, "begin")
	ack(t, a, j)
	exec(t, b, "begin")
	exec(t, b, "select oq_cancel($1)", third)
	if n := get[int](t, b, "select count(*)::int from oq.todo"); n != 1 {
		t.Fatalf("%d todos, want the one that the refused lock left", n)
	}
	exec(t, b, "commit")
	tick(t, w, 2)
	next(t, w, "q")
	exec(t, a, "rollback")
	tick(t, w, 1)
	next(t, w, "q")
	ack(t, w, j)
	next(t, w, "q", second)
	audit(t, w)
	if n := get[int](t, w, "select count(*)::int from oq.todo"); n != 0 {
		t.Errorf("%d todos are left", n)
	}
}

// In its own transaction a producer can lease what it put in line, and nobody is in its way for it.
func TestEnqueueAndLeaseInOneTransaction(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "begin")
	first := inGroup(t, a, "q", "g")
	second := inGroup(t, a, "q", "g")
	j := next(t, a, "q", first)[0]
	next(t, a, "q")
	ack(t, a, j)
	j = next(t, a, "q", second)[0]
	third := inGroup(t, b, "q", "g")
	tick(t, b, 1)
	next(t, b, "q")
	ack(t, a, j)
	exec(t, a, "commit")
	tick(t, b, 1)
	next(t, b, "q", third)
	audit(t, b)
}

// Strict order through everything that can happen to the head of a line.
func TestGroupOrderHolds(t *testing.T) {
	t.Parallel()
	for name, happens := range map[string]struct {
		do   func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job)
		gone bool // the head does not come back
	}{
		"retry with backoff": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			if to := get[string](t, c, "select oq_nack($1, $2, 'no', retry_after => '1 hour')", j.ID, j.Token); to != "scheduled" {
				t.Fatal(to)
			}
			tick(t, c, 1)
			next(t, c, "q") // nothing overtakes it
			comesDue(t, c)
		}},
		"retry at once": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_nack($1, $2, 'no', retry_after => '0')", j.ID, j.Token)
		}},
		"lost lease": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			next(t, c, "q")
			exec(t, c, testdb.Lapse(""))
		}},
		"release": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
		}},
		"release with a delay": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2, '1 hour')", j.ID, j.Token)
			next(t, c, "q")
			comesDue(t, c)
		}},
		"worker killed in its transaction": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			w := db.Conn(t)
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			exec(t, w, "begin")
			next(t, w, "q", j.ID)
			next(t, c, "q")
			exec(t, c, "select pg_terminate_backend($1)", pid(t, w))
			until(t, c, "the worker is gone", "select not exists (select from pg_stat_activity where pid = $1)", pid(t, w))
		}},
		"ack rolled back": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "begin")
			ack(t, c, j)
			exec(t, c, "rollback")
			exec(t, c, "begin; savepoint s")
			ack(t, c, j)
			exec(t, c, "rollback to s; commit")
			next(t, c, "q")
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
		}},
		"throttle": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'g')")
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			next(t, c, "q")
			exec(t, c, "select oq_throttle('q', clock_timestamp() + interval '1 second', 'g')")
			until(t, c, "the throttle ends", "select until < clock_timestamp() from oq.throttled order by throttle_id desc limit 1")
		}},
		"pause": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2), oq_pause('q')", j.ID, j.Token)
			next(t, c, "q")
			exec(t, c, "select oq_resume('q')")
		}},
		"compaction": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			for _, table := range []string{"waiting", "ready", "group_slot", "todo", "leased"} {
				exec(t, c, "select oq.rewrite($1)", table)
			}
		}},
		"compaction while leased": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			for _, table := range []string{"waiting", "ready", "group_slot", "todo", "leased"} {
				exec(t, c, "select oq.rewrite($1)", table)
			}
			next(t, c, "q")
			ack(t, c, j)
		}},
		"rotation": {do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			for range 12 {
				exec(t, c, `update oq.generation_state set opened_at = opened_at - interval '1 year',
					closed_at = closed_at - interval '1 year'`)
				exec(t, c, "select oq_rotate()")
			}
		}},
		"cancel": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_cancel($1)", j.ID)
		}},
		"ack": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) { ack(t, c, j) }},
		"ack many": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_ack_many(array[$1::bigint], array[$2::bigint])", j.ID, j.Token)
		}},
		"next": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			id := list[int64](t, c, "select job_id from oq_next('q', acked_job_ids => array[$1::bigint], acked_tokens => array[$2::bigint])", j.ID, j.Token)
			exec(t, c, "select oq_release(job_id, token) from oq.leased")
			if len(id) != 1 || id[0] <= j.ID {
				t.Errorf("next gave %v", id)
			}
		}},
		"dead": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_nack($1, $2, 'no', retry => false)", j.ID, j.Token)
		}},
		"dead and redriven": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_nack($1, $2, 'no', retry => false)", j.ID, j.Token)
			exec(t, c, "select oq_redrive('q')") // behind the others
		}},
		"expired": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			exec(t, c, "begin; select oq.enter()")
			exec(t, c, "update oq.job set expires_at = clock_timestamp() where job_id = $1", j.ID)
			exec(t, c, "update oq.ready set expires_at = clock_timestamp() where job_id = $1", j.ID)
			exec(t, c, "insert into oq.ttl (expires_at, job_id) values (clock_timestamp(), $1)", j.ID)
			exec(t, c, "commit")
			tick(t, c, 1)
		}},
		"purged": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			exec(t, c, "select oq_purge('q', 'ready')")
		}},
		"put off": {gone: true, do: func(t *testing.T, db *testdb.DB, c *pgx.Conn, j job) {
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
			exec(t, c, `select oq_update($1, '{"run_at": "2999-01-01"}')`, j.ID)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c := db.Conn(t)
			var ids []int64
			for range 4 {
				ids = append(ids, inGroup(t, c, "q", "g"))
			}
			exec(t, c, "select oq_create_queue('q', '{\"max_lost_leases\": 9}')")
			j := next(t, c, "q", ids[0])[0]
			happens.do(t, db, c, j)
			audit(t, c)
			tick(t, c, 1)
			want := ids
			if happens.gone {
				want = ids[1:]
			}
			if name == "dead and redriven" {
				want = append(slices.Clone(ids[1:]), ids[0])
			}
			same(t, "order", inOrder(t, c, "q"), want)
			audit(t, c)
		})
	}
}

// While the head of a line is being changed by somebody, nothing overtakes it.
func TestHeadOfTheLineIsLocked(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, c := db.Conn(t), db.Conn(t)
	first := inGroup(t, c, "q", "g")
	second := inGroup(t, c, "q", "g")
	third := inGroup(t, c, "q", "g")
	j := next(t, c, "q", first)[0]
	exec(t, a, "begin")
	exec(t, a, `select oq_update($1, '{"priority": 3}')`, second)
	ack(t, c, j)
	tick(t, c, 2)
	next(t, c, "q")
	exec(t, a, "rollback")
	tick(t, c, 1)
	ack(t, c, next(t, c, "q", second)[0])
	next(t, c, "q", third)
	audit(t, c)
}

// One call ends the heads of several lines: the next of each is let in by itself, whatever is in the way of
// others. One is being changed, one's group is held by an open transaction, one has a slot of a limit that was
// taken away, and one is throttled.
func TestManyHeadsEndAtOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
	keys := []string{"free", "changed", "held", "limited"}
	ids := map[string][]int64{}
	exec(t, c, "select oq_create_queue('q')")
	exec(t, c, "select oq_limit('q', 'limited', 2)")
	for _, key := range keys {
		for range 4 {
			ids[key] = append(ids[key], inGroup(t, c, "q", key))
		}
	}
	jobs := next(t, c, "q", ids["free"][0], ids["changed"][0], ids["held"][0], ids["limited"][0], ids["limited"][1])
	exec(t, c, "select oq_limit('q', 'limited')")
	if n := get[int](t, c, "select count(*)::int from oq.limit_rule"); n != 0 {
		t.Fatalf("%d rules are left", n)
	}
	exec(t, a, "begin")
	exec(t, a, `select oq_update($1, '{"priority": 3}')`, ids["changed"][1])
	exec(t, b, "begin")
	exec(t, b, "select oq_cancel($1)", ids["held"][3])

	var second job
	var done, tokens []int64
	for _, j := range jobs {
		if j.ID == ids["limited"][1] {
			second = j
			continue
		}
		done, tokens = append(done, j.ID), append(tokens, j.Token)
	}
	if n := len(list[int64](t, c, "select oq_ack_many($1, $2)", done, tokens)); n != 4 {
		t.Fatalf("%d acked", n)
	}
	audit(t, c)
	free := next(t, c, "q", ids["free"][1])[0]
	exec(t, a, "commit")
	exec(t, b, "rollback")
	tick(t, c, 2)
	next(t, c, "q", ids["changed"][1], ids["held"][1])
	ack(t, c, second)
	ack(t, c, next(t, c, "q", ids["limited"][2])[0])
	audit(t, c)

	// Throttled while others of its queue end: nobody gets it.
	exec(t, c, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'free')")
	next(t, c, "q", ids["limited"][3])
	other := inGroup(t, c, "q", "other")
	beside := inGroup(t, c, "q", "other")
	o := next(t, c, "q", other)[0]
	exec(t, c, "select oq_ack_many($1, $2)", []int64{free.ID, o.ID}, []int64{free.Token, o.Token})
	next(t, c, "q", beside)
	audit(t, c)
}

// A throttle that is committed after a worker has begun to let in who comes next, and before it has the group's
// lock, counts: what a throttle says is read under the lock. So for one group and for several at once.
func TestThrottleBeforeTheLockOfAGroup(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]string{
		"one":  "select oq_ack(job_id, token) from oq.leased where job_id = $1 and $2 > 0",
		"many": "select oq_ack_many(array_agg(job_id), array_agg(token)) from oq.leased where job_id in ($1, $2)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			gate, throttler, w, c := db.Conn(t), db.Conn(t), db.Conn(t), db.Conn(t)
			// Whoever lets in waits at the gate, where it is told to, just before it tries for the lock.
			exec(t, c, `create function public.try_lock(key int, value int) returns boolean language plpgsql as $$
				begin
					if current_setting('test.waits', true) = 'yes' then
						perform pg_catalog.pg_advisory_xact_lock_shared(4711);
					end if;
					return pg_catalog.pg_try_advisory_xact_lock(key, value);
				end $$`)
			for _, name := range []string{"admit", "admit_one"} {
				exec(t, c, get[string](t, c, `select replace(pg_get_functiondef(oid), 'pg_try_advisory_xact_lock(', 'public.try_lock(')
					from pg_proc where proname = $1 and pronamespace = 'oq'::regnamespace`, name))
			}
			a, b := inGroup(t, c, "q", "a"), inGroup(t, c, "q", "b")
			throttled, free := inGroup(t, c, "q", "a"), inGroup(t, c, "q", "b")
			jobs := next(t, c, "q", a, b)

			exec(t, gate, "select pg_advisory_lock(4711)")
			exec(t, w, "set test.waits = 'yes'")
			done := background(t, func() error {
				_, err := w.Exec(context.Background(), end, a, b)
				return err
			})
			blocked(t, db, pid(t, w))
			exec(t, throttler, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'a')")
			exec(t, gate, "select pg_advisory_unlock(4711)")
			done()
			if name == "one" {
				for _, j := range jobs {
					if j.ID == b {
						ack(t, c, j)
					}
				}
			}
			audit(t, c)
			next(t, c, "q", free)
			exec(t, c, "select oq_throttle('q', '-infinity', 'a')")
			next(t, c, "q", throttled)
			audit(t, c)
		})
	}
}

// A throttle that comes while somebody is just leasing the head of the group, or giving it back: that goes on, but if
// the job is ready in the end nobody gets it before its time.
func TestThrottleBesideAnOpenLease(t *testing.T) {
	t.Parallel()
	for name, lastly := range map[string]string{"lease": "rollback", "release": "commit"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, c := db.Conn(t), db.Conn(t)
			head := inGroup(t, c, "q", "g")
			if name == "lease" {
				exec(t, a, "begin")
				next(t, a, "q", head)
			} else {
				j := next(t, c, "q", head)[0]
				exec(t, a, "begin")
				exec(t, a, "select oq_release($1, $2)", j.ID, j.Token)
			}
			exec(t, c, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'g')")
			exec(t, a, lastly)
			exec(t, c, "update oq.todo set due_at = clock_timestamp()")
			tick(t, c, 1)
			next(t, c, "q")
			if n := get[int](t, c, "select count(*)::int from oq.todo where due_at < clock_timestamp() + interval '1 minute'"); n != 0 {
				t.Errorf("%d todos are left", n)
			}
			exec(t, c, "select oq_throttle('q', '-infinity', 'g')")
			tick(t, c, 1)
			next(t, c, "q", head)
			audit(t, c)
		})
	}
}

// Eight producers and eight workers in a dozen groups, jobs failing and leases being lost: one at a time of
// each group, in order, and none is left.
func TestGroupsUnderLoad(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	groups, each := 12, 60
	w := db.Conn(t)
	exec(t, w, `select oq_create_queue('q', '{"retry": {"kind": "fixed", "base": "5 ms"}, "max_retries": 1000, "max_lost_leases": 1000}')`)
	exec(t, w, `create table seen (n bigint generated always as identity, job_id bigint, grp text, v int, done boolean default false)`)
	var produced, finished atomic.Int64
	var running sync.Map
	var producers sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for g := range groups {
		c := db.Conn(t)
		producers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 5))
			for v := 0; v < each; {
				n := min(1+r.IntN(3), each-v)
				level := levels[r.IntN(2)]
				tx, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.TxIsoLevel(level)})
				if err != nil {
					t.Error(err)
					return
				}
				for i := range n {
					if _, err := tx.Exec(ctx, "select oq_enqueue('q', to_jsonb($1::int), group_key => $2)", v+i, fmt.Sprint("g", g)); err != nil {
						t.Error(err)
						return
					}
				}
				if r.IntN(5) == 0 {
					tx.Rollback(ctx)
					continue
				}
				if err := tx.Commit(ctx); err != nil {
					t.Error(err)
					return
				}
				v += n
				produced.Add(int64(n))
			}
		})
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	ticker := db.Conn(t)
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				if _, err := ticker.Exec(ctx, "select from oq_tick()"); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range 8 {
		c := db.Conn(t)
		others.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 6))
			for {
				select {
				case <-stop:
					return
				default:
				}
				rows, err := c.Query(ctx, "select job_id, lease_token, group_key, payload::int from oq_lease('q', max_jobs => $1)", 1+r.IntN(4))
				if err != nil {
					t.Error(err)
					return
				}
				type held struct {
					ID, Token int64
					Group     string
					V         int
				}
				jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[held])
				if err != nil {
					t.Error(err)
					return
				}
				for _, j := range jobs {
					if other, twice := running.LoadOrStore(j.Group, j.ID); twice {
						t.Errorf("%d and %v of %s run at once", j.ID, other, j.Group)
					}
				}
				for _, j := range jobs {
					running.Delete(j.Group)
					switch r.IntN(10) {
					case 0:
						_, err = c.Exec(ctx, "select oq_nack($1, $2, 'no')", j.ID, j.Token)
					case 1:
						_, err = c.Exec(ctx, "select oq_release($1, $2)", j.ID, j.Token)
					default:
						_, err = c.Exec(ctx, `with done as (insert into seen (job_id, grp, v) values ($1, $3, $4))
							select oq_ack($1, $2, strict => true)`, j.ID, j.Token, j.Group, j.V)
						finished.Add(1)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	producers.Wait()
	want := int64(groups * each)
	deadline := time.Now().Add(patience)
	for finished.Load() < want && time.Now().Before(deadline) && !t.Failed() {
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	others.Wait()
	if finished.Load() != want || produced.Load() != want {
		t.Errorf("%d produced, %d finished, want %d", produced.Load(), finished.Load(), want)
		for _, s := range list[string](t, w, "select job_id || ' ' || state || ' ' || group_key from oq_jobs where state <> 'completed' limit 5") {
			t.Log(s)
		}
		for _, s := range list[string](t, w, "select t::text from oq.todo t limit 5") {
			t.Log("todo ", s)
		}
	}
	for _, s := range list[string](t, w, `select grp || ': ' || v || ' after ' || before from (
			select grp, v, lag(v) over (partition by grp order by n) as before from seen) x where v <> before + 1`) {
		t.Error("order: ", s)
	}
	audit(t, w)
	t.Logf("%d jobs of %d groups", want, groups)
}

// The sweep locks the groups that it found idle, and a bounded number of them, however many there are and whether they are busy.
func TestSweepTakesFewLocks(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `insert into oq.group_slot (group_id, job_id, low, admitted_at, slot)
		select i, -i, 0, now() - interval '1 hour', 0 from generate_series(1, 9000) i`)
	exec(t, c, `insert into oq.leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost)
		select -i, 1, 0, now() + interval '1 day', now(), 1, 0, 0 from generate_series(1, 9000) i where i % 3 = 0`)
	locks := `select count(*)::int from pg_locks
		where locktype = 'advisory' and pid = pg_backend_pid() and classid = (hashtext('oq:group')::bigint & 4294967295)::oid`
	left := 9000
	for turn := 0; left > 3000; turn++ {
		if turn == 100 {
			t.Fatalf("%d idle groups are left", left-3000)
		}
		exec(t, c, "begin")
		exec(t, c, "select oq.sweep_groups(1000)")
		held := get[int](t, c, locks)
		exec(t, c, "commit")
		now := get[int](t, c, "select count(*)::int from oq.group_slot")
		if held > 500 || held != left-now {
			t.Fatalf("the sweep holds %d groups, and %d slots are gone", held, left-now)
		}
		left = now
	}
	if n := get[int](t, c, "select count(*)::int from oq.group_slot s join oq.leased l using (job_id)"); n != 3000 {
		t.Errorf("%d of 3000 busy slots are left", n)
	}
}

// A group that an open transaction holds leaves a todo for each enqueue. However many they are, and however old, those of
// other groups have their turn; and they do not pile up.
func TestTodosOfAHeldGroupStarveNobody(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, c := db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_enqueue('q', group_key => k) from unnest('{g,g,h,h}'::text[]) k")
	jobs := lease(t, c, "q", 2)
	if len(jobs) != 2 {
		t.Fatalf("leased %d of two groups", len(jobs))
	}
	exec(t, a, "begin")
	ack(t, a, jobs[0]) // holds group g, and its line
	exec(t, c, "do $$ begin for i in 1..2500 loop perform oq_enqueue('q', group_key => 'g'); commit; end loop; end $$")
	todos := "select count(*)::int from oq.todo where due_at <= clock_timestamp()"
	if n := get[int](t, c, todos); n < 2000 {
		t.Fatalf("%d todos, the test needs 2000", n)
	}
	exec(t, c, "update oq.todo set due_at = due_at - interval '1 minute'")
	exec(t, c, "select oq_limit('q', 'h', max_running => 2)")
	exec(t, c, "select setval('oq.beat', 1)") // the first tick of a second looks for what is so old
	for range 5 {
		tick(t, c, 1)
	}
	if got := get[string](t, c, "select string_agg(state, ' ' order by job_id) from oq_jobs where group_key = 'h'"); got != "leased ready" {
		t.Errorf("the jobs of the other group are %s", got)
	}
	if n := get[int](t, c, "select count(*)::int from oq.todo"); n > 10 {
		t.Errorf("%d todos are left of one group", n)
	}
	audit(t, c)
	exec(t, a, "commit")
	until(t, c, "the group goes on", "select count(*) > 0 from oq_tick(), oq_jobs where group_key = 'g' and state = 'ready'")
	audit(t, c)
	order := []int64{}
	for range 20 {
		for _, j := range lease(t, c, "q", 10) {
			order = append(order, j.ID)
			ack(t, c, j)
		}
	}
	g := list[int64](t, c, "select job_id from oq_jobs where group_key = 'g' and state = 'completed' order by finished_at, job_id")
	if len(g) < 10 || !slices.IsSorted(g) {
		t.Errorf("order of the group: %v (of %v)", g, order)
	}
	audit(t, c)
}

// The sweep goes round all that is in line, so many groups a time, and finds each that was forgotten.
func TestSweepFindsEachForgottenGroup(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "begin")
	exec(t, c, "select oq_create_queue('q')")
	exec(t, c, `insert into oq.waiting (job_id, lane, holder, group_id, position)
		select i, (select queue_id << 16 from oq.queue limit 1), 'group', 1 + i % 3000, i from generate_series(1, 9000) i`)
	found := 0
	for turn := 0; found < 3000; turn++ {
		if turn == 10 {
			t.Fatalf("%d of 3000 groups were found", found)
		}
		exec(t, c, "select oq.sweep_groups(1000)")
		now := get[int](t, c, "select count(distinct id)::int from oq.todo where kind = 'group'")
		if now > found+1000 {
			t.Fatalf("%d groups were looked at in one turn", now-found)
		}
		found = now
	}
	exec(t, c, "rollback")
}

// A dump's rows may come to tables that have their triggers already (--schema-only, then --data-only), and before the
// sequences: nobody puts them in line again, at positions that are used up.
func TestRowsOfADumpKeepTheirPlaceInLine(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	var ids []int64
	for range 4 {
		ids = append(ids, get[int64](t, c, "select oq_enqueue('q', group_key => 'g')"))
	}
	exec(t, c, "create temp table line as table oq.waiting; select set_config('my.last', last_value::text, false) from oq.position")
	exec(t, c, "delete from oq.waiting")
	exec(t, c, "select setval('oq.position', 1, false)")
	exec(t, c, "insert into oq.waiting overriding system value table line")
	exec(t, c, "select setval('oq.position', current_setting('my.last')::bigint)")
	if n := get[int](t, c, "select count(*)::int from oq.waiting w join line l using (job_id, position)"); n != 3 {
		t.Errorf("%d jobs have their places in line, want 3", n)
	}
	for _, id := range ids {
		jobs := lease(t, c, "q", 10)
		if len(jobs) != 1 || jobs[0].ID != id {
			t.Fatalf("leased %+v, want %d", jobs, id)
		}
		ack(t, c, jobs[0])
	}
	audit(t, c)
}
