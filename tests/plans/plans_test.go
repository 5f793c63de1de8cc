// Package plans holds the hot calls to index scans and to few buffers, statements and locks, whatever
// the tables held when their plans were made. Counts, not times: they are the same on every machine.
package plans

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

// session explains every statement that it runs, those inside functions included.
type session struct {
	*pgx.Conn
	plans []plan
}

// explained keeps the plans of all statements of what it does, and of nothing else, in s.plans.
func (s *session) explained(t testing.TB, do func()) {
	t.Helper()
	s.do(t, "set auto_explain.log_min_duration = 0")
	s.plans = nil
	do()
	s.do(t, "set auto_explain.log_min_duration = -1")
}

// total is the sum of what is counted in each of the plans, but for the reaper's look.
func (s *session) total(count func(node) float64) (total float64) {
	for _, p := range s.plans {
		if !p.look() {
			total += count(p.Plan)
		}
	}
	return total
}

// plan is what auto_explain says of one statement.
type plan struct {
	Query string `json:"Query Text"`
	Plan  node   `json:"Plan"`
}

type node struct {
	Type   string `json:"Node Type"`
	Name   string `json:"Relation Name"`
	Hit    int    `json:"Shared Hit Blocks"`
	Read   int    `json:"Shared Read Blocks"`
	Record int    `json:"WAL Records"`
	Bytes  int    `json:"WAL Bytes"`

	Rows     float64 `json:"Actual Rows"` // of each loop
	Loops    float64 `json:"Actual Loops"`
	Joined   float64 `json:"Rows Removed by Join Filter"`
	Filtered float64 `json:"Rows Removed by Filter"`

	Filter     string `json:"Filter"`
	JoinFilter string `json:"Join Filter"`

	Nested []node `json:"Plans"`
}

// look is the reaper's, which reads all leases: once a second, whoever comes first.
func (p plan) look() bool {
	return strings.Contains(p.Query, "l.expires_at <= v_began + interval '1 second'")
}

func (p plan) seqScans() []string {
	if p.look() {
		return nil
	}
	return p.Plan.seqScans()
}

func (n node) seqScans() []string {
	var names []string
	// These two have one row and three rows, for ever.
	if n.Type == "Seq Scan" && n.Name != "instance" && n.Name != "generation_state" {
		names = append(names, n.Name)
	}
	for _, below := range n.Nested {
		names = append(names, below.seqScans()...)
	}
	return names
}

func open(t testing.TB, db *testdb.DB) *session {
	t.Helper()
	s := &session{}
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		_, text, explained := strings.Cut(notice.Message, "plan:\n")
		if !explained {
			return
		}
		var p plan
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Errorf("auto_explain: %v in %s", err, notice.Message)
		}
		s.plans = append(s.plans, p)
	}
	if s.Conn, err = pgx.ConnectConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Conn.Close(context.Background()) })
	for _, sql := range []string{
		"load 'auto_explain'",
		"set auto_explain.log_analyze = on",
		"set auto_explain.log_timing = off",
		"set auto_explain.log_buffers = on",
		"set auto_explain.log_wal = on",
		"set auto_explain.log_nested_statements = on",
		"set auto_explain.log_format = json",
		"set auto_explain.log_level = notice",
	} {
		s.do(t, sql)
	}
	return s
}

func (s *session) do(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := s.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func get[T any](t testing.TB, s *session, sql string, args ...any) T {
	t.Helper()
	rows, err := s.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// cost is what one call took: locks are relations, each of which takes a slot of the backend's fast path.
type cost struct {
	buffers    int
	statements int
	locks      int
	records    int // of WAL, without the pages that a checkpoint makes it carry whole
	bytes      int
}

type lease struct{ ID, Token int64 }

// leases jobs of q that a call is to be tried on.
func leases(t testing.TB, s *session, n int) (ids, tokens []int64) {
	t.Helper()
	rows, err := s.Query(t.Context(), "select job_id, lease_token from oq_lease('q', 'w', 600, $1)", n)
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[lease])
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != n {
		t.Fatalf("leased %d jobs, want %d", len(jobs), n)
	}
	for _, j := range jobs {
		ids = append(ids, j.ID)
		tokens = append(tokens, j.Token)
	}
	return ids, tokens
}

// calls are the hot ones. Each is given as many leased jobs as it needs; rows is how many jobs it moves.
var calls = []struct {
	name   string
	sql    string
	leased int
	rows   int
}{
	{"oq_enqueue", "select oq_enqueue('q', '{\"a\": 1}')", 0, 1},
	{"oq_enqueue priority", "select oq_enqueue('q', priority => 5, max_retries => 2)", 0, 1},
	{"oq_enqueue delay", `select oq_enqueue('q', options => '{"delay": "1 day"}')`, 0, 1},
	{"oq_enqueue_bulk 100", "select oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[100]))", 0, 100},
	{"oq_lease 1", "select oq_lease('q', 'w', 600, 1)", 0, 1},
	{"oq_lease 1 plain", "select oq_lease('q')", 0, 1},
	{"oq_lease 100", "select oq_lease('q', 'w', 600, 100)", 0, 100},
	{"oq_lease empty", "select oq_lease('empty')", 0, 1},
	{"lease while writing", "select oq_lease('empty') from pg_current_xact_id(), pg_sleep(0.01)", 0, 1},
	{"oq_ack", "select oq_ack(($1::bigint[])[1], ($2::bigint[])[1])", 1, 1},
	{"oq_ack_many 100", "select oq_ack_many($1, $2)", 100, 100},
	{"oq_next 1", "select oq_next('q', 'w', 600, 1, $1, $2)", 1, 1},
	{"oq_next 100", "select oq_next('q', 'w', 600, 100, $1, $2)", 100, 200},
	{"oq_nack", "select oq_nack(($1::bigint[])[1], ($2::bigint[])[1], 'no')", 1, 1},
	{"oq_release", "select oq_release(($1::bigint[])[1], ($2::bigint[])[1])", 1, 1},
	{"oq_heartbeat", "select oq_heartbeat(($1::bigint[])[1], ($2::bigint[])[1], 600)", 1, 1},
	{"oq_heartbeat lost", "select oq_heartbeat(($1::bigint[])[1], 1)", 1, 1},
	{"oq_heartbeat_many 100", "select oq_heartbeat_many($1, $2, 600)", 100, 100},
	{"oq_cancel", "select oq_cancel(($1::bigint[])[1])", 1, 1},
	{"oq_update", "select oq_update(oq_enqueue('q'), '{\"priority\": 1}')", 0, 2},
	{"oq_get", "select oq_get(($1::bigint[])[1])", 1, 1},
	{"oq_list 100", "select oq_list('q')", 0, 100},
	// Two keys in all: the tick, which is measured too, looks at some once a second.
	{"unique_key new", "select oq_cancel(oq_enqueue('other', unique_key => 'n'))", 0, 1},
	{"unique_key taken", "select oq_enqueue('other', unique_key => 'k')", 0, 1},
	{"unique_key replace", `select oq_enqueue('other', unique_key => 'k', options => '{"unique_mode": "replace"}')`, 0, 1},
	{"unique_key debounce", `select oq_enqueue('other', unique_key => 'k',
		options => '{"unique_mode": "debounce", "delay": "1 h"}')`, 0, 1},
	{"oq_tick", "select oq_tick()", 0, 50},
}

// ticked leaves what a tick leaves behind, for a second: a lease that finds it older does some of the daemon's work.
func ticked(t testing.TB, s *session) {
	t.Helper()
	// In the same second: the first tick of each does more.
	s.do(t, `select setval('oq.beat', greatest(ms - 100, ms / 1000 * 1000))
		from (select (date_part('epoch', clock_timestamp()) * 1000)::bigint as ms) now`)
	s.do(t, "update oq.mark set raised_at = clock_timestamp() where lane >= 0")
}

// measure runs every call once and says what it took. Any sequential scan of a table of the engine fails.
func measure(t testing.TB, s, observer *session, stage string) map[string]cost {
	t.Helper()
	costs := map[string]cost{}
	for i, tries := 0, 0; i < len(calls); {
		call := calls[i]
		var args []any
		if call.leased > 0 {
			ids, tokens := leases(t, s, call.leased)
			args = append(args, ids)
			if strings.Contains(call.sql, "$2") {
				args = append(args, tokens)
			}
		}
		ticked(t, s)
		began := time.Now()
		if call.name == "oq_tick" {
			// Once a second a tick does more than at other times: this is that one.
			// So does the look for expired leases.
			s.do(t, "select setval('oq.beat', greatest(last_value - 1000, 0)), setval('oq.reap_after', 0) from oq.beat")
		}
		s.do(t, "begin")
		s.do(t, "set local auto_explain.log_min_duration = 0")
		s.plans = nil
		s.do(t, call.sql, args...)
		locks := get[int](t, observer, `select count(distinct relation)::int from pg_locks where pid = $1 and locktype = 'relation'`,
			s.PgConn().PID())
		// The call's own plan comes when its portal is closed, after those of its statements.
		s.do(t, "commit")
		if time.Since(began) > 900*time.Millisecond && tries < 20 {
			tries++ // That tick may have been too long ago.
			continue
		}
		i, tries = i+1, 0
		plans := s.plans
		if len(plans) == 0 {
			t.Fatalf("%s: %s was not explained", stage, call.name)
		}
		for _, p := range plans {
			for _, table := range p.seqScans() {
				t.Errorf("%s: %s scans all of %s in: %s", stage, call.name, table, p.Query)
			}
		}
		top := plans[len(plans)-1]
		costs[call.name] = cost{top.Plan.Hit + top.Plan.Read, len(plans) - 1, locks, top.Plan.Record, top.Plan.Bytes}
	}
	return costs
}

// fill brings the queue to so many ready jobs, and the other places to a tenth of it.
func fill(t testing.TB, s *session, ready int) {
	t.Helper()
	for left := ready; left > 0; left -= 50000 {
		n := min(left, 50000)
		s.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{\"file\": \"x\"}'::jsonb, array[$1::int]))", n)
	}
	tenth := ready / 10
	for left := tenth; left > 0; left -= 50000 {
		s.do(t, `select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[$1::int]),
			run_at => now() + interval '1 day')`, min(left, 50000))
	}
	for left := tenth; left > 0; left -= 5000 {
		ids, tokens := leases(t, s, min(left, 5000))
		half := len(ids) / 2
		s.do(t, "select count(*) from oq_ack_many($1, $2)", ids[:half], tokens[:half])
	}
	s.do(t, "select oq_tick(), oq_tick()")
}

// A session that planned everything while the tables were empty, as they grow to a million rows: with
// and without new statistics in between, and at the end with a generation of its jobs behind it.
func TestPlansMadeWhileEmpty(t *testing.T) {
	db := testdb.New(t)
	s, loader := open(t, db), open(t, db)
	// A tick that ran while a lane was idle did other work than one beside load: all begin alike.
	loader.do(t, "select oq_enqueue('empty')")
	loader.do(t, "select oq_ack(job_id, lease_token) from oq_lease('empty')")
	loader.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[600]))")
	for range 8 {
		measure(t, s, loader, "while nearly empty")
		loader.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[600]))")
	}
	base := measure(t, s, loader, "while nearly empty")

	check := func(stage string, s *session) {
		t.Helper()
		began := time.Now()
		s.do(t, "select oq_tick(), oq_tick()")
		measure(t, s, loader, stage) // a new session reads the catalog
		costs := measure(t, s, loader, stage)
		for _, call := range calls {
			was, is := base[call.name], costs[call.name]
			// An index of a million rows is two levels higher than one of none, and there are a dozen.
			allowed := 2*was.buffers + 60 + 6*call.rows
			if call.name == "oq_tick" { // its look for expired leases reads all leases
				allowed += get[int](t, loader, "select (pg_relation_size('oq.leased') / 8192)::int")
			}
			if is.buffers > allowed {
				t.Errorf("%s: %s touched %d buffers, %d while empty", stage, call.name, is.buffers, was.buffers)
			}
			if is.locks > 20 && strings.HasPrefix(call.name, "oq_") && hot(call.name) {
				t.Errorf("%s: %s locks %d relations", stage, call.name, is.locks)
			}
		}
		t.Logf("%s: %s", stage, time.Since(began).Round(time.Millisecond))
	}
	fill(t, loader, 1000)
	check("1000 jobs", s)
	loader.do(t, "analyze")
	check("1000 jobs, analyzed", s)
	fill(t, loader, 1000000)
	check("a million jobs", s)
	check("a million jobs, new session", open(t, db))
	loader.do(t, "analyze")
	check("a million jobs, analyzed", s)
	check("a million jobs, analyzed, new session", open(t, db))

	// The jobs are in a generation that is not the current one.
	for turn := range 2 {
		before := get[int64](t, loader, "select last_value from oq.generation")
		loader.do(t, "update oq.generation_state set opened_at = opened_at - interval '1 year' where stage = 'current'")
		loader.do(t, "select oq_rotate()")
		if get[int64](t, loader, "select last_value from oq.generation") == before {
			t.Fatal("the generation did not change")
		}
		check(fmt.Sprintf("%d generations later", turn+1), s)
	}
	for _, call := range calls {
		is := measureOne(t, s, loader, call.name)
		t.Logf("%-24s %4d buffers %3d statements %3d relation locks %4d WAL records %6d bytes",
			call.name, is.buffers, is.statements, is.locks, is.records, is.bytes)
	}
}

// hot calls are those whose locks are to fit a backend's fast path.
func hot(name string) bool {
	switch strings.Fields(name)[0] {
	case "oq_enqueue", "oq_enqueue_bulk", "oq_lease", "oq_ack", "oq_ack_many", "oq_next":
		return name != "oq_lease empty"
	}
	return false
}

func measureOne(t testing.TB, s, observer *session, name string) cost {
	t.Helper()
	all := calls
	defer func() { calls = all }()
	for _, call := range all {
		if call.name == name {
			calls = calls[:0:0]
			calls = append(calls, call)
		}
	}
	return measure(t, s, observer, "at the end")[name]
}

// An old snapshot, an open writer, an open producer, a prepared transaction: dead rows pile up where
// leases begin, and none may walk them.
func TestFlatWhileOldSnapshotsAreHeld(t *testing.T) {
	holders := map[string][]string{
		"snapshot":             {"begin isolation level repeatable read", "select 1"},
		"open writer":          {"begin", "create temp table t (x int)"},
		"open producer":        {"begin", "select oq_enqueue('q')", "select oq_enqueue('other')"},
		"prepared transaction": {"begin", "select oq_enqueue('q')", "prepare transaction 'held'"},
		"open lease":           {"begin", "select oq_lease('q')"},
	}
	for name, hold := range holders {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			s, holder, loader := open(t, db), open(t, db), open(t, db)
			loader.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[100]))")
			for _, sql := range hold {
				holder.do(t, sql)
			}
			if name == "prepared transaction" {
				t.Cleanup(func() { holder.Exec(context.Background(), "rollback prepared 'held'") })
			}
			turn := func(n int) {
				for range n {
					loader.do(t, "select count(*) from oq_enqueue_bulk('q', array_fill('{}'::jsonb, array[500]))")
					ids, tokens := leases(t, loader, 500)
					loader.do(t, "select count(*) from oq_ack_many($1, $2)", ids, tokens)
					// Else it would be a second before a mark passes over what an open lease holds.
					loader.do(t, "update oq.mark set raised_at = raised_at - interval '2 s' where lane >= 0")
					loader.do(t, "select from oq_tick()")
				}
			}
			one := func() (buffers int) {
				for range 20 {
					ticked(t, s)
					began := time.Now()
					s.explained(t, func() { s.do(t, "select oq_lease('q', 'w', 600, 1)") })
					top := s.plans[len(s.plans)-1]
					buffers = top.Plan.Hit + top.Plan.Read
					if time.Since(began) < 900*time.Millisecond {
						break
					}
				}
				return buffers
			}
			one()
			turn(2)
			one()
			before := one()
			turn(40)
			after := one()
			t.Logf("a lease touched %d buffers, %d after 20000 jobs", before, after)
			if after > before+60 {
				t.Errorf("a lease touched %d buffers, and %d after 20000 jobs", before, after)
			}
		})
	}
}
