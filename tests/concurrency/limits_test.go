package concurrency

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// duration of the tests that look at every instant; OQ_TEST_LIMIT_SECONDS=30 runs them longer.
func limitSeconds(t *testing.T) time.Duration {
	if text := os.Getenv("OQ_TEST_LIMIT_SECONDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n) * time.Second
	}
	return 3 * time.Second
}

// crowd is how 16 workers go at a queue. Some hold their lease in an open transaction, some vanish, some fail.
func crowd(t *testing.T, db *testdb.DB, queue string, runs time.Duration, vanish bool) (taken int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runs+patience)
	defer cancel()
	var sessions []*pgx.Conn
	for range 16 {
		sessions = append(sessions, db.Conn(t))
	}
	stop := make(chan struct{})
	time.AfterFunc(runs, func() { close(stop) }) // Once all are there.
	var count atomic.Int64
	var wg sync.WaitGroup
	for i, c := range sessions {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 9))
			for {
				select {
				case <-stop:
					return
				default:
				}
				open := r.IntN(4) == 0
				if open {
					if _, err := c.Exec(ctx, "begin"); err != nil {
						t.Error(err)
						return
					}
				}
				jobs, err := tryLease(c, queue, 1+r.IntN(3), 1)
				if err != nil {
					t.Error(err)
					return
				}
				count.Add(int64(len(jobs)))
				if open {
					time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
					if _, err := c.Exec(ctx, []string{"commit", "commit", "rollback"}[r.IntN(3)]); err != nil {
						t.Error(err)
						return
					}
				}
				time.Sleep(time.Duration(r.IntN(15)) * time.Millisecond)
				for _, j := range jobs {
					sql := "select oq_ack($1, $2)"
					switch n := r.IntN(60); {
					case n == 0 && vanish:
						continue // its lease ends by itself
					case n < 6:
						sql = "select oq_nack($1, $2, 'no', retry_after => '0')"
					case n < 12:
						sql = "select oq_release($1, $2)"
					case n < 18:
						sql = "select oq_heartbeat($1, $2, 1), oq_ack($1, $2)"
					}
					if _, err := c.Exec(ctx, sql, j.ID, j.Token); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return count.Load()
}

// Sixteen workers and a limit of five: never a sixth lease at any instant. A trigger writes down when each
// lease began, was extended and ended, in the transactions that did it; a sampler looks in between.
func TestNeverASixthLease(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 5} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			w := db.Conn(t)
			exec(t, w, `select oq_create_queue('q', '{"max_retries": 32767, "max_lost_leases": 32767}')`)
			exec(t, w, "select oq_limit('q', max_running => $1)", limit)
			exec(t, w, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[20000]))")
			// When it is seen by others that a lease is there is later than this, when it is gone no earlier
			// than this: what overlaps here ran together. An expired lease counts to its end.
			exec(t, w, `create table public.history (job_id bigint, token bigint, was_at timestamptz, until timestamptz, what text);
				create function note() returns trigger language plpgsql as $$
				begin
					if tg_op = 'DELETE' then
						insert into public.history values (old.job_id, old.token, clock_timestamp(), old.expires_at, 'end');
					else
						insert into public.history values (new.job_id, new.token, clock_timestamp(), new.expires_at, lower(tg_op));
					end if;
					return null;
				end $$;
				create trigger note after insert or update or delete on oq.leased for each row execute function note();`)
			seconds := limitSeconds(t)
			most, looks := 0, 0
			sampler := db.Conn(t)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					n, err := try[int](sampler, "select count(*)::int from oq.leased where expires_at > clock_timestamp()")
					if err != nil {
						t.Error(err)
						return
					}
					most, looks = max(most, n[0]), looks+1
					time.Sleep(time.Millisecond)
				}
			})
			ticker := db.Conn(t)
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
						if _, err := ticker.Exec(context.Background(), "select from oq_tick()"); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
			taken := crowd(t, db, "q", seconds, true)
			close(stop)
			wg.Wait()
			if most > limit {
				t.Errorf("the sampler saw %d leases at once", most)
			}
			// Each lease from its beginning to its end, or to its expiry where that was first. At each
			// beginning: how many of them are there.
			worst := get[int](t, w, `with l as materialized (
					select job_id, token, min(was_at) as began,
						least(coalesce(max(was_at) filter (where what = 'end'), 'infinity'), max(until)) as ended
					  from history group by 1, 2),
				steps as (select began as at, 1 as step from l where began < ended union all select ended, -1 from l where began < ended)
				select max(n)::int from (select sum(step) over (order by at, step rows unbounded preceding) as n from steps) x`)
			if worst > limit {
				t.Errorf("%d leases ran at once, by their own times", worst)
			}
			if worst < limit || taken < int64(3*seconds/time.Second) {
				t.Errorf("at most %d ran at once, %d in all: the limit is not used up", worst, taken)
			}
			// What vanished workers held is free again once their leases have ended.
			passes(t, w, 1100*time.Millisecond)
			if n := len(lease(t, w, "q", 100)); n != limit {
				t.Errorf("leased %d at the end, want %d", n, limit)
			}
			audit(t, w)
			t.Logf("%d leases, %d looks, at most %d at once", taken, looks, worst)
		})
	}
}

// An open transaction holds the slot of what it leased, and no other; an idle one holds none.
func TestOpenLeaseHoldsItsSlotOnly(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_create_queue('q')")
	exec(t, c, "select oq_limit('q', max_running => 3)")
	exec(t, a, "begin")
	if n := len(lease(t, a, "q", 5)); n != 0 {
		t.Fatal(n)
	}
	exec(t, c, "select oq_enqueue('q') from generate_series(1, 10)")
	exec(t, b, "begin")
	held := lease(t, b, "q", 2)
	if len(held) != 2 {
		t.Fatalf("%d of two", len(held))
	}
	jobs := lease(t, c, "q", 9)
	if len(jobs) != 1 {
		t.Fatalf("%d leased beside an open lease of two of three", len(jobs))
	}
	exec(t, b, "rollback")
	more := lease(t, c, "q", 9)
	if len(more) != 2 {
		t.Fatalf("%d leased after the rollback", len(more))
	}
	// An open ack keeps the slot until it commits; who acks can use it at once.
	exec(t, b, "begin")
	ack(t, b, jobs[0])
	if n := len(lease(t, c, "q", 9)); n != 0 {
		t.Errorf("%d leased beside an open ack", n)
	}
	if n := len(lease(t, b, "q", 9)); n != 1 {
		t.Errorf("%d leased by who acked", n)
	}
	exec(t, b, "commit")
	if n := len(lease(t, c, "q", 9)); n != 0 {
		t.Errorf("%d leased with all slots taken", n)
	}
	exec(t, a, "commit")
	exec(t, a, "begin isolation level repeatable read")
	if _, err := tryLease(a, "q", 1); code(err) != "25001" {
		t.Errorf("at repeatable read: %v", err)
	}
	exec(t, a, "rollback")
	audit(t, c)
}

// A limit that is lowered counts what runs; one that is raised or taken away binds no more.
func TestLimitsChange(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "select oq_enqueue('q') from generate_series(1, 30)")
	exec(t, c, "select oq_limit('q', max_running => 5)")
	jobs := lease(t, c, "q", 9)
	if len(jobs) != 5 {
		t.Fatal(len(jobs))
	}
	exec(t, c, "select oq_limit('q', max_running => 2)")
	for i, j := range jobs {
		if n := len(lease(t, c, "q", 9)); n != 0 {
			t.Fatalf("%d leased while %d run and two may", n, 5-i)
		}
		ack(t, c, j)
		if i == 3 {
			break
		}
	}
	if n := len(lease(t, c, "q", 9)); n != 1 {
		t.Errorf("%d leased while one runs and two may", n)
	}
	exec(t, c, "select oq_limit('q', max_running => 4)")
	if n := len(lease(t, c, "q", 9)); n != 2 {
		t.Errorf("%d leased while two run and four may", n)
	}
	exec(t, c, "select oq_limit('q')")
	if n := len(lease(t, c, "q", 9)); n != 9 {
		t.Errorf("%d leased without a limit", n)
	}
	// What began without one counts as well.
	exec(t, c, "select oq_limit('q', max_running => 11)")
	for i := range 3 {
		if n := len(lease(t, c, "q", 9)); n != 0 {
			t.Fatalf("%d leased while %d run and eleven may", n, 13-i)
		}
		exec(t, c, "select oq_ack(l.job_id, l.token) from (select * from oq.leased order by job_id limit 1) l")
	}
	if n := len(lease(t, c, "q", 9)); n != 1 {
		t.Errorf("%d leased while ten run and eleven may", n)
	}
	audit(t, c)
	// Nothing binds any more: it is leased from at every level.
	exec(t, c, "select oq_limit('q')")
	exec(t, c, "begin isolation level repeatable read")
	if n := len(lease(t, c, "q", 2)); n != 2 {
		t.Errorf("%d leased at repeatable read without a limit", n)
	}
	exec(t, c, "commit")
	audit(t, c)
}

// Who lets many in, or leases many, holds no more locks than the lock table has for everybody.
func TestLimitsTakeFewLocks(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "select oq_create_queue('q')")
	exec(t, c, "select oq_limit('q', '*', max_running => 1000, rate => 1000)")
	exec(t, c, "begin")
	exec(t, c, "select oq_enqueue('q', group_key => k::text) from generate_series(1, 30) k, generate_series(1, 30)")
	exec(t, c, "set constraints all immediate")
	locks := get[int](t, c, "select count(*)::int from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
	exec(t, c, "commit")
	if locks > 1000 {
		t.Errorf("%d locks for 30 groups", locks)
	}
	for i := 0; i < 10 && len(list[int64](t, c, "select job_id from oq_jobs where state = 'waiting'")) > 0; i++ {
		exec(t, c, "update oq.todo set due_at = clock_timestamp()")
		tick(t, c, 1)
	}
	if n := get[int](t, c, "select count(*)::int from oq_jobs where state = 'ready'"); n != 900 {
		t.Errorf("%d of 900 are let in", n)
	}
	audit(t, c)
	exec(t, c, "select oq_create_queue('large')")
	exec(t, c, "select oq_limit('large', max_running => 10000)")
	exec(t, c, "select count(*) from oq_enqueue_bulk('large', array_fill('{}'::jsonb, array[3000]))")
	exec(t, c, "begin")
	if n := len(lease(t, c, "large", 10000)); n != 1000 {
		t.Errorf("leased %d by one call", n)
	}
	exec(t, c, "commit")
	for range 3 {
		lease(t, c, "large", 10000)
	}
	if n := get[int](t, c, "select leased::int from oq_stats('large')"); n != 3000 {
		t.Errorf("%d of 3000 leased", n)
	}
	audit(t, c)
}

// A rate binds in every window of its length, across all workers, with leases open and rolled back.
func TestRate(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w := db.Conn(t)
	exec(t, w, `select oq_create_queue('q', '{"max_retries": 32767, "max_lost_leases": 32767}')`)
	exec(t, w, "select oq_limit('q', rate => 8, per => '200 ms')")
	exec(t, w, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[20000]))")
	exec(t, w, `create table public.history (at timestamptz);
		create function note() returns trigger language plpgsql as $$
		begin insert into public.history values (new.leased_at); return null; end $$;
		create trigger note after insert on oq.leased for each row execute function note();`)
	runs := limitSeconds(t)
	taken := crowd(t, db, "q", runs, false)
	worst := get[int](t, w, `select max(n)::int from (
		select count(*) over (order by at range between '199.999 ms' preceding and current row) as n from history) x`)
	if worst > 8 {
		t.Errorf("%d jobs began within 200 ms", worst)
	}
	began := get[int](t, w, "select count(*)::int from history")
	if want := int(runs / (200 * time.Millisecond) * 8 / 20); began < want {
		t.Errorf("%d jobs began, a twentieth of the rate is %d", began, want)
	}
	t.Logf("%d leases, %d committed, at most %d within 200 ms", taken, began, worst)
	audit(t, w)
}

// The rate of a group binds in every window as well, though a job is let into ready some time before it is leased; also
// while limits change, and what fails or is given back begins again.
func TestGroupRate(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w := db.Conn(t)
	exec(t, w, `select oq_create_queue('q', '{"max_retries": 32767, "max_lost_leases": 32767}')`)
	exec(t, w, "select oq_limit('q', '*', max_running => 4, rate => 5, per => '200 ms')")
	exec(t, w, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'q',
		'group_key', 'g' || i % 3)) from generate_series(1, 3000) i))`)
	exec(t, w, `create table public.history (at timestamptz, group_key text);
		create function note() returns trigger language plpgsql as $$
		begin insert into public.history select new.leased_at, j.group_key from oq.job j where j.job_id = new.job_id; return null; end $$;
		create trigger note after insert on oq.leased for each row execute function note();`)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	ticker := db.Conn(t)
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				sql := "select from oq_tick()"
				if n%20 == 0 {
					sql = fmt.Sprintf("select oq_limit('q', '*', max_running => %d, rate => 5, per => '200 ms')", 1+n/20%6)
				}
				if _, err := ticker.Exec(context.Background(), sql); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	runs := limitSeconds(t)
	taken := crowd(t, db, "q", runs, false)
	close(stop)
	wg.Wait()
	worst := get[int](t, w, `select max(n)::int from (select count(*) over (partition by group_key
		order by at range between '199.999 ms' preceding and current row) as n from history) x`)
	if worst > 5 {
		t.Errorf("%d jobs of a group began within 200 ms", worst)
	}
	began := get[int](t, w, "select count(*)::int from history")
	if want := int(runs / (200 * time.Millisecond) * 15 / 20); began < want {
		t.Errorf("%d jobs began, a twentieth of the rate is %d", began, want)
	}
	t.Logf("%d leases, %d committed, at most %d within 200 ms", taken, began, worst)
	audit(t, w)
}

// A worker that was held up between its look at the clock and its claim takes a job that was let in meanwhile. The job
// begins after its slot was free all the same, by its lease and, once it is dead, by its token.
func TestGroupRateOfALateClaim(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 10} {
		db := testdb.New(t)
		c, w, lock := db.Conn(t), db.Conn(t), db.Conn(t)
		exec(t, c, "select oq_create_queue('q')")
		exec(t, c, "select oq_limit('q', 'g', rate => 1, per => '500 ms')")
		first, second, third := inGroup(t, c, "q", "g"), inGroup(t, c, "q", "g"), inGroup(t, c, "q", "g")
		ack(t, c, next(t, c, "q", first)[0])
		began := get[time.Time](t, c, "select leased_at from oq_get($1)", first)

		tick(t, c, 1) // Or the lease lets the second in itself.
		exec(t, lock, "begin")
		exec(t, lock, "alter sequence oq.token increment 1")
		var jobs []job
		wait := background(t, func() (err error) {
			jobs, err = tryLease(w, "q", n)
			if err == nil && (len(jobs) != 1 || jobs[0].ID != second) {
				err = fmt.Errorf("leased %v, not %d", jobs, second)
			}
			return err
		})
		blocked(t, db, pid(t, w))
		until(t, c, "the second is let in", `select (select count(*) from oq_tick()) >= 0
			and (select state = 'ready' from oq_get($1))`, second)
		exec(t, lock, "commit")
		wait()
		again := get[time.Time](t, c, "select leased_at from oq_get($1)", second)
		if apart := again.Sub(began); apart < 500*time.Millisecond {
			t.Errorf("by %d: the second began after %v", n, apart)
		}
		exec(t, c, "select oq_nack($1, $2, 'no', retry => false)", second, jobs[0].Token)
		until(t, c, "the third is let in", `select (select count(*) from oq_tick()) >= 0
			and (select state = 'ready' from oq_get($1))`, third)
		next(t, c, "q", third)
		if apart := get[time.Time](t, c, "select leased_at from oq_get($1)", third).Sub(again); apart < 500*time.Millisecond {
			t.Errorf("by %d: the third began after %v", n, apart)
		}
		audit(t, c)
	}
}

// The same of a queue that has a limit as well, whose worker is held up while it looks for a slot.
func TestGroupRateOfALateClaimInALimit(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, w, lock := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_create_queue('q')")
	exec(t, c, "select oq_limit('q', max_running => 100), oq_limit('q', 'g', rate => 1, per => '500 ms')")
	exec(t, c, "alter function oq.free_slot(bigint, int) set schema public")
	exec(t, c, `create function oq.free_slot(bigint, int) returns int language plpgsql as $$
		begin perform pg_advisory_xact_lock_shared(1); return public.free_slot($1, $2); end $$`)
	first, second := inGroup(t, c, "q", "g"), inGroup(t, c, "q", "g")
	ack(t, c, next(t, c, "q", first)[0])
	began := get[time.Time](t, c, "select leased_at from oq_get($1)", first)

	// What the worker finds ready at first is gone when it has its slot.
	other := get[int64](t, c, "select oq_enqueue('q')")
	exec(t, lock, "select pg_advisory_lock(1)")
	wait := background(t, func() error {
		jobs, err := tryLease(w, "q", 1)
		if err == nil && (len(jobs) != 1 || jobs[0].ID != second) {
			err = fmt.Errorf("leased %v, not %d", jobs, second)
		}
		return err
	})
	blocked(t, db, pid(t, w))
	exec(t, c, "select oq_cancel($1)", other)
	until(t, c, "the second is let in", `select (select count(*) from oq_tick()) >= 0
		and (select state = 'ready' from oq_get($1))`, second)
	exec(t, lock, "select pg_advisory_unlock(1)")
	wait()
	if apart := get[time.Time](t, c, "select leased_at from oq_get($1)", second).Sub(began); apart < 500*time.Millisecond {
		t.Errorf("the second began after %v", apart)
	}
	audit(t, c)
}

// A job never begins a microsecond before its slot is free, however long its worker was held up on the way.
func TestRateIsExact(t *testing.T) {
	t.Parallel()
	c := testdb.New(t).Conn(t)
	exec(t, c, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[1000]))")
	exec(t, c, "select oq_limit('q', rate => 4, per => '20 ms')")
	exec(t, c, `alter function oq.rate_slots(bigint, int, interval, int) set schema public`)
	exec(t, c, `create function oq.rate_slots(bigint, int, interval, int) returns int[] language plpgsql as $$
		begin perform pg_sleep(random() * 0.004); return public.rate_slots($1, $2, $3, $4); end $$`)
	// As many as a second gives, however long that takes.
	exec(t, c, `do $$ declare v_until timestamptz := clock_timestamp() + interval '25 seconds'; v_began int := 0; begin
		while v_began < 150 and clock_timestamp() < v_until loop
			v_began := v_began + (select count(*) from oq_lease('q', 'w'));
		end loop; end $$`)
	began := get[int](t, c, "select count(*)::int from oq.leased")
	early := get[int](t, c, `select count(*)::int from (
		select leased_at - lag(leased_at, 4) over (order by leased_at) as apart from oq.leased) x
		where apart < interval '20 ms'`)
	if began < 40 || early != 0 {
		t.Errorf("%d of %d jobs began within 20 ms of the fourth before them", early, began)
	}
	audit(t, c)
}

// A job that had been let in, and that a lower limit sent back in line, holds nobody up when it is put off by hand.
func TestPutOffAfterALowerLimit(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "select oq_create_queue('q')")
	exec(t, c, "select oq_limit('q', 'g', max_running => 2)")
	first, second, third := inGroup(t, c, "q", "g"), inGroup(t, c, "q", "g"), inGroup(t, c, "q", "g")
	exec(t, c, "select oq_limit('q', 'g')")
	if got := get[string](t, c, "select state from oq_get($1)", second); got != "waiting" {
		t.Fatalf("the second is %s", got)
	}
	exec(t, c, "select oq_update($1, jsonb_build_object('run_at', clock_timestamp() + interval '1 hour'))", second)
	ack(t, c, next(t, c, "q", first)[0])
	next(t, c, "q", third)
	audit(t, c)
}

// A group widened to three, and all others by '*' to two: as many run, never more, and in the end all have.
func TestWidenedGroups(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w := db.Conn(t)
	exec(t, w, `select oq_create_queue('q', '{"max_retries": 1000, "max_lost_leases": 1000}')`)
	exec(t, w, "select oq_limit('q', '*', max_running => 2)")
	exec(t, w, "select oq_limit('q', 'a', max_running => 3)")
	exec(t, w, "select oq_limit('q', 'c', max_running => 1)")
	exec(t, w, `select oq_enqueue('q', group_key => k) from unnest(array['a', 'b', 'c']) k, generate_series(1, 100)`)
	count := func() string {
		return get[string](t, w, `select coalesce(string_agg(group_key || n, ' ' order by group_key), '')
			from (select group_key, count(*) as n from oq_jobs where state = 'leased' group by 1) x`)
	}
	jobs := lease(t, w, "q", 100)
	if got := count(); got != "a3 b2 c1" {
		t.Fatal(got)
	}
	// One that waits for its retry leaves its slot to another where several run.
	for _, j := range jobs {
		exec(t, w, "select oq_nack($1, $2, 'no', retry_after => '1 hour')", j.ID, j.Token)
	}
	lease(t, w, "q", 100)
	if got := count(); got != "a3 b2" {
		t.Fatal(got)
	}
	comesDue(t, w)
	tick(t, w, 3)
	lease(t, w, "q", 100)
	if got := count(); got != "a3 b2 c1" {
		t.Fatal(got)
	}
	audit(t, w)
	exec(t, w, "select oq_limit('q', 'a', max_running => 5)")
	tick(t, w, 1)
	lease(t, w, "q", 100)
	if got := count(); got != "a5 b2 c1" {
		t.Fatal(got)
	}
	exec(t, w, "select oq_limit('q', 'a')")
	tick(t, w, 1)
	exec(t, w, "select oq_release(job_id, token) from oq.leased")
	audit(t, w)
	exec(t, w, "select oq_ack(job_id, lease_token) from oq_lease('q', max_jobs => 100)")
	lease(t, w, "q", 100)
	if got := count(); got != "a2 b2 c1" {
		t.Fatal(got)
	}
	exec(t, w, "select oq_release(job_id, token) from oq.leased")
	if n := len(inOrder(t, w, "q")); n != 300-5 { // of the five that came back to a two ran
		t.Errorf("%d worked off", n)
	}
	audit(t, w)
}

// The rate of a group: what it lets in waits for the next slot, and the tick knows when that is.
func TestRateOfAGroup(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w := db.Conn(t)
	exec(t, w, "select oq_create_queue('q')")
	exec(t, w, "select oq_limit('q', '*', max_running => 100, rate => 3, per => '300 ms')")
	began := time.Now() // What the enqueue lets in counts from then.
	exec(t, w, `select oq_enqueue('q', group_key => k) from unnest(array['a', 'b']) k, generate_series(1, 7)`)
	seen := len(lease(t, w, "q", 100))
	if seen < 6 {
		t.Fatalf("%d at once", seen)
	}
	// A lease lets in what has come due meanwhile: three of each of the two for each 300 ms that have begun.
	within := func() {
		t.Helper()
		seen += len(lease(t, w, "q", 100))
		if took := time.Since(began); seen > 6+6*int(took/(300*time.Millisecond)) {
			t.Fatalf("%d within %s", seen, took)
		}
	}
	within()
	audit(t, w)
	for seen < 14 {
		sleep := get[int](t, w, "select done::int from oq_tick() where duty = 'sleep_ms'")
		if sleep > 310 {
			t.Fatalf("the tick would sleep for %d ms", sleep)
		}
		time.Sleep(time.Duration(sleep) * time.Millisecond)
		within()
		if time.Since(began) > patience {
			t.Fatalf("only %d came", seen)
		}
	}
	audit(t, w)
}

// A throttled queue or group: nobody gets its jobs until then, and no attempt is counted.
func TestThrottle(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, w := db.Conn(t), db.Conn(t)
	exec(t, w, "select oq_create_queue('q')")
	plain := get[int64](t, w, "select oq_enqueue('q')")
	g1, g2 := inGroup(t, w, "q", "g"), inGroup(t, w, "q", "g")
	h := inGroup(t, w, "q", "h")
	exec(t, w, "select oq_throttle('q', clock_timestamp() + interval '1 hour')")
	next(t, w, "q")
	exec(t, w, "select oq_throttle('q', '-infinity')")
	exec(t, w, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'g')")
	next(t, w, "q", plain, h)
	tick(t, w, 1)
	next(t, w, "q")
	// For a shorter time: what was parked is due earlier, and not too early.
	until := get[time.Time](t, w, "select clock_timestamp() + interval '1500 ms'")
	exec(t, w, "select oq_throttle('q', $1, 'g')", until)
	var jobs []job
	for deadline := time.Now().Add(patience); len(jobs) == 0; {
		if jobs = lease(t, w, "q", 100); len(jobs) == 0 && time.Now().After(deadline) {
			t.Fatal("throttled for ever")
		}
	}
	j := jobs[0]
	if early := get[bool](t, w, "select clock_timestamp() < $1", until); early || len(jobs) > 1 || j.ID != g1 {
		t.Fatalf("leased %v, want %d; before its time: %v", jobs, g1, early)
	}
	// Told so by the server it calls, a worker throttles and releases.
	exec(t, w, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'g')")
	exec(t, w, "select oq_release($1, $2)", j.ID, j.Token)
	next(t, w, "q")
	if n := get[int](t, w, "select attempt from oq_get($1)", g1); n != 0 {
		t.Errorf("attempt %d", n)
	}
	exec(t, w, "select oq_throttle('q', now(), 'g')")
	j = next(t, w, "q", g1)[0]
	ack(t, w, j)
	// Two who throttle at the same time do not wait for each other.
	exec(t, a, "begin")
	exec(t, a, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'g')")
	exec(t, w, "select oq_throttle('q', clock_timestamp() + interval '1 hour', 'g')")
	exec(t, a, "commit")
	tick(t, w, 1)
	next(t, w, "q")
	exec(t, w, "select oq_throttle('q', '-infinity', 'g')")
	tick(t, w, 1)
	next(t, w, "q", g2)
	audit(t, w)
}

// A throttle in a transaction that is open while the queue's options change binds all the same, after the tick at
// the latest.
func TestThrottleBesideAChangeOfOptions(t *testing.T) {
	t.Parallel()
	for _, open := range []bool{true, false} {
		t.Run(fmt.Sprint("options open: ", open), func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			a, w := db.Conn(t), db.Conn(t)
			exec(t, w, "select oq_create_queue('q'), oq_enqueue('q')")
			exec(t, a, "begin")
			if open {
				exec(t, a, "select oq_create_queue('q', '{\"lease_seconds\": 31}')")
				exec(t, w, "select oq_throttle('q', clock_timestamp() + interval '1 hour')")
			} else {
				exec(t, a, "select oq_throttle('q', clock_timestamp() + interval '1 hour')")
				exec(t, w, "select oq_create_queue('q', '{\"lease_seconds\": 31}')")
			}
			exec(t, a, "commit")
			exec(t, w, "select oq_rotate()")
			next(t, w, "q")
			if n := get[int](t, w, "select lease_seconds from oq_queues"); n != 31 {
				t.Errorf("%d lease_seconds", n)
			}
			exec(t, w, "select oq_throttle('q', '-infinity')")
			if n := len(lease(t, w, "q", 9)); n != 1 {
				t.Errorf("leased %d after it was lifted", n)
			}
			audit(t, w)
		})
	}
}

// Who sleeps because a limit is full is woken when a slot is free.
func TestFreeSlotWakes(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	w, s := db.Conn(t), db.Conn(t)
	exec(t, w, "select oq_create_queue('q')")
	exec(t, w, "select oq_limit('q', max_running => 1)")
	exec(t, w, "select oq_enqueue('q') from generate_series(1, 3)")
	j := lease(t, w, "q", 1)[0]
	exec(t, s, "select oq_listen('q')")
	// While it is full the tick wakes nobody.
	if n := get[int](t, w, "select oq_wake()::int"); n != 0 {
		t.Errorf("woke %d queues while the limit is full", n)
	}
	ack(t, w, j)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, err := s.WaitForNotification(ctx); err != nil || n.Channel != "oq:q" {
		t.Fatalf("%v %v", n, err)
	}
	if n := get[int](t, w, "select oq_wake()::int"); n != 1 {
		t.Errorf("woke %d queues", n)
	}
}

// Whoever looks for a slot of a group's rate writes down when the job of each began. While his transaction is open nobody
// waits for that: not the sweep, nor another who looks.
func TestStartsAreWrittenDownInNobodysWay(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, c := db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_create_queue('q'), oq_limit('q', '*', rate => 2, per => '1 ms')")
	exec(t, c, "select oq_enqueue('q', group_key => 'g')")
	ack(t, c, lease(t, c, "q", 1)[0])
	exec(t, c, "update oq.limit_slot set taken_at = taken_at - interval '1 hour'")
	exec(t, c, "update oq.finished set leased_at = leased_at - interval '1 hour'")
	if n := get[int](t, c, "select count(*)::int from oq.limit_slot where token < 0"); n != 1 {
		t.Fatalf("%d slots whose start is not written down, want 1", n)
	}
	holder := get[int64](t, c, "select holder from oq.limit_slot")
	exec(t, a, "begin")
	exec(t, a, "select oq.rate_slots($1, 2, '1 ms', 0)", holder)
	if n := get[int](t, a, "select count(*)::int from oq.limit_slot where token < 0"); n != 0 {
		t.Fatalf("%d slots whose start is not written down by who looked", n)
	}
	exec(t, c, "set lock_timeout = '2s'")
	exec(t, c, "select oq.sweep_groups(1000)")
	if got := list[int32](t, c, "select unnest(oq.rate_slots($1, 2, '1 ms', 2))", holder); len(got) != 1 {
		t.Errorf("slots %v are free beside who looks, want the other one", got)
	}
	exec(t, a, "commit")
	if got := list[int32](t, c, "select unnest(oq.rate_slots($1, 2, '1 ms', 2))", holder); len(got) != 2 {
		t.Errorf("slots %v are free, want both", got)
	}
	audit(t, c)
}

// What is noted of slots goes when neither a lease nor a rate needs it any more, however many groups there were, and
// also where the limit or the queue is gone.
func TestSlotsThatNobodyNeedsGo(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, c := db.Conn(t), db.Conn(t)
	slots := func() int { return get[int](t, c, "select count(*)::int from oq.limit_slot") }
	sweep := func() {
		t.Helper()
		for range 10 {
			exec(t, c, "select oq.sweep_groups(1000)")
		}
	}
	exec(t, c, "select oq_create_queue('q'), oq_limit('q', '*', rate => 3, per => '1 s')")
	exec(t, c, "select oq_enqueue('q', group_key => k::text) from generate_series(1, 50) k, generate_series(1, 3)")
	for range 3 {
		jobs := lease(t, c, "q", 100)
		if len(jobs) != 50 {
			t.Fatalf("leased %d, want 50", len(jobs))
		}
		for _, j := range jobs {
			ack(t, c, j)
		}
	}
	if n := slots(); n != 150 {
		t.Fatalf("%d slots of 50 groups, want 150", n)
	}
	exec(t, c, "update oq.limit_slot set token = greatest(token, 0), taken_at = taken_at - interval '9 minutes'")
	sweep()
	if n := slots(); n != 150 {
		t.Fatalf("%d slots are left before their time", n)
	}
	// As long as a job may come back in the window of any rate.
	exec(t, c, "update oq.limit_slot set taken_at = taken_at - interval '1 hour'")
	exec(t, c, "select oq_create_queue('slow'), oq_limit('slow', rate => 0.5, per => '1 hour')")
	sweep()
	if n := slots(); n != 150 {
		t.Fatalf("%d slots are left within the window of a rate", n)
	}
	exec(t, c, "select oq_drop_queue('slow')")

	// A slot that somebody has under his hands is left alone.
	exec(t, a, "begin")
	exec(t, a, "select oq.rate_slots(s.holder, 3, '1 s', 3) from (select holder from oq.limit_slot limit 1) s")
	sweep()
	if n := slots(); n != 3 {
		t.Errorf("%d slots are left, want the three that are locked", n)
	}
	exec(t, a, "rollback")
	sweep()
	if n := slots(); n != 0 {
		t.Errorf("%d slots are left", n)
	}

	// max_running: the slot of a lease that still runs stays.
	exec(t, c, "select oq_create_queue('run'), oq_limit('run', max_running => 5)")
	exec(t, c, "select oq_enqueue('run') from generate_series(1, 4)")
	jobs := lease(t, c, "run", 3, 604800)
	ack(t, c, jobs[0])
	exec(t, c, "update oq.limit_slot set taken_at = taken_at - interval '1 year'")
	sweep()
	if n := slots(); n != 2 {
		t.Errorf("%d slots of two leases", n)
	}
	exec(t, c, "select oq_limit('run', max_running => 3)")
	if n := len(lease(t, c, "run", 9)); n != 1 {
		t.Errorf("leased %d beside two of three", n)
	}
	exec(t, c, "select oq_drop_queue('run', force => true)")
	exec(t, c, "update oq.limit_slot set taken_at = taken_at - interval '1 year'")
	sweep()
	if n := slots(); n != 0 {
		t.Errorf("%d slots are left of a queue that was dropped", n)
	}
	audit(t, c)
}

// The sweep goes round the slots a few blocks at a time, past those that are still in use, and locks few.
func TestSweepOfSlotsIsBounded(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, `insert into oq.leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost)
		select -i, 1, 0, now() + interval '1 day', now(), 1, 0, 0 from generate_series(1, 3000) i`)
	exec(t, c, `insert into oq.limit_slot (holder, slot, job_id, token, taken_at)
		select 4, i, -i, 1, now() - interval '1 hour' from generate_series(1, 6000) i`)
	turns := 0
	for ; get[int](t, c, "select count(*)::int from oq.limit_slot") > 3000; turns++ {
		if turns == 50 {
			t.Fatal("idle slots are left")
		}
		exec(t, c, "begin")
		exec(t, c, "select oq.sweep_groups(1000)")
		locks := get[int](t, c, "select count(*)::int from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
		exec(t, c, "commit")
		if locks > 500 {
			t.Fatalf("the sweep holds %d slots", locks)
		}
	}
	t.Logf("%d turns", turns)
	if n := get[int](t, c, "select count(*)::int from oq.limit_slot s join oq.leased l using (job_id, token)"); n != 3000 {
		t.Errorf("%d of 3000 slots in use are left", n)
	}
}

// An operator who has not committed yet keeps nobody from a slot.
func TestOpenLimitKeepsNoWorkerWaiting(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, c, "select oq_create_queue('q'), oq_limit('q', max_running => 3, rate => 100, per => '1 s')")
	exec(t, c, "select oq_enqueue('q') from generate_series(1, 20)")
	for _, j := range lease(t, c, "q", 3) {
		ack(t, c, j)
	}
	exec(t, a, "begin")
	exec(t, a, "select oq_limit('q', max_running => 2, rate => 50)")
	exec(t, b, "set lock_timeout = '5s'")
	jobs, err := tryLease(b, "q", 9)
	if err != nil || len(jobs) != 3 {
		t.Errorf("leased %d of three beside an open oq_limit: %v", len(jobs), err)
	}
	exec(t, a, "commit")
	if n := len(lease(t, c, "q", 9)); n != 0 {
		t.Errorf("leased %d beside three, two may", n)
	}
	for _, j := range jobs[:min(2, len(jobs))] {
		ack(t, c, j)
	}
	if n := len(lease(t, c, "q", 9)); n != 1 {
		t.Errorf("leased %d beside one, two may", n)
	}
	audit(t, c)
}
