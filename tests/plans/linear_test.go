package plans

import (
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// rows is how many rows went through all nodes of a plan, those that a join looked at in vain included.
func (n node) rows() float64 {
	total := n.Rows*n.Loops + (n.Joined+n.Filtered)*n.Loops
	for _, below := range n.Nested {
		total += below.rows()
	}
	return total
}

// A call of many jobs handles a number of rows that grows with the jobs and not with their square.
func TestBatchesAreLinear(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	calls := []struct{ name, queue, sql string }{
		{"heartbeat", "plain", "select oq_heartbeat_many($1, $2, 600)"},
		{"ack", "plain", "select oq_ack_many($1, $2)"},
		{"ack in groups", "grouped", "select oq_ack_many($1, $2)"},
	}
	s.do(t, "select count(*) from oq_enqueue_bulk('plain', array_fill('{}'::jsonb, array[2000]))")
	for part := range 5 {
		// A transaction lets in a hundred.
		s.do(t, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'grouped',
			'group_key', 'g' || (i % 100 + 100 * $1::int))) from generate_series(1, 200) i))`, part)
	}
	leases := func(queue string, n int) (ids, tokens []int64) {
		s.do(t, "create temp table l on commit preserve rows as select job_id, lease_token from oq_lease($1, max_jobs => $2)", queue, n)
		ids = get[[]int64](t, s, "select array_agg(job_id) from l")
		tokens = get[[]int64](t, s, "select array_agg(lease_token) from l")
		s.do(t, "drop table l")
		if len(ids) != n {
			t.Fatalf("leased %d of %s, want %d", len(ids), queue, n)
		}
		return ids, tokens
	}
	for _, call := range calls {
		t.Run(call.name, func(t *testing.T) {
			few, many := 20, 800
			if call.queue == "grouped" {
				many = 100
			}
			handled := func(n int) float64 {
				ids, tokens := leases(call.queue, n)
				s.do(t, "set auto_explain.log_min_duration = 0")
				s.plans = nil
				s.do(t, call.sql, ids, tokens)
				s.do(t, "set auto_explain.log_min_duration = -1")
				rows := 0.0
				for _, p := range s.plans {
					rows += p.Plan.rows()
				}
				return rows / float64(n)
			}
			one, all := handled(few), handled(many)
			t.Logf("%.1f rows a job by %d, %.1f by %d", one, few, all, many)
			if all > one*1.5 {
				t.Errorf("%.1f rows a job by %d, %.1f by %d", one, few, all, many)
			}
		})
	}
}

// The parents of a job are looked at one by one, whatever else there is.
func TestExplainOfAChild(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	s.do(t, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'q', 'ref', 'p' || i))
		|| jsonb_build_object('queue_name', 'q', 'depends_on_refs', jsonb_agg('p' || i), 'payload', 1) from generate_series(1, 30) i))`)
	child := get[int64](t, s, "select job_id from oq_jobs where payload = '1'")
	explain := func() int {
		buffers := 0
		for range 2 {
			s.do(t, "set auto_explain.log_min_duration = 0")
			s.plans = nil
			if held := get[string](t, s, "select detail from oq_explain($1) where step = 'parent'", child); held == "" {
				t.Fatal("no parent holds it")
			}
			s.do(t, "set auto_explain.log_min_duration = -1")
			top := s.plans[len(s.plans)-1].Plan
			buffers = top.Hit + top.Read
		}
		return buffers
	}
	before := explain()
	s.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[20000]))")
	after := explain()
	t.Logf("%d buffers, %d with 20000 other jobs", before, after)
	if after > 2*before {
		t.Errorf("%d buffers, %d with 20000 other jobs", before, after)
	}
}
