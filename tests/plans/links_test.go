package plans

import (
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// The members of a batch end one by one beside a held snapshot, in any order: the last of thousands costs no
// more than the first, though the edges of all that ended before are still there.
func TestFanInIsFlat(t *testing.T) {
	for _, order := range []string{"", "desc"} {
		db := testdb.New(t)
		s, holder := open(t, db), open(t, db)
		s.do(t, "create temp table b as select oq_batch('{}') as batch_id")
		s.do(t, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'q', 'batch_id', batch_id))
			from b, generate_series(1, 3000)))`)
		s.do(t, "select oq_batch_seal(batch_id) from b")
		s.do(t, "create temp table l as select row_number() over (order by job_id "+order+`) as n, job_id, lease_token
			from oq_lease('q', 'w', 3600, 3000)`)
		holder.do(t, "begin isolation level repeatable read")
		holder.do(t, "select 1")
		ack := func(n int) int {
			t.Helper()
			id := get[int64](t, s, "select job_id from l where n = $1", n)
			token := get[int64](t, s, "select lease_token from l where n = $1", n)
			return touched(t, s, "select oq_ack($1, $2)", id, token)
		}
		for n := range 4 { // plans and what the session remembers
			ack(n + 1)
		}
		first := ack(5)
		s.do(t, "do $$ declare j record; begin for j in select * from l where n between 6 and 2989 order by n loop "+
			"perform oq_ack(j.job_id, j.lease_token); end loop; end $$")
		ack(2990)
		last := ack(2991)
		t.Logf("%q: %d buffers, %d after 3,000 members", order, first, last)
		if last > first+20 {
			t.Errorf("%q: the first ack touched %d buffers, the last %d", order, first, last)
		}
		holder.do(t, "rollback")
		s.do(t, "select oq_ack(job_id, lease_token) from l where n > 2991")
		if n := get[int](t, s, "select count(*)::int from oq.batch"); n != 0 {
			t.Errorf("%q: the batch is not over", order)
		}
	}
}

// A session that asked how jobs have ended while the tables were empty does not read all of them when they have grown, and
// nobody has counted them since.
func TestEndsAskedWhileEmpty(t *testing.T) {
	db := testdb.New(t)
	s, loader := open(t, db), open(t, db)
	loader.do(t, `do $$ declare t regclass; begin for t in select c.oid from pg_class c
		where c.relnamespace = 'oq'::regnamespace and c.relkind = 'r' loop
		execute format('alter table %s set (autovacuum_enabled = off)', t); end loop; end $$`)
	pair := func() (enqueue, ack int) {
		parent := get[int64](t, s, "select oq_enqueue('parents', priority => 1)")
		enqueue = touched(t, s, "select oq_enqueue('children', options => jsonb_build_object('depends_on', array[$1::bigint]))", parent)
		token := get[int64](t, s, "select lease_token from oq_lease('parents', 'w', 600)")
		return enqueue, touched(t, s, "select oq_ack($1, $2)", parent, token)
	}
	for range 3 {
		pair()
	}
	enqueue, ack := pair()
	for _, run := range []string{"null", "now() + interval '1 day'"} {
		loader.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[30000]), run_at => "+run+")")
	}
	loader.do(t, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'q', 'depends_on',
		jsonb_build_array(job_id))) from generate_series(1, 5000), (select job_id from oq_jobs where queue_name = 'q' limit 1) j))`)
	pair()
	later, acked := pair()
	t.Logf("%d buffers to enqueue a child, %d later; %d to ack its parent, %d later", enqueue, later, ack, acked)
	if later > enqueue+100 || acked > ack+100 {
		t.Errorf("%d buffers to enqueue a child, %d later; %d to ack its parent, %d later", enqueue, later, ack, acked)
	}
}
