package plans

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// touched runs a statement in a transaction and adds up the buffers of all that is explained, what happens
// before the commit included. Statements in functions count more than once, each time alike.
func touched(t testing.TB, s *session, sql string, args ...any) (buffers int) {
	t.Helper()
	ticked(t, s)
	s.explained(t, func() {
		s.do(t, "begin")
		s.do(t, sql, args...)
		s.do(t, "commit")
	})
	if os.Getenv("OQ_TEST_SHOW_PLANS") != "" {
		for _, p := range s.plans {
			if n := p.Plan.Hit + p.Plan.Read; n > 40 {
				t.Logf("%d buffers: %.400s", n, p.Query)
			}
		}
	}
	for _, p := range s.plans {
		buffers += p.Plan.Hit + p.Plan.Read
		for _, table := range p.seqScans() {
			t.Errorf("scans all of %s in: %s", table, p.Query)
		}
	}
	return buffers
}

// least is what the cheapest of five calls touches: the first of a second also raises marks, and a tick looks after more.
func least(t testing.TB, s *session, sql string) int {
	t.Helper()
	n := touched(t, s, sql)
	for range 4 {
		n = min(n, touched(t, s, sql))
	}
	return n
}

// turns of a grouped job, and what its enqueue, lease and ack touch.
func groupTurn(t testing.TB, s *session, key string) (enqueue, lease, ack int) {
	t.Helper()
	enqueue = touched(t, s, "select oq_enqueue('q', group_key => $1)", key)
	lease = touched(t, s, "create temp table l on commit preserve rows as select job_id, lease_token from oq_lease('q')")
	id, token := get[int64](t, s, "select job_id from l"), get[int64](t, s, "select lease_token from l")
	ack = touched(t, s, "select oq_ack($1, $2)", id, token)
	s.do(t, "drop table l")
	return
}

// A hot group stays flat while a snapshot is held, with a line and without one: what was let in is never walked.
func TestHotGroupIsFlat(t *testing.T) {
	for _, line := range []int{0, 50} {
		db := testdb.New(t)
		s, holder, loader := open(t, db), open(t, db), open(t, db)
		s.do(t, "select count(oq_enqueue('q', group_key => 'hot')) from generate_series(0, $1::int)", line)
		if line == 0 {
			s.do(t, "select oq_ack(job_id, lease_token) from oq_lease('q')")
		}
		holder.do(t, "begin isolation level repeatable read")
		holder.do(t, "select 1")
		for range 6 {
			groupTurn(t, s, "hot")
		}
		e1, l1, a1 := groupTurn(t, s, "hot")
		for turn := range 1500 {
			loader.do(t, "select oq_enqueue('q', group_key => 'hot')")
			loader.do(t, "select oq_ack(job_id, lease_token) from oq_lease('q')")
			if turn%100 == 0 {
				loader.do(t, "update oq.mark set raised_at = raised_at - interval '2 s' where lane >= 0")
				loader.do(t, "select from oq_tick()")
			}
		}
		groupTurn(t, s, "hot")
		e2, l2, a2 := groupTurn(t, s, "hot")
		t.Logf("line of %d: enqueue %d -> %d, lease %d -> %d, ack %d -> %d buffers after 1500 jobs", line, e1, e2, l1, l2, a1, a2)
		for name, n := range map[string][2]int{"enqueue": {e1, e2}, "lease": {l1, l2}, "ack": {a1, a2}} {
			if n[1] > n[0]*3/2+150 {
				t.Errorf("line of %d: %s touched %d buffers, %d after 1500 jobs", line, name, n[0], n[1])
			}
		}
	}
}

// Many groups cost no more than one, each with two in line behind the one that may run. OQ_TEST_GROUPS=100000
// asks for more than there is time for otherwise.
func TestManyGroups(t *testing.T) {
	groups := 20000
	if text := os.Getenv("OQ_TEST_GROUPS"); text != "" {
		var err error
		if groups, err = strconv.Atoi(text); err != nil || groups%10000 != 0 {
			t.Fatalf("OQ_TEST_GROUPS=%s is not a multiple of 10000", text)
		}
	}
	db := testdb.New(t)
	s, loader := open(t, db), open(t, db)
	s.do(t, "select count(oq_enqueue('q', group_key => 'one')) from generate_series(1, 10)")
	for range 6 {
		groupTurn(t, s, "one")
	}
	e1, l1, a1 := groupTurn(t, s, "one")
	for part := range groups / 10000 {
		began := time.Now()
		loader.do(t, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'q',
			'group_key', 'g' || (10000 * $1::int + i % 10000))) from generate_series(1, 30000) i))`, part)
		for range 400 {
			if get[int64](t, loader, "select count(*) from oq.todo") == 0 {
				break
			}
			loader.do(t, "select from oq_tick()")
		}
		t.Logf("30000 jobs of 10000 groups: %s", time.Since(began).Round(time.Millisecond))
	}
	if n := get[int64](t, loader, "select ready from oq_stats('q')"); n != int64(groups)+1 {
		t.Fatalf("%d of %d groups have a ready job", n, groups+1)
	}
	for range 3 {
		groupTurn(t, s, "one")
	}
	e2, l2, a2 := groupTurn(t, s, "one")
	t.Logf("enqueue %d -> %d, lease %d -> %d, ack %d -> %d buffers with %d groups", e1, e2, l1, l2, a1, a2, groups)
	for name, n := range map[string][2]int{"enqueue": {e1, e2}, "lease": {l1, l2}, "ack": {a1, a2}} {
		if n[1] > n[0]*2+100 {
			t.Errorf("%s touched %d buffers, %d with %d groups", name, n[0], n[1], groups)
		}
	}
	// The sweep goes round them a thousand at a time, and finds none forgotten.
	loader.do(t, "select oq.sweep_groups(100000)")
	if n := get[int64](t, loader, "select count(*) from oq.todo"); n != 0 {
		t.Errorf("%d groups look forgotten", n)
	}
}

// The sweeps look at so much a second, however much is dead in the registers while somebody keeps VACUUM and compaction
// away, as a dump does.
func TestSweepsAreFlat(t *testing.T) {
	db := testdb.New(t)
	s, holder, loader := open(t, db), open(t, db), open(t, db)
	for _, sql := range []string{"seqscan", "bitmapscan", "hashjoin", "mergejoin"} {
		s.do(t, "set enable_"+sql+" = off") // as in a tick
	}
	s.do(t, "select count(oq_enqueue('q', group_key => 'k' || i)) from generate_series(1, 30) i")
	s.do(t, "select oq_limit('q', '*', max_running => 2, rate => 5)")
	sweeps := func() int {
		return touched(t, s, "select oq.sweep_groups(1000)") + touched(t, s, "select oq.sweep_links(1000)")
	}
	sweeps()
	before := sweeps()
	holder.do(t, "begin isolation level repeatable read")
	holder.do(t, "lock table oq.group_slot, oq.limit_slot, oq.waiting, oq.throttled, oq.dependency in access share mode")
	holder.do(t, "select 1")
	for _, sql := range []string{
		"insert into oq.group_slot (group_id, job_id, low, admitted_at, slot) select 1 + i % 50, -i, 0, now(), 0 from generate_series(1, 30000) i",
		"insert into oq.limit_slot (holder, slot, job_id, token, taken_at) select i % 50, i, -i, 0, now() from generate_series(1, 30000) i",
		`insert into oq.waiting (job_id, lane, holder, group_id, position)
			select -i, 0, 'group', 1 + i % 50, i from generate_series(1, 30000) i`,
		"insert into oq.waiting (job_id, lane, holder, position) select i, 0, 'parent', i from generate_series(1000001, 1060000) i",
		"insert into oq.throttled (queue_id, group_id, until) select 7, i, now() from generate_series(1, 30000) i",
		"insert into oq.dependency (parent_id, child_id) select i, i + 1 from generate_series(1000001, 1060000) i",
		"delete from oq.dependency where parent_id > 1000000",
		"delete from oq.group_slot where job_id < 0",
		"delete from oq.limit_slot where job_id < 0",
		"delete from oq.waiting where lane = 0",
		"delete from oq.throttled where queue_id = 7",
	} {
		loader.do(t, sql)
	}
	after := sweeps()
	t.Logf("the sweeps touched %d buffers, %d after 30000 rows died in each register", before, after)
	if after > 2*before+1300 {
		t.Errorf("the sweeps touched %d buffers, %d after 30000 rows died in each register", before, after)
	}
}

// Neither a tick nor an empty lease walks the todos that have died since a snapshot was taken, while somebody keeps
// oq_compact away.
func TestDeadTodosAreNotWalked(t *testing.T) {
	db := testdb.New(t)
	s, holder, loader := open(t, db), open(t, db), open(t, db)
	s.do(t, "select oq_enqueue('q', group_key => 'a')")
	s.do(t, "select oq_ack(job_id, lease_token) from oq_lease('q')")
	tick, lease := "select from oq_tick()", "select from oq_lease('q')"
	t1, l1 := least(t, s, tick), least(t, s, lease)
	holder.do(t, "begin isolation level repeatable read")
	holder.do(t, "lock table oq.todo in access share mode")
	holder.do(t, "select 1")
	loader.do(t, `insert into oq.todo (kind, id, queue_id, due_at)
		select 'group', i, 7, clock_timestamp() - interval '1 minute' from generate_series(1, 30000) i`)
	loader.do(t, "delete from oq.todo where queue_id = 7")
	s.do(t, "select setval('oq.beat', 1)")
	s.do(t, "select from oq_tick()")
	t2, l2 := least(t, s, tick), least(t, s, lease)
	t.Logf("a tick touched %d buffers, %d after 30000 todos died; an empty lease %d and %d", t1, t2, l1, l2)
	if t2 > 2*t1+100 || l2 > 2*l1+100 {
		t.Errorf("a tick touched %d buffers, %d after 30000 todos died; an empty lease %d and %d", t1, t2, l1, l2)
	}
}

// What is left to do for thousands of groups of one queue is not gone through by who asks for another queue, nor by who
// looks for dependents.
func TestTodosOfOthersAreNotWalked(t *testing.T) {
	db := testdb.New(t)
	s, loader := open(t, db), open(t, db)
	loader.do(t, "select oq_enqueue('other', group_key => 'g')")
	loader.do(t, "select oq_enqueue('child', options => jsonb_build_object('depends_on', array[oq_enqueue('parent')]))")
	loader.do(t, "select oq_tick()")
	loader.do(t, "select oq_lease('other')")
	asks := []string{"select oq_lease('other')", "select oq_lease('child')", "select oq.do_links(1000, null, true)",
		"select oq.sweep_groups(100)"} // of which each is found on the list by its id
	for _, set := range []string{"enable_seqscan = off", "enable_bitmapscan = off", "plan_cache_mode = force_generic_plan"} {
		s.do(t, "set "+set) // as in a tick
	}
	ask := func() (buffers [4]int) {
		for i, sql := range asks {
			buffers[i] = least(t, s, sql)
		}
		return buffers
	}
	before := ask()
	loader.do(t, `select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'q', 'group_key', 'g' || i))
		from generate_series(1, 6000) i))`)
	if left := get[int](t, s, "select count(*)::int from oq.todo where kind = 'group'"); left < 5000 {
		t.Fatalf("%d groups are left to do", left)
	}
	loader.do(t, "insert into oq.todo (kind, id, queue_id, due_at) select 'group', i, 1, now() from generate_series(1, 50000) i")
	loader.do(t, "vacuum oq.todo") // as autovacuum does: it counts the rows and not their ids
	after := ask()
	for i, sql := range asks {
		t.Logf("%s: %d buffers, %d beside todos of other queues", sql, before[i], after[i])
		if after[i] > before[i]+20 && (i < 3 || after[i] > 2500) {
			t.Errorf("%s: %d buffers, %d beside todos of other queues", sql, before[i], after[i])
		}
	}
}

// A tick that raises the marks of many lanes handles a number of rows that grows with the lanes and not with their square.
func TestMovingLanesAreLinear(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	for _, set := range []string{"enable_seqscan = off", "enable_bitmapscan = off", "enable_hashjoin = off", "enable_mergejoin = off",
		"plan_cache_mode = force_generic_plan"} {
		s.do(t, "set "+set) // as in a tick
	}
	handled := func(lanes int) float64 {
		s.do(t, "select count(oq_enqueue('q' || i)) from generate_series(1, $1::int) i", lanes)
		s.do(t, "select count(oq_ack(l.job_id, l.lease_token)) from generate_series(1, $1::int) i, oq_lease('q' || i, max_jobs => 10) l", lanes)
		s.do(t, "select oq_tick()")
		s.do(t, "select setval('oq.position', last_value + 100000) from oq.position")
		s.explained(t, func() {
			if moved := get[int64](t, s, "select oq.advance(false)"); moved < int64(lanes) {
				t.Fatalf("%d marks were raised, want %d", moved, lanes)
			}
		})
		return s.total(node.rows) / float64(lanes)
	}
	few, many := handled(20), handled(400)
	t.Logf("%.1f rows a lane for 20 lanes, %.1f for 400", few, many)
	if many > few*1.5 {
		t.Errorf("%.1f rows a lane for 20 lanes, %.1f for 400", few, many)
	}
}

// A tick writes nothing for lanes that have had no job for a while, whatever goes on elsewhere; the next lease finds them so.
func TestUnusedLanesAreLeftAlone(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	s.do(t, "select count(oq_enqueue('q' || i)) from generate_series(1, 300) i")
	s.do(t, "select count(oq_ack(l.job_id, l.lease_token)) from generate_series(1, 300) i, oq_lease('q' || i) l")
	s.do(t, "select oq_tick()")
	elsewhere := func() (raised int64) {
		s.do(t, "select setval('oq.position', last_value + 100000) from oq.position")
		last := get[int64](t, s, "select max(mark_id) from oq.mark")
		s.do(t, "select oq_advance()")
		return get[int64](t, s, "select max(mark_id) - $1 from oq.mark", last)
	}
	if raised := elsewhere(); raised < 300 {
		t.Fatalf("%d marks were raised of lanes just used, want 300", raised)
	}
	s.do(t, "update oq.mark set seen_at = seen_at - interval '11 seconds', raised_at = raised_at - interval '11 seconds' where lane > 0")
	if raised := elsewhere(); raised > 4 { // those of time
		t.Errorf("%d marks were raised, of 300 unused lanes", raised)
	}
	s.do(t, "select oq_enqueue('q1')")
	s.do(t, "select oq_tick()")
	s.do(t, "select oq_lease('q1')")
	s.do(t, "select oq_tick()")
	if raised := elsewhere(); raised < 1 || raised > 5 {
		t.Errorf("%d marks were raised where one lane was used, of 300", raised)
	}
}

// A tick looks at lanes that have a backlog and no worker together, not one by one.
func TestIdleLanesTogether(t *testing.T) {
	db := testdb.New(t)
	s := open(t, db)
	statements := func(queues int) int {
		s.do(t, "select count(oq_enqueue('q' || i)) from generate_series(1, $1::int) i", queues)
		s.do(t, "select oq_tick()")
		s.do(t, "update oq.mark set raised_at = raised_at - interval '1 hour' where lane >= 0")
		s.do(t, "select oq_tick()")
		s.do(t, "update oq.mark set raised_at = raised_at - interval '1 hour' where lane >= 0")
		s.explained(t, func() { s.do(t, "select oq.advance(false)") })
		return len(s.plans)
	}
	few, many := statements(10), statements(300)
	t.Logf("%d statements for 10 lanes, %d for 300", few, many)
	if many > few+20 {
		t.Errorf("%d statements for 10 lanes, %d for 300", few, many)
	}
}
