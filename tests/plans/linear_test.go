package plans

import (
	"regexp"
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
				s.explained(t, func() { s.do(t, call.sql, ids, tokens) })
				return s.total(node.rows) / float64(n)
			}
			one, all := handled(few), handled(many)
			t.Logf("%.1f rows a job by %d, %.1f by %d", one, few, all, many)
			if all > one*1.5 {
				t.Errorf("%.1f rows a job by %d, %.1f by %d", one, few, all, many)
			}
		})
	}
}

// list is a filter that goes through an array of job ids for each row; a subquery would be hashed.
var list = regexp.MustCompile(`_id (=|<>) (ANY|ALL) \(+\$`)

// compared is how many rows were held against an array.
func (n node) compared() float64 {
	total := 0.0
	if list.MatchString(n.Filter + n.JoinFilter) {
		total = (n.Rows + n.Filtered + n.Joined) * n.Loops
	}
	for _, below := range n.Nested {
		total += below.compared()
	}
	return total
}

// What an operator does to many jobs that others depend on, or that have keys, grows with the jobs as well.
func TestRepairOfManyIsLinear(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	calls := []struct{ name, fill, sql string }{
		{"purge of parents", `select count(*) from oq_enqueue_many((
			select jsonb_agg(jsonb_build_object('queue_name', 'parents', 'ref', 'p' || i)) || jsonb_agg(jsonb_build_object(
				'queue_name', 'children', 'depends_on_refs', jsonb_build_array('p' || i)))
			  from generate_series(1, $1::int) i))`, "select oq_purge('parents', 'ready', max_jobs => $1)"},
		{"redrive of keys", `select count(oq_nack(l.job_id, l.lease_token, 'no', false))
			from (select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'keys', 'unique_key',
				'k' || $1 || ' ' || i)) from generate_series(1, $1::int) i))) e, oq_lease('keys', max_jobs => $1) l`,
			"select count(*) from oq_redrive('keys', max_jobs => $1)"},
	}
	for _, call := range calls {
		t.Run(call.name, func(t *testing.T) {
			handled := func(n int) (rows, compared float64) {
				s.do(t, call.fill, n)
				s.do(t, "analyze") // oq_purge plans each time, by what is known of the tables
				s.explained(t, func() {
					if done := get[int64](t, s, call.sql, n); done != int64(n) {
						t.Fatalf("%d done, want %d", done, n)
					}
				})
				return s.total(node.rows) / float64(n), s.total(node.compared) / float64(n)
			}
			one, listed := handled(20)
			all, more := handled(1000)
			t.Logf("%.1f rows a job by 20, %.1f by 1000; %.1f and %.1f held against lists", one, all, listed, more)
			if all > one*1.5 {
				t.Errorf("%.1f rows a job by 20, %.1f by 1000", one, all)
			}
			if more > 0 {
				t.Errorf("%.1f rows a job are held against a list of 1000", more)
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
			s.explained(t, func() {
				if held := get[string](t, s, "select detail from oq_explain($1) where step = 'parent'", child); held == "" {
					t.Fatal("no parent holds it")
				}
			})
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

// A session that dropped queues while the tables were empty looks jobs up by the index when they have grown.
func TestDropAfterEmpty(t *testing.T) {
	db := testdb.New(t)
	s, loader := open(t, db), open(t, db)
	fill := func(n int) {
		loader.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[$1::int]))", n)
	}
	for range 8 {
		fill(10)
		s.do(t, "select oq_drop_queue('q', force => true)")
	}
	loader.do(t, "select count(*) from oq_enqueue_bulk('other', array_fill('{}'::jsonb, array[20000]))")
	fill(500)
	s.explained(t, func() { s.do(t, "select oq_drop_queue('q', force => true)") })
	compared := s.total(node.compared)
	t.Logf("%.0f rows were held against a list of 500 jobs", compared)
	if compared > 5000 {
		t.Errorf("%.0f rows were held against a list of 500 jobs", compared)
	}
}

// The dead jobs of one queue can be found by its index, however many others have.
func TestDeadOfAQueue(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	bury := func(queue string, n int) {
		s.do(t, "select count(*) from oq_enqueue_bulk($1, array_fill('{}'::jsonb, array[$2::int]))", queue, n)
		s.do(t, "select count(oq_nack(job_id, lease_token, 'no', false)) from oq_lease($1, max_jobs => $2)", queue, n)
	}
	bury("q", 20)
	bury("other", 8000)
	for _, set := range []string{"seqscan", "hashjoin", "mergejoin", "bitmapscan"} {
		s.do(t, "set enable_"+set+" = off") // so few are read whole by others
	}
	s.explained(t, func() {
		if n := get[int](t, s, "select count(*)::int from oq_dead where queue_name = 'q'"); n != 20 {
			t.Fatalf("%d dead jobs, want 20", n)
		}
	})
	rows := s.total(node.rows)
	t.Logf("%.0f rows for 20 dead jobs beside 8000", rows)
	if rows > 1000 {
		t.Errorf("%.0f rows for 20 dead jobs beside 8000", rows)
	}
}
