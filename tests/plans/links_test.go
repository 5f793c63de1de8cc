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
