package concurrency

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestEachJobGoesToOneOfManyWorkers(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ids := list[int64](t, db.Pool,
		"select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[3000]))")
	ids = append(ids, list[int64](t, db.Pool,
		"select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[1000]), 9)")...)

	var mu sync.Mutex
	holders := map[int64]int{}
	tokens := map[int64]string{}
	deadline := time.Now().Add(patience)
	together(t, db, 16, func(i int, c *pgx.Conn) error {
		for call := 0; ; call++ {
			jobs, err := tryLease(c, "q", 1+(i+call)%20, 600)
			if err != nil {
				return err
			}
			// Another worker may hold the last rows, or a tick them for an instant: the lane is
			// empty for everybody only when all is leased.
			mu.Lock()
			for _, j := range jobs {
				holders[j.ID]++
				caller := fmt.Sprintf("%d of session %d", call, i)
				if other, taken := tokens[j.Token]; taken && other != caller {
					err = fmt.Errorf("token %d was given to calls %s and %s", j.Token, other, caller)
				}
				tokens[j.Token] = caller
			}
			done := len(holders) == len(ids)
			mu.Unlock()
			if err != nil || done {
				return err
			}
			if call%10 == i%10 {
				if _, err := c.Exec(context.Background(), "select from oq_tick()"); err != nil {
					return err
				}
			}
			if time.Now().After(deadline) {
				return errors.New("some jobs are never found")
			}
		}
	})
	for _, id := range ids {
		if holders[id] != 1 {
			t.Errorf("job %d was leased %d times", id, holders[id])
		}
	}
	audit(t, db.Pool)
}

func TestFirstInFirstOutByPriority(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	var want []int64
	byPriority := map[int][]int64{}
	for i := range 60 {
		priority := []int{0, 5, -3, 32767, -32768}[i%5]
		byPriority[priority] = append(byPriority[priority],
			get[int64](t, c, "select oq_enqueue('q', priority => $1)", priority))
		if i%20 == 19 {
			age(t, c)
			tick(t, c, 1)
		}
	}
	for _, priority := range []int{32767, 5, 0, -3, -32768} {
		want = append(want, byPriority[priority]...)
	}
	var got []int64
	for _, n := range []int{1, 1, 7, 13, 1, 30, 100} {
		for _, j := range lease(t, c, "q", n) {
			got = append(got, j.ID)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("leased in the order\n%v, want\n%v", got, want)
	}
}

func TestReturnedJobsComeBehindTheOthersWithLargerTokens(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `select oq_create_queue('q', '{"max_retries": 1000, "max_lost_leases": 1000}')`)
	ids := list[int64](t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[3]))")
	last := map[int64]int64{}
	for turn := range 30 {
		j := lease(t, c, "q", 1)[0]
		if want := ids[turn%3]; j.ID != want {
			t.Fatalf("turn %d: job %d, want %d", turn, j.ID, want)
		}
		if j.Token <= last[j.ID] {
			t.Errorf("job %d: token %d after %d", j.ID, j.Token, last[j.ID])
		}
		last[j.ID] = j.Token
		switch turn / 3 % 3 {
		case 0:
			exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
		case 1:
			exec(t, c, "select oq_nack($1, $2, 'no', true, '0')", j.ID, j.Token)
		case 2:
			exec(t, c, testdb.Lapse("where job_id = $1"), j.ID)
			tick(t, c, 1)
		}
	}
	audit(t, c)
}

// A lease committed asynchronously may be lost in a crash: the sequence goes back, the clock doesn't.
func TestTokensRiseThoughTheSequenceGoesBack(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "select oq_enqueue('q')")
	last := int64(0)
	for range 20 {
		exec(t, c, "select setval('oq.token', 0)")
		j := lease(t, c, "q", 1)[0]
		if j.Token <= last {
			t.Fatalf("token %d after %d", j.Token, last)
		}
		if j.Token >= 1<<53 {
			t.Fatalf("token %d does not fit a float", j.Token)
		}
		last = j.Token
		exec(t, c, "select oq_release($1, $2)", j.ID, j.Token)
	}
	// A rolled-back lease was shown to its worker as well.
	for range 20 {
		exec(t, c, "begin")
		exec(t, c, "select setval('oq.token', 0)")
		j := lease(t, c, "q", 1)[0]
		exec(t, c, "rollback")
		if j.Token <= last {
			t.Fatalf("token %d after %d, which was rolled back", j.Token, last)
		}
		last = j.Token
	}
}

func TestAckAgainstReap(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	worker, reaper := db.Conn(t), db.Conn(t)

	t.Run("ack first", func(t *testing.T) {
		exec(t, worker, "select oq_enqueue('q')")
		j := lease(t, worker, "q", 1, 1)[0]
		passes(t, worker, 1100*time.Millisecond)
		exec(t, worker, "begin")
		if !ack(t, worker, j) {
			t.Error("an ack after expiry, before anyone reaped, was refused")
		}
		exec(t, reaper, "set lock_timeout = '2s'")
		tick(t, reaper, 2)
		if jobs := lease(t, reaper, "q", 1); len(jobs) != 0 {
			t.Errorf("leased %v, whose ack is under way", jobs)
		}
		exec(t, worker, "commit")
		expect(t, drain(t, db, "q"))
		if got := get[string](t, reaper, "select state from oq_result($1)", j.ID); got != "completed" {
			t.Errorf("job is %s, want completed", got)
		}
	})
	t.Run("ack first, rolled back", func(t *testing.T) {
		exec(t, worker, "select oq_enqueue('q')")
		j := lease(t, worker, "q", 1, 1)[0]
		passes(t, worker, 1100*time.Millisecond)
		exec(t, worker, "begin")
		ack(t, worker, j)
		tick(t, reaper, 2)
		exec(t, worker, "rollback")
		until(t, reaper, "the job is back", "select count(*) > 0 and (select state = 'ready' from oq_get($1)) from oq_tick()", j.ID)
		expect(t, drain(t, db, "q"), j.ID)
	})
	t.Run("reap first", func(t *testing.T) {
		exec(t, worker, "select oq_enqueue('q')")
		j := lease(t, worker, "q", 1, 1)[0]
		passes(t, worker, 1100*time.Millisecond)
		exec(t, reaper, "begin")
		exec(t, reaper, "select oq_reap()")
		wait := background(t, func() error {
			accepted, err := try[bool](worker, "select oq_ack($1, $2)", j.ID, j.Token)
			if err == nil && accepted[0] {
				err = errors.New("ack accepted for a job that was reaped")
			}
			return err
		})
		blocked(t, db, pid(t, worker))
		exec(t, reaper, "commit")
		wait()
		if _, err := try[bool](worker, "select oq_ack($1, $2, strict => true)", j.ID, j.Token); code(err) != "OQ002" {
			t.Errorf("strict ack of a lost lease: %q, want OQ002", code(err))
		}
		// Somebody else has it now, and the first holder's token is good for nothing.
		heir := lease(t, reaper, "q", 1)[0]
		if heir.ID != j.ID || heir.Token <= j.Token || heir.Attempt != 2 {
			t.Errorf("leased %+v after %+v", heir, j)
		}
		for _, sql := range []string{
			"select oq_ack($1, $2)",
			"select oq_nack($1, $2) is not null",
			"select oq_release($1, $2)",
			"select oq_heartbeat($1, $2) <> 'lost'",
			"select count(*) > 0 from oq_ack_many(array[$1::bigint], array[$2::bigint])",
			"select bool_or(status <> 'lost') from oq_heartbeat_many(array[$1::bigint], array[$2::bigint])",
			"select count(*) > 0 from oq_next('q', acked_job_ids => array[$1::bigint], acked_tokens => array[$2::bigint])",
		} {
			if get[bool](t, worker, sql, j.ID, j.Token) {
				t.Errorf("%s: a lost lease was accepted", sql)
			}
			if got := get[string](t, reaper, "select oq_heartbeat($1, $2)", heir.ID, heir.Token); got != "ok" {
				t.Fatalf("after %s of a lost lease the other's is %s", sql, got)
			}
		}
		if !ack(t, reaper, heir) {
			t.Error("the ack of the second holder was refused")
		}
		expect(t, drain(t, db, "q"))
	})
	audit(t, db.Pool)
}

// However many leases stand before it that an open transaction holds, or that end within a second and are extended in time, one
// that has expired comes back, whoever looks.
func TestReapBehindLeasesThatStay(t *testing.T) {
	t.Parallel()
	for name, held := range map[string]bool{"held": true, "extended": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			c, w := db.Conn(t), db.Conn(t)
			list[int64](t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[51]))")
			jobs := lease(t, c, "q", 50, 1)
			last := lease(t, c, "q", 1, 1)[0]
			if held {
				exec(t, w, "begin")
				ids, tokens := split(jobs)
				list[int64](t, w, "select oq_ack_many($1, $2)", ids, tokens)
				passes(t, c, 1100*time.Millisecond)
			} else {
				exec(t, c, "update oq.leased set expires_at = clock_timestamp() + case when job_id = $1 then '0 s' else '900 ms' end::interval",
					last.ID)
			}
			for _, sql := range []string{"select oq_reap(1)", "select from oq_tick(5)"} {
				exec(t, db.Conn(t), sql)
			}
			if got := get[string](t, c, "select state from oq_get($1)", last.ID); got != "ready" {
				t.Errorf("the job is %s", got)
			}
			if held {
				exec(t, w, "commit")
			}
			audit(t, c)
		})
	}
}

// How long the next look is put off goes by how much there is to read, too: this one waited for somebody's lock.
func TestALookThatWaitedPutsOffNoOther(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, a, "select oq_enqueue('q')")
	j := lease(t, a, "q", 1, 2)[0]
	exec(t, a, "begin")
	exec(t, a, "lock table oq.leased")
	wait := background(t, func() error {
		_, err := try[int64](b, "select done from oq_tick()")
		return err
	})
	blocked(t, db, pid(t, b))
	passes(t, a, 500*time.Millisecond)
	exec(t, a, "commit")
	wait()
	passes(t, a, 2*time.Second)
	tick(t, b, 1)
	if got := get[string](t, a, "select state from oq_get($1)", j.ID); got != "ready" {
		t.Errorf("the job is %s", got)
	}
}

// An ack waits for a heartbeat of the same lease, which moves the row: the lease is still its own.
func TestCallsThatWaitForAHeartbeatKeepTheirLease(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	for _, sql := range []string{
		"select oq_ack($1, $2)",
		"select oq_nack($1, $2) is not null",
		"select oq_release($1, $2)",
		"select oq_heartbeat($1, $2) = 'ok'",
		"select count(*) = 1 from oq_ack_many(array[$1::bigint], array[$2::bigint])",
		"select status = 'ok' from oq_heartbeat_many(array[$1::bigint], array[$2::bigint])",
		`select count(*) >= 0 from oq_next('none', acked_job_ids => array[$1::bigint],
			acked_tokens => array[$2::bigint])`,
	} {
		queue := fmt.Sprintf("q%d", len(sql))
		exec(t, a, "select oq_enqueue($1)", queue)
		j := lease(t, a, queue, 1)[0]
		exec(t, a, "begin")
		exec(t, a, "select oq_heartbeat($1, $2, 600)", j.ID, j.Token)
		wait := background(t, func() error {
			accepted, err := try[bool](b, sql, j.ID, j.Token)
			if err == nil && !accepted[0] {
				err = errors.New("a current lease was refused: " + sql)
			}
			return err
		})
		blocked(t, db, pid(t, b))
		exec(t, a, "commit")
		wait()
		if sql[7:14] == "count(*" && get[bool](t, a,
			"select exists (select from oq.leased where job_id = $1)", j.ID) {
			t.Errorf("still leased after %s", sql)
		}
	}
	audit(t, db.Pool)
}

func TestCancelAgainstLease(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	exec(t, b, "set lock_timeout = '5s'")

	t.Run("lease open", func(t *testing.T) {
		for _, end := range []string{"commit", "rollback"} {
			id := get[int64](t, a, "select oq_enqueue('q')")
			exec(t, a, "begin")
			j := lease(t, a, "q", 1)[0]
			var cancelled bool
			var failure string
			wait := background(t, func() error {
				done, err := try[bool](b, "select oq_cancel($1)", id)
				failure = code(err)
				cancelled = err == nil && done[0]
				if failure == "55P03" {
					return nil
				}
				return err
			})
			// It may wait for the lease, for a bounded time, or say at once that it could not.
			until(t, db.Pool, "cancel waits or returned", `select exists (select from pg_stat_activity
				where pid = $1 and (wait_event_type = 'Lock' or state = 'idle'))`, pid(t, b))
			exec(t, a, end)
			wait()
			state := get[string](t, a, "select state from oq_get($1)", id)
			switch {
			case cancelled && state != "cancelled":
				t.Errorf("%s: cancelled, but the job is %s", end, state)
			case !cancelled && state == "cancelled":
				t.Errorf("%s: not cancelled, but the job is", end)
			}
			beat := get[string](t, a, "select oq_heartbeat($1, $2)", j.ID, j.Token)
			want := "ok"
			if end == "rollback" {
				want = "lost"
			} else if cancelled {
				want = "cancelled"
			}
			if beat != want {
				t.Errorf("%s: heartbeat says %s, want %s (cancelled %v, %s)", end, beat, want, cancelled, failure)
			}
			drain(t, db, "q")
			exec(t, a, "select oq_ack($1, $2)", j.ID, j.Token)
		}
	})
	t.Run("cancel open", func(t *testing.T) {
		for _, end := range []string{"commit", "rollback"} {
			id := get[int64](t, a, "select oq_enqueue('q')")
			exec(t, a, "begin")
			if !get[bool](t, a, "select oq_cancel($1)", id) {
				t.Fatal("a ready job could not be cancelled")
			}
			if jobs := lease(t, b, "q", 1); len(jobs) != 0 {
				t.Errorf("leased %v, which is being cancelled", jobs)
			}
			exec(t, a, end)
			if end == "rollback" {
				expect(t, drain(t, db, "q"), id)
			} else {
				expect(t, drain(t, db, "q"))
			}
		}
	})
	t.Run("all at once", func(t *testing.T) {
		ids := list[int64](t, a, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[300]))")
		var mu sync.Mutex
		outcome := map[int64]int{}
		together(t, db, 6, func(i int, c *pgx.Conn) error {
			if i%2 == 0 {
				for _, id := range ids {
					done, err := try[bool](c, "select oq_cancel($1)", id)
					if code(err) == "55P03" {
						continue
					}
					if err != nil {
						return err
					}
					if done[0] {
						mu.Lock()
						outcome[id]++
						mu.Unlock()
					}
				}
				return nil
			}
			for {
				jobs, err := tryLease(c, "q", 3)
				if err != nil || len(jobs) == 0 {
					return err
				}
				for _, j := range jobs {
					done, err := try[bool](c, "select oq_ack($1, $2)", j.ID, j.Token)
					if err != nil {
						return err
					}
					if done[0] {
						mu.Lock()
						outcome[j.ID]++
						mu.Unlock()
					}
				}
			}
		})
		for id := range drain(t, db, "q") {
			outcome[id]++
		}
		for _, id := range ids {
			if outcome[id] != 1 {
				t.Errorf("job %d ended %d times", id, outcome[id])
			}
		}
	})
	audit(t, db.Pool)
}

func TestWhatRollsBackLeavesNothing(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	for _, undo := range [][2]string{{"begin", "rollback"}, {"begin; savepoint s", "rollback to s; commit"}} {
		exec(t, c, undo[0])
		id := get[int64](t, c, "select oq_enqueue('fresh', priority => 3)")
		exec(t, c, undo[1])
		if n := get[int](t, c, "select count(*)::int from oq_get($1)", id); n != 0 {
			t.Errorf("%s: the job is there", undo[1])
		}
		expect(t, drain(t, db, "fresh"))

		id = get[int64](t, c, "select oq_enqueue('q')")
		exec(t, c, undo[0])
		j := lease(t, c, "q", 1)[0]
		exec(t, c, undo[1])
		if got := get[string](t, c, "select state || attempt from oq_get($1)", id); got != "ready0" {
			t.Errorf("%s: a lease that was undone left the job %s", undo[1], got)
		}
		if ack(t, c, j) {
			t.Errorf("%s: the token of a lease that was undone is accepted", undo[1])
		}

		j = lease(t, c, "q", 1)[0]
		for _, sql := range []string{"select oq_ack($1, $2)", "select oq_nack($1, $2)", "select oq_release($1, $2)",
			"select oq_ack_many(array[$1::bigint], array[$2::bigint])"} {
			exec(t, c, undo[0])
			exec(t, c, sql, j.ID, j.Token)
			exec(t, c, undo[1])
			if got := get[string](t, c, "select oq_heartbeat($1, $2)", j.ID, j.Token); got != "ok" {
				t.Errorf("%s after %s: the lease is %s", undo[1], sql, got)
			}
		}
		ack(t, c, j)
	}
	// The savepoint gave its epoch's lock back with what it undid; what follows takes its own.
	exec(t, c, "begin; savepoint s")
	exec(t, c, "select oq_enqueue('q')")
	exec(t, c, "rollback to s")
	id := get[int64](t, c, "select oq_enqueue('q')")
	other := db.Conn(t)
	flow(t, other, "q")
	exec(t, c, "commit")
	tick(t, other, 1)
	jobs := lease(t, other, "q", 10)
	if len(jobs) != 1 || jobs[0].ID != id {
		t.Errorf("leased %v, want job %d", jobs, id)
	}
	audit(t, db.Pool)
}

// An open lease stands at the front of the lane. The others go on behind it; after a second the mark
// passes over it, and what it gives back comes to the end of the lane.
func TestOpenLeaseAtTheFront(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"commit", "rollback"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, b := db.Conn(t), db.Conn(t)
			ids := list[int64](t, b, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[50]))")
			exec(t, a, "begin")
			held := lease(t, a, "q", 5)
			if len(held) != 5 || held[0].ID != ids[0] {
				t.Fatalf("leased %v", held)
			}
			seen := drain(t, db, "q")
			expect(t, seen, ids[5:]...)
			until(t, b, "the mark passes over the open lease", `select oq_advance() >= 0 and
				(select max(low) > $1 from oq.mark where lane >= 0)`, ids[4])
			if n := get[int](t, b, "select count(*)::int from oq.passed"); n != 5 {
				t.Errorf("%d rows are remembered, want 5", n)
			}
			more := list[int64](t, b, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[10]))")
			expect(t, drain(t, db, "q"), more...)
			exec(t, a, end)
			if end == "rollback" {
				tick(t, b, 1)
				back := lease(t, b, "q", 10)
				if len(back) != 5 {
					t.Fatalf("%d jobs came back, want 5", len(back))
				}
				for i, j := range back {
					if j.ID != ids[i] || j.Token <= held[i].Token {
						t.Errorf("job %d with token %d came back, want %d above %d", j.ID, j.Token, ids[i], held[i].Token)
					}
					ack(t, b, j)
				}
			} else {
				for _, j := range held {
					if !ack(t, a, j) {
						t.Errorf("the ack of job %d was refused", j.ID)
					}
				}
			}
			expect(t, drain(t, db, "q"))
			tick(t, b, 2)
			if n := get[int](t, b, "select count(*)::int from oq.passed"); n != 0 {
				t.Errorf("%d rows are still remembered", n)
			}
			audit(t, db.Pool)
		})
	}
}

func TestTicksAtOnce(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `select oq_create_queue('q', '{"max_lost_leases": 100}')`)
	var ids []int64
	for i := range 400 {
		ids = append(ids, get[int64](t, c, `select oq_enqueue('q', options => jsonb_build_object('delay', $1::text))`,
			fmt.Sprintf("%d ms", 100+i)))
	}
	ids = append(ids, list[int64](t, c, "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[400]))")...)
	lease(t, c, "q", 400, 1)
	expired := get[int64](t, c, `select oq_enqueue('q', priority => -1, options => '{"ttl": "300 ms"}')`)

	warnings := make(chan string, 1000)
	stop := time.Now().Add(2 * time.Second)
	together(t, db, 6, func(_ int, _ *pgx.Conn) error {
		c := watched(t, db, warnings)
		for time.Now().Before(stop) {
			if _, err := c.Exec(context.Background(), "select from oq_tick(37)"); err != nil {
				return err
			}
		}
		return nil
	})
	close(warnings)
	for warning := range warnings {
		t.Errorf("warning: %s", warning)
	}
	expect(t, drain(t, db, "q"), ids...)
	if got := get[string](t, c, "select state from oq_get($1)", expired); got != "expired" {
		t.Errorf("the job with a time to live is %s", got)
	}
	if n := get[int](t, c, "select count(*)::int from oq.attempt where outcome = 'lost'"); n != 400 {
		t.Errorf("%d lost leases recorded, want 400", n)
	}
	audit(t, db.Pool)
}
