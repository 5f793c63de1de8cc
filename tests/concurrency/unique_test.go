package concurrency

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Sixteen sessions enqueue one key at the same moment: one job, all get its id, again and again, with the
// job done in between, and with some that roll back.
func TestOneJobAKey(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	const sessions, keys = 16, 40
	var mu sync.Mutex
	ids := map[string][]int64{}
	together(t, db, sessions, func(i int, c *pgx.Conn) error {
		for k := range keys {
			key := fmt.Sprint("key", k)
			tx, err := c.Begin(context.Background())
			if err != nil {
				return err
			}
			id, err := try[int64](tx, "select oq_enqueue('q', unique_key => $1)", key)
			if err != nil {
				return err
			}
			if (i+k)%5 == 0 {
				if err := tx.Rollback(context.Background()); err != nil {
					return err
				}
				continue
			}
			if err := tx.Commit(context.Background()); err != nil {
				return err
			}
			mu.Lock()
			ids[key] = append(ids[key], id[0])
			mu.Unlock()
		}
		return nil
	})
	for key, got := range ids {
		slices.Sort(got)
		if got[0] == 0 || got[0] != got[len(got)-1] {
			t.Errorf("%s: jobs %v", key, got)
		}
	}
	if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs"); n != keys {
		t.Errorf("%d jobs of %d keys", n, keys)
	}
	audit(t, db.Pool)
}

// Who only wants to know whose a key is does not wait for an open transaction that changes its job, and how long it holds.
func TestSkipBesideAnOpenReplace(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, b := db.Conn(t), db.Conn(t)
	id := get[int64](t, b, "select oq_enqueue('q', unique_key => 'k')")
	exec(t, a, "begin")
	exec(t, a, `select oq_enqueue('q', unique_key => 'k', options => '{"unique_mode": "replace", "unique_for": "1 hour"}')`)
	exec(t, b, "set lock_timeout = '1 s'")
	if got := get[int64](t, b, "select oq_enqueue('q', unique_key => 'k')"); got != id {
		t.Errorf("skip gave %d, not %d", got, id)
	}
	if _, err := try[int64](b, `select oq_enqueue('q', unique_key => 'k', options => '{"unique_mode": "reject"}')`); code(err) != "OQ005" {
		t.Errorf("reject: %v", err)
	}
	exec(t, a, "commit")
	audit(t, b)
}

// While workers finish them, a key never has two unfinished jobs, and no enqueue is lost: each gives a job
// that was not over when the call began.
func TestKeysBesideWorkers(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db.Pool, "create table made (job_id bigint primary key)")
	together(t, db, 8, func(i int, c *pgx.Conn) error {
		for n := range 150 {
			if i < 5 {
				if _, err := try[int64](c, "select oq_enqueue('q', unique_key => $1)", fmt.Sprint("key", n%3)); err != nil {
					return err
				}
				continue
			}
			jobs, err := tryLease(c, "q", 1)
			if err != nil {
				return err
			}
			for _, j := range jobs {
				if _, err := try[bool](c, "select oq_ack($1, $2)", j.ID, j.Token); err != nil {
					return err
				}
			}
			twice, err := try[string](c, `select unique_key || ': ' || string_agg(job_id || ' ' || state, ', ' order by job_id)
				  from oq_jobs where finished_at is null group by unique_key having count(*) > 1`)
			if err != nil || len(twice) > 0 {
				return fmt.Errorf("two unfinished jobs: %v %v", twice, err)
			}
		}
		return nil
	})
	audit(t, db.Pool)
}

// A second enqueue waits for the first one's commit, and only for that: its rollback gives the key free.
func TestKeyOfAnOpenTransaction(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	for _, commits := range []bool{true, false} {
		key := fmt.Sprint("commits ", commits)
		a, b := db.Conn(t), db.Conn(t)
		exec(t, a, "begin")
		first := get[int64](t, a, "select oq_enqueue('q', unique_key => $1)", key)
		var second int64
		wait := background(t, func() error {
			ids, err := try[int64](b, "select oq_enqueue('q', unique_key => $1)", key)
			if err == nil {
				second = ids[0]
			}
			return err
		})
		blocked(t, db, pid(t, b))
		// Nobody else waits: another key, another queue, no key.
		get[int64](t, db.Pool, "select oq_enqueue('q', unique_key => $1)", key+" not")
		get[int64](t, db.Pool, "select oq_enqueue('p', unique_key => $1)", key)
		get[int64](t, db.Pool, "select oq_enqueue('q')")
		if commits {
			exec(t, a, "commit")
		} else {
			exec(t, a, "rollback")
		}
		wait()
		if (second == first) != commits {
			t.Errorf("%s: jobs %d and %d", key, first, second)
		}
		if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs where unique_key = $1 and queue_name = 'q'", key); n != 1 {
			t.Errorf("%s: %d jobs", key, n)
		}
	}
}

// At the stricter levels a key that was taken since the snapshot is 40001, never a second job.
func TestKeysAtStricterLevels(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	for _, level := range []string{"repeatable read", "serializable"} {
		c := db.Conn(t)
		exec(t, c, "begin isolation level "+level)
		get[int](t, c, "select count(*)::int from oq_jobs")
		get[int64](t, db.Pool, "select oq_enqueue('q', unique_key => $1)", level)
		if _, err := try[int64](c, "select oq_enqueue('q', unique_key => $1)", level); code(err) != "40001" {
			t.Errorf("%s: %v", level, err)
		}
		exec(t, c, "rollback")
		if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs where unique_key = $1", level); n != 1 {
			t.Errorf("%s: %d jobs", level, n)
		}
		exec(t, c, "begin isolation level "+level)
		if a, b := get[int64](t, c, "select oq_enqueue('q', unique_key => $1)", level),
			get[int64](t, c, "select oq_enqueue('q', unique_key => $1)", level); a != b {
			t.Errorf("%s: %d and %d", level, a, b)
		}
		exec(t, c, "commit")
	}
}

// A change is never lost to a worker that is just taking the job: it goes into the job, or into one of its own.
func TestReplaceAgainstAnOpenLease(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a := db.Conn(t)
	for _, commits := range []bool{true, false} {
		queue := fmt.Sprint("commits-", commits)
		first := get[int64](t, db.Pool, `select oq_enqueue($1, '{"v": 1}', unique_key => 'k')`, queue)
		exec(t, a, "begin")
		lease(t, a, queue, 1)
		second := get[int64](t, db.Pool,
			`select oq_enqueue($1, '{"v": 2}', unique_key => 'k', options => '{"unique_mode": "replace"}')`, queue)
		if second == first {
			t.Fatalf("job %d was changed under its worker", first)
		}
		if commits {
			exec(t, a, "commit")
		} else {
			exec(t, a, "rollback")
		}
		if n := get[int](t, db.Pool, `select count(*)::int from oq_jobs where payload = '{"v": 2}' and queue_name = $1
			and state = 'ready'`, queue); n != 1 {
			t.Errorf("%s: the change stands in %d jobs", queue, n)
		}
	}
	audit(t, db.Pool)
}

// The sweep looks at a key that is taken again before it gets to it: the new row stays.
func TestSweepAgainstATaker(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a := db.Conn(t)
	old := get[int64](t, db.Pool, "select oq_enqueue('q', unique_key => 'k')")
	get[bool](t, db.Pool, "select oq_cancel($1)", old)
	exec(t, a, "begin")
	taken := get[int64](t, a, "select oq_enqueue('q', unique_key => 'k')")
	get[int64](t, db.Pool, "select oq_rotate()")
	exec(t, a, "commit")
	get[int64](t, db.Pool, "select oq_rotate()")
	if again := get[int64](t, db.Pool, "select oq_enqueue('q', unique_key => 'k')"); again != taken {
		t.Errorf("job %d has the key, not %d", again, taken)
	}
}

// Two changes meet while a worker is just taking the job: the first makes a job of its own, which the second
// changes, and neither waits for the worker.
func TestReplacesAgainstAnOpenLease(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	const replace = `select oq_enqueue('q', jsonb_build_object('v', $1::int), unique_key => 'k',
		options => '{"unique_mode": "replace"}')`
	first := get[int64](t, db.Pool, replace, 0)
	a, b, c := db.Conn(t), db.Conn(t), db.Conn(t)
	exec(t, a, "begin")
	lease(t, a, "q", 1)
	exec(t, b, "begin")
	second := get[int64](t, b, replace, 1)
	var third int64
	wait := background(t, func() error {
		ids, err := try[int64](c, replace, 2)
		if err == nil {
			third = ids[0]
		}
		return err
	})
	blocked(t, db, pid(t, c))
	exec(t, b, "commit")
	wait()
	exec(t, a, "rollback")
	if second == first || third != second {
		t.Errorf("jobs %d, %d, %d", first, second, third)
	}
	rows := list[string](t, db.Pool, `select state || ' ' || coalesce(unique_key, '-') || ' ' || payload from oq_jobs
		order by job_id`)
	if want := []string{`ready - {"v": 0}`, `ready k {"v": 2}`}; !slices.Equal(rows, want) {
		t.Errorf("jobs %v, want %v", rows, want)
	}
	audit(t, db.Pool)
}

// Calls with the same keys in opposite orders change them, take them and take them over: never a deadlock.
func TestKeysInOppositeOrders(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	const keys = 60
	call := func(mode string, backwards bool) string {
		var jobs []string
		for k := range keys {
			jobs = append(jobs, fmt.Sprintf(`{"queue_name": "q", "unique_key": "key%d", "unique_mode": "%s", "delay": "0 s"}`,
				k, mode))
		}
		if backwards {
			slices.Reverse(jobs)
		}
		return "[" + strings.Join(jobs, ",") + "]"
	}
	together(t, db, 6, func(i int, c *pgx.Conn) error {
		for n := range 25 {
			if i < 4 {
				mode := []string{"replace", "debounce", "skip"}[(n+i/2)%3]
				if _, err := try[int64](c, "select job_id from oq_enqueue_many($1)", call(mode, i%2 == 0)); err != nil {
					return fmt.Errorf("%s: %w", mode, err)
				}
				continue
			}
			jobs, err := tryLease(c, "q", 20)
			if err != nil {
				return err
			}
			for _, j := range jobs[:len(jobs)/2] {
				if _, err := try[bool](c, "select oq_ack($1, $2)", j.ID, j.Token); err != nil {
					return err
				}
			}
		}
		return nil
	})
	audit(t, db.Pool)
}

// Whatever workers do meanwhile, the last change of a key is worked on after it was made.
func TestChangesBesideWorkers(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	const keys, changes = 3, 100
	var mu sync.Mutex
	done := map[string]int{}
	work := func(c *pgx.Conn, n int) (int, error) {
		jobs, err := tryLease(c, "q", n)
		if err != nil {
			return 0, err
		}
		for _, j := range jobs {
			var key string
			var v int
			if err := c.QueryRow(context.Background(), "select payload ->> 'key', (payload ->> 'v')::int from oq_get($1)", j.ID).
				Scan(&key, &v); err != nil {
				return 0, err
			}
			mu.Lock()
			done[key] = max(done[key], v)
			mu.Unlock()
			if v%7 == 0 {
				_, err = try[string](c, "select oq_nack($1, $2, retry_after => '0 s')", j.ID, j.Token)
			} else {
				_, err = try[bool](c, "select oq_ack($1, $2)", j.ID, j.Token)
			}
			if err != nil {
				return 0, err
			}
		}
		return len(jobs), nil
	}
	together(t, db, keys+4, func(i int, c *pgx.Conn) error {
		for n := range changes {
			if i >= keys {
				if _, err := work(c, 2); err != nil {
					return err
				}
				continue
			}
			if _, err := try[int64](c, `select oq_enqueue('q', jsonb_build_object('key', $1::text, 'v', $2::int), max_retries => 3,
				unique_key => $1, options => '{"unique_mode": "replace"}')`, fmt.Sprint("key", i), n+1); err != nil {
				return err
			}
		}
		return nil
	})
	audit(t, db.Pool)
	c := db.Conn(t)
	for {
		tick(t, c, 1)
		n, err := work(c, 10)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
	}
	for i := range keys {
		if got := done[fmt.Sprint("key", i)]; got != changes {
			t.Errorf("key %d: the last change worked on is %d of %d", i, got, changes)
		}
	}
	audit(t, db.Pool)
}

// A snapshot that is older than a rotation does not see the row of an unfinished job in either generation: its key
// must not look free.
func TestKeyAcrossARotation(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	for _, level := range []string{"repeatable read", "serializable"} {
		id := get[int64](t, db.Pool, "select oq_enqueue('q', unique_key => $1)", level)
		c := db.Conn(t)
		exec(t, c, "begin isolation level "+level)
		get[int](t, c, "select 1 from pg_class limit 1")
		generation := get[int](t, db.Pool, "select gen::int from oq.job where job_id = $1", id)
		for range 10 {
			exec(t, db.Pool, "update oq.generation_state set opened_at = opened_at - interval '20 hours', "+
				"closed_at = closed_at - interval '2 days', try_after = null")
			exec(t, db.Pool, "select oq_rotate()")
			if get[bool](t, db.Pool, fmt.Sprintf("select pg_relation_size('oq.job_%d') = 0", generation)) {
				break
			}
		}
		if get[int](t, db.Pool, "select gen::int from oq.job where job_id = $1", id) == generation {
			t.Fatal("the job's row was not carried over")
		}
		if _, err := try[int64](c, "select oq_enqueue('q', unique_key => $1)", level); code(err) != "40001" {
			t.Errorf("%s: %v", level, err)
		}
		exec(t, c, "rollback")
		if again := get[int64](t, db.Pool, "select oq_enqueue('q', unique_key => $1)", level); again != id {
			t.Errorf("%s: job %d has the key, not %d", level, again, id)
		}
	}
	audit(t, db.Pool)
}

// Redrive and enqueue want the same key: one of them has it, in both orders, whether the other commits or not.
func TestRedriveAgainstATaker(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	dead := func(queue string) int64 {
		id := get[int64](t, db.Pool, "select oq_enqueue($1, max_retries => 0, unique_key => 'k')", queue)
		j := lease(t, db.Pool, queue, 1)[0]
		get[string](t, db.Pool, "select oq_nack($1, $2)", j.ID, j.Token)
		return id
	}
	for _, commits := range []bool{true, false} {
		end := map[bool]string{true: "commit", false: "rollback"}[commits]

		// The taker is open: the redrive waits for nobody and leaves it the key.
		queue := "taker-" + end
		id := dead(queue)
		a := db.Conn(t)
		exec(t, a, "begin")
		if taken := get[int64](t, a, "select oq_enqueue($1, unique_key => 'k')", queue); taken == id {
			t.Fatalf("job %d is dead", id)
		}
		get[int64](t, db.Pool, "select oq_redrive($1)", queue)
		exec(t, a, end)
		if key := get[bool](t, db.Pool, "select unique_key is null from oq_get($1)", id); !key {
			t.Errorf("%s: the redriven job has the key as well", queue)
		}
		audit(t, db.Pool)

		// The redrive is open: who wants the key waits for it, and finds it taken or free.
		queue = "redrive-" + end
		id = dead(queue)
		exec(t, a, "begin")
		get[int64](t, a, "select oq_redrive($1)", queue)
		c := db.Conn(t)
		var taken int64
		wait := background(t, func() error {
			ids, err := try[int64](c, "select oq_enqueue($1, unique_key => 'k')", queue)
			if err == nil {
				taken = ids[0]
			}
			return err
		})
		blocked(t, db, pid(t, c))
		exec(t, a, end)
		wait()
		if (taken == id) != commits {
			t.Errorf("%s: job %d has the key, %d was redriven", queue, taken, id)
		}
		audit(t, db.Pool)
	}
}

// A debounced job runs no later than debounce_max after the first enqueue, whatever many sessions do to it.
func TestDebouncesBesideEachOther(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db.Pool, "create table called (at timestamptz, job_id bigint)")
	together(t, db, 6, func(i int, c *pgx.Conn) error {
		for range 40 {
			if _, err := try[int64](c, `insert into called select clock_timestamp(), oq_enqueue('q', unique_key => 'k',
				options => '{"unique_mode": "debounce", "delay": "1 hour", "debounce_max": "90 min"}') returning job_id`); err != nil {
				return err
			}
			// Time goes by, for everybody.
			if _, err := c.Exec(context.Background(), `update oq.unique_key set taken_at = taken_at - interval '1 min'`); err != nil {
				return err
			}
		}
		return nil
	})
	if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs"); n != 1 {
		t.Errorf("%d jobs", n)
	}
	// Behind the last enqueue each of the six has one update left to do.
	if late := get[bool](t, db.Pool, `select j.run_at > u.taken_at + interval '97 min'
		from oq_jobs j join oq.unique_key u using (job_id)`); late {
		t.Error("put off too far")
	}
	audit(t, db.Pool)
}
