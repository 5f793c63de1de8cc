package random

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// lines is what a run knows of the groups of a queue: who stands in line, in the order of the commits.
// What was put off or redriven floats: it may come any time, but never beside another.
type lines struct {
	r        *run
	line     map[string][]int64
	group    map[int64]string
	floating map[int64]bool
	held     map[int64]int64 // job: token
	open     []*producer
}

// producer has a transaction open, with jobs that are in line once it commits.
type producer struct {
	conn  *pgx.Conn
	level string
	added []int64
}

// TestRandomGroups does random things to jobs of groups from several sessions, some of which keep their
// transactions open, at every isolation level. After each: the laws, and of every group one job runs, the
// first in line. In the end nothing is left.
func TestRandomGroups(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6}
	if text := os.Getenv("OQ_TEST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			r := &run{t: t, conn: db.Conn(t), rnd: rand.New(rand.NewPCG(seed, 2)), done: map[string]int{}}
			l := &lines{r: r, line: map[string][]int64{}, group: map[int64]string{}, floating: map[int64]bool{}, held: map[int64]int64{}}
			for range 3 {
				l.open = append(l.open, &producer{conn: db.Conn(t)})
			}
			r.exec(`select oq_create_queue('q', '{"max_lost_leases": 1000, "max_retries": 1000, "retry": {"base": "1 hour", "max": "1 hour"}}')`)
			for r.step = range steps {
				l.one()
				l.laws()
			}
			l.finish()
			t.Logf("%d jobs, %v", len(l.group), r.done)
		})
	}
}

func (l *lines) any() (int64, bool) {
	var ids []int64
	for id := range l.group {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return 0, false
	}
	slices.Sort(ids)
	return pick(l.r, ids[max(0, len(ids)-40):]), true
}

func (l *lines) leave(id int64) {
	g := l.group[id]
	l.line[g] = slices.DeleteFunc(l.line[g], func(other int64) bool { return other == id })
	delete(l.held, id)
}

func (l *lines) one() {
	r := l.r
	name := pick(r, []string{"enqueue", "enqueue", "enqueue", "many", "begin", "commit", "commit", "rollback", "lease", "lease",
		"lease", "lease", "ack", "ack", "ack", "nack", "nack", "release", "cancel", "update", "change", "redrive", "purge", "throttle", "tick",
		"tick", "time", "compact", "rotate", "undone", "expire"})
	r.done[name]++
	key := fmt.Sprint("g", r.rnd.IntN(4))
	p := pick(r, l.open)
	var id, token int64
	for id, token = range l.held {
		break
	}
	switch name {
	case "enqueue":
		var n int64
		if p.level == "" {
			n = one[int64](r, "select oq_enqueue('q', group_key => $1, priority => $2)", key, pick(r, priorities))
			l.line[key] = append(l.line[key], n)
		} else {
			if err := p.conn.QueryRow(context.Background(), "select oq_enqueue('q', group_key => $1)", key).Scan(&n); err != nil {
				r.fail("enqueue at %s: %v", p.level, err)
			}
			r.log = append(r.log, fmt.Sprintf("%d: %s in an open transaction, %s -> %d", r.step, key, p.level, n))
			p.added = append(p.added, n)
		}
		l.group[n] = key
	case "many":
		ids := list[int64](r, `select job_id from oq_enqueue_many(jsonb_build_array(
			jsonb_build_object('queue_name', 'q', 'group_key', $1::text), jsonb_build_object('queue_name', 'q', 'group_key', 'g0'),
			jsonb_build_object('queue_name', 'q', 'group_key', $1::text))) order by idx`, key)
		for i, n := range ids {
			l.group[n] = []string{key, "g0", key}[i]
			l.line[l.group[n]] = append(l.line[l.group[n]], n)
		}
	case "begin":
		if p.level == "" {
			p.level = pick(r, []string{"read committed", "repeatable read"})
			if _, err := p.conn.Exec(context.Background(), "begin isolation level "+p.level+"; select 1 from oq_queues; savepoint s"); err != nil {
				r.fail("%v", err)
			}
		}
	case "commit", "rollback":
		l.end(p, name)
	case "lease":
		l.lease(1 + r.rnd.IntN(4))
	case "ack":
		if id > 0 {
			if !one[bool](r, "select oq_ack($1, $2)", id, token) {
				r.fail("ack of %d", id)
			}
			l.leave(id)
		}
	case "nack":
		if id > 0 {
			retry, after := !r.chance(25), pick(r, []string{"0", "1 hour"})
			if to := one[string](r, "select oq_nack($1, $2, 'no', $3, $4::text::interval)", id, token, retry, after); to == "dead" {
				l.leave(id)
			}
			delete(l.held, id)
		}
	case "release":
		if id > 0 {
			r.exec("select oq_release($1, $2, $3::text::interval)", id, token, pick(r, []*string{nil, ptr("1 hour")}))
			delete(l.held, id)
		}
	case "cancel":
		if n, ok := l.any(); ok && one[bool](r, "select oq_cancel($1)", n) {
			l.leave(n)
			delete(l.floating, n)
		}
	case "update":
		if n, ok := l.any(); ok && one[bool](r, `select oq_update($1, '{"run_at": "2200-01-01", "priority": 3}')`, n) {
			l.leave(n)
			l.floating[n] = true
		}
	case "change":
		// Whoever stands in line or has the turn keeps its place.
		if n, ok := l.any(); ok {
			one[bool](r, "select oq_update($1, $2)", n, pick(r, []string{`{"priority": 5}`, `{"run_at": null}`}))
		}
	case "redrive":
		for _, n := range list[int64](r, "select oq_redrive('q', jsonb_build_object('state', $1::text), max_jobs => 3)", pick(r, []string{"dead", "cancelled"})) {
			l.floating[n] = true
		}
	case "purge":
		before := list[int64](r, "select job_id from oq_jobs")
		r.exec("select oq_purge('q', $1, max_jobs => 1)", pick(r, []string{"waiting", "ready", "dead", "cancelled"}))
		after := list[int64](r, "select job_id from oq_jobs")
		for _, n := range before {
			if !slices.Contains(after, n) {
				l.leave(n)
				delete(l.floating, n)
			}
		}
	case "throttle":
		r.exec("select oq_throttle('q', clock_timestamp() + $2::text::interval, $1)", key, pick(r, []string{"1 hour", "-1 s", "-1 s"}))
	case "tick":
		// The marks pass over what an open transaction has enqueued when that is a while ago.
		if r.chance(50) {
			r.exec("update oq.mark set raised_at = raised_at - interval '5 s'")
			r.exec("update oq.epoch_open set opened_at = opened_at - interval '5 s'")
		}
		r.exec("select from oq_tick()")
	case "time":
		l.passTime()
	case "compact":
		// It would wait for a transaction that has the table open.
		if slices.ContainsFunc(l.open, func(p *producer) bool { return p.level != "" }) {
			return
		}
		r.exec("select oq.rewrite($1)", pick(r, []string{"ready", "scheduled", "waiting", "leased", "group_slot", "todo"}))
	case "rotate":
		r.exec("update oq.generation_state set opened_at = opened_at - interval '1 month', closed_at = closed_at - interval '1 month'")
		r.exec("select oq_rotate(), oq_rotate()")
	case "expire":
		l.expire()
	case "undone":
		r.exec("begin")
		r.exec("select oq_ack(job_id, lease_token) from oq_lease('q', max_jobs => 2)")
		if id > 0 {
			r.exec("select oq_ack($1, $2)", id, token)
		}
		r.exec("select oq_enqueue('q', group_key => $1)", key)
		r.exec("select from oq_lease('q', max_jobs => 3)")
		r.exec("rollback")
	}
}

// end of a producer's transaction: its jobs are in line behind those committed before.
func (l *lines) end(p *producer, how string) {
	if p.level == "" {
		return
	}
	if _, err := p.conn.Exec(context.Background(), how); err != nil {
		l.r.fail("%s at %s: %v", how, p.level, err)
	}
	l.r.log = append(l.r.log, fmt.Sprintf("%d: %s of %v", l.r.step, how, p.added))
	for _, id := range p.added {
		if how == "commit" {
			l.line[l.group[id]] = append(l.line[l.group[id]], id)
		} else {
			delete(l.group, id)
		}
	}
	p.level, p.added = "", nil
}

func (l *lines) lease(n int) {
	r := l.r
	type held struct {
		ID, Token int64
		Key       string
	}
	rows, err := r.conn.Query(context.Background(), "select job_id, lease_token, group_key from oq_lease('q', lease_seconds => 7200, max_jobs => $1)", n)
	if err != nil {
		r.fail("%v", err)
	}
	jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[held])
	if err != nil {
		r.fail("%v", err)
	}
	r.log = append(r.log, fmt.Sprintf("%d: lease %d -> %v, lines %v", r.step, n, jobs, l.line))
	for _, j := range jobs {
		for other := range l.held {
			r.check(l.group[other] != j.Key, "%d is leased while %d of %s is", j.ID, other, j.Key)
		}
		r.check(l.group[j.ID] == j.Key, "%d is of %s, not of %s", j.ID, l.group[j.ID], j.Key)
		if !l.floating[j.ID] {
			r.check(len(l.line[j.Key]) > 0 && l.line[j.Key][0] == j.ID, "%d of %s is leased, the line is %v", j.ID, j.Key, l.line[j.Key])
		}
		l.held[j.ID] = j.Token
	}
}

// passTime lets everything come due, and leases end.
func (l *lines) passTime() {
	r := l.r
	r.exec("begin")
	r.exec("select oq.enter()")
	r.exec("update oq.scheduled set due_at = clock_timestamp()")
	r.exec("update oq.job set run_at = clock_timestamp() where run_at > now()")
	r.exec("update oq.throttled set until = clock_timestamp()")
	r.exec("update oq.todo set due_at = clock_timestamp()")
	r.exec(testdb.Lapse(""))
	r.exec("commit")
	clear(l.held)
}

// expire ends the life of one that waits.
func (l *lines) expire() {
	r := l.r
	id, ok := l.any()
	if !ok || l.held[id] != 0 {
		return
	}
	r.exec("begin")
	r.exec("select oq.enter()")
	for _, table := range []string{"ready", "waiting", "scheduled"} {
		r.exec("update oq."+table+" set expires_at = clock_timestamp() where job_id = $1", id)
	}
	r.exec("insert into oq.ttl (expires_at, job_id) values (clock_timestamp(), $1)", id)
	r.exec("commit")
	r.exec("select oq_expire()")
	if len(list[int64](r, "select job_id from oq_jobs where job_id = $1 and state = 'expired'", id)) == 1 {
		l.leave(id)
		delete(l.floating, id)
	}
}

func (l *lines) laws() {
	l.r.t.Helper()
	broken := list[string](l.r, "select law || ': ' || violations || ' ' || coalesce(sample, '') from oq_audit() where violations <> 0")
	l.r.check(len(broken) == 0, "audit: %v", broken)
	l.r.log = l.r.log[:len(l.r.log)-1]
}

func (l *lines) finish() {
	r := l.r
	for _, p := range l.open {
		l.end(p, "commit")
	}
	for round := 0; ; round++ {
		left := one[int](r, "select count(*)::int from oq_jobs where state in ('ready', 'waiting', 'scheduled', 'leased')")
		if left == 0 {
			return
		}
		r.check(round < 400, "%d jobs are never done", left)
		l.passTime()
		r.exec("select from oq_tick()")
		l.lease(100)
		for id, token := range l.held {
			r.check(one[bool](r, "select oq_ack($1, $2)", id, token), "ack of %d", id)
			l.leave(id)
		}
		l.laws()
	}
}
