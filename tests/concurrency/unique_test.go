package concurrency

import (
	"context"
	"fmt"
	"slices"
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
