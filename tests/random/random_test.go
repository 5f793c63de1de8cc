// Package random does random things to the queue and to a model of it, and compares.
package random

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

// steps of each run; the seeds are fixed, so that a failure is there again. OQ_TEST_SEED runs another.
const (
	runs  = 10
	steps = 400
)

func TestRandomOperations(t *testing.T) {
	seeds := []uint64{}
	for seed := range uint64(runs) {
		seeds = append(seeds, seed+1)
	}
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
			r := newRun(t, testdb.New(t), seed)
			for r.step = range steps {
				r.one()
				r.compare()
				if t.Failed() {
					for _, line := range r.log[max(0, len(r.log)-12):] {
						t.Log(line)
					}
					t.FailNow()
				}
			}
			r.finish()
			t.Logf("%d jobs, %v", len(r.model.jobs), r.done)
		})
	}
}

// job is what the model knows of one.
type job struct {
	ID         int64
	Queue      string
	State      string
	Priority   int
	Attempt    int
	Failed     int
	Lost       int
	MaxRetries int
	Payload    string
	Headers    string
	Token      int64 // of the current or the last lease
	Entered    int   // into ready: the step, as jobs that enter together come in any order
	Due        bool  // scheduled, and its time has come; or leased, and the lease has expired
	TTL        bool  // has a time to live
	Over       bool  // whose end has come
	Key        string
}

type model struct {
	jobs   map[int64]*job
	paused map[string]bool
	keys   map[string]int64 // the job that took the key of a queue last
}

func (m *model) clone() *model {
	c := &model{jobs: map[int64]*job{}, paused: maps.Clone(m.paused), keys: maps.Clone(m.keys)}
	for id, j := range m.jobs {
		copied := *j
		c.jobs[id] = &copied
	}
	return c
}

// maxLost is the option max_lost_leases of each queue, maxRetries its max_retries.
var (
	queues     = []string{"a", "b", "c"}
	maxLost    = map[string]int{"a": 3, "b": 1, "c": 100}
	maxRetries = map[string]int{"a": 3, "b": 0, "c": 100}
	retention  = map[string]string{"a": "1 day", "b": "1 hour", "c": "2 days"}
	keep       = map[string]string{"a": "outcome", "b": "outcome", "c": "full"}
	priorities = []int{0, 0, 0, 7, -7}
)

type run struct {
	t     *testing.T
	conn  *pgx.Conn
	rnd   *rand.Rand
	model *model
	step  int
	clock int // rises with each entry into ready
	log   []string
	done  map[string]int
}

func newRun(t *testing.T, db *testdb.DB, seed uint64) *run {
	r := &run{
		t: t, conn: db.Conn(t), rnd: rand.New(rand.NewPCG(seed, 1)), done: map[string]int{},
		model: &model{jobs: map[int64]*job{}, paused: map[string]bool{}, keys: map[string]int64{}},
	}
	for _, q := range queues {
		// Nothing is due by itself: the run says when.
		r.exec("select oq_create_queue($1, jsonb_build_object('max_lost_leases', $2::int, 'max_retries', $3::int, "+
			"'retry', '{\"base\": \"1 hour\", \"max\": \"2 hours\"}'::jsonb, 'retention', $4::text, 'keep', $5::text))",
			q, maxLost[q], maxRetries[q], retention[q], keep[q])
	}
	return r
}

func (r *run) exec(sql string, args ...any) {
	r.t.Helper()
	r.log = append(r.log, fmt.Sprintf("%d: %s %v", r.step, sql, args))
	if _, err := r.conn.Exec(context.Background(), sql, args...); err != nil {
		r.fail("%s %v: %v", sql, args, err)
	}
}

func (r *run) fail(format string, args ...any) {
	r.t.Helper()
	for _, line := range r.log[max(0, len(r.log)-12):] {
		r.t.Log(line)
	}
	r.t.Fatalf("step %d: "+format, append([]any{r.step}, args...)...)
}

func list[T any](r *run, sql string, args ...any) []T {
	r.t.Helper()
	r.log = append(r.log, fmt.Sprintf("%d: %s %v", r.step, sql, args))
	rows, err := r.conn.Query(context.Background(), sql, args...)
	if err != nil {
		r.fail("%s %v: %v", sql, args, err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		r.fail("%s %v: %v", sql, args, err)
	}
	r.log[len(r.log)-1] += fmt.Sprint(" -> ", values)
	return values
}

func one[T any](r *run, sql string, args ...any) T {
	r.t.Helper()
	values := list[T](r, sql, args...)
	if len(values) != 1 {
		r.fail("%s %v: %d rows", sql, args, len(values))
	}
	return values[0]
}

func (r *run) check(ok bool, format string, args ...any) {
	r.t.Helper()
	if !ok {
		r.fail(format, args...)
	}
}

// in gives the jobs in one of the states, by id. Empty names mean any.
func (r *run) in(queue string, states ...string) []*job {
	var found []*job
	for _, j := range r.model.jobs {
		if (queue == "" || j.Queue == queue) && slices.Contains(states, j.State) {
			found = append(found, j)
		}
	}
	slices.SortFunc(found, func(a, b *job) int { return int(a.ID - b.ID) })
	return found
}

func pick[T any](r *run, from []T) T { return from[r.rnd.IntN(len(from))] }

func (r *run) chance(percent int) bool { return r.rnd.IntN(100) < percent }

func (r *run) now() int { r.clock++; return r.clock }

// one does something, in one of five times in a transaction that is rolled back and leaves nothing.
func (r *run) one() {
	op := pick(r, operations)
	r.done[op.name]++
	if !r.chance(20) || op.alone {
		op.do(r)
		return
	}
	before := r.model.clone()
	undo := [][2]string{{"begin", "rollback"}, {"begin; savepoint s", "rollback to s; commit"}}[r.rnd.IntN(2)]
	r.exec(undo[0])
	op.do(r)
	if r.chance(30) {
		pick(r, operations[:12]).do(r)
	}
	r.exec(undo[1])
	r.model = before
}

var operations = []struct {
	name  string
	do    func(r *run)
	alone bool
}{
	{"enqueue", (*run).enqueue, false},
	{"enqueue", (*run).enqueue, false},
	{"bulk", (*run).bulk, false},
	{"many", (*run).many, false},
	{"keyed", (*run).keyed, false},
	{"keyed", (*run).keyed, false},
	{"lease", (*run).lease, false},
	{"lease", (*run).lease, false},
	{"next", (*run).next, false},
	{"ack", (*run).ack, false},
	{"ack many", (*run).ackMany, false},
	{"nack", (*run).nack, false},
	{"nack", (*run).nack, false},
	{"release", (*run).release, false},
	{"heartbeat", (*run).heartbeat, false},
	{"cancel", (*run).cancel, false},
	{"update", (*run).update, false},
	{"redrive", (*run).redrive, false},
	{"purge", (*run).purge, false},
	{"pause", (*run).pause, false},
	{"time", (*run).passTime, true},
	{"time", (*run).passTime, true},
	{"tick", (*run).tick, true},
	{"advance", (*run).advance, true},
	{"rotate", (*run).rotate, true},
	{"compact", (*run).compact, true},
}

// add is one job as its producer says it: arguments by name, and what becomes of it.
func (r *run) add(withTTL bool) (args map[string]any, j *job) {
	j = &job{
		Queue: pick(r, queues), Priority: pick(r, priorities), State: "ready", Headers: "null",
		Payload: fmt.Sprintf(`{"n": %d}`, r.rnd.IntN(1000)),
	}
	j.MaxRetries = maxRetries[j.Queue]
	args = map[string]any{"queue_name": j.Queue, "payload": json.RawMessage(j.Payload), "priority": j.Priority}
	if r.chance(30) {
		j.MaxRetries = r.rnd.IntN(3)
		args["max_retries"] = j.MaxRetries
	}
	if r.chance(20) {
		j.Headers = `{"h": "x"}`
		args["headers"] = json.RawMessage(j.Headers)
	}
	if r.chance(25) {
		j.State = "scheduled"
		args["delay"] = "3 hours"
	}
	if withTTL && r.chance(25) {
		j.TTL = true
		args["ttl"] = "5 hours"
	}
	return args, j
}

func (r *run) added(id int64, j *job, entered int) {
	r.check(r.model.jobs[id] == nil, "id %d was given twice", id)
	j.ID = id
	j.Entered = entered
	r.model.jobs[id] = j
}

func (r *run) enqueue() {
	args, j := r.add(true)
	options := map[string]any{}
	for _, name := range []string{"delay", "ttl"} {
		if value, ok := args[name]; ok {
			options[name] = value
		}
	}
	var asJSON any
	if len(options) > 0 {
		asJSON = options
	}
	id := one[int64](r, "select oq_enqueue($1, $2, $3, max_retries => $4, headers => $5, options => $6)",
		j.Queue, args["payload"], j.Priority, args["max_retries"], args["headers"], asJSON)
	r.added(id, j, r.now())
}

func (r *run) bulk() {
	n := r.rnd.IntN(6)
	_, j := r.add(false)
	j.MaxRetries, j.Headers = maxRetries[j.Queue], "null"
	var runAt any
	if j.State == "scheduled" {
		runAt = "3 hours"
	}
	ids := list[int64](r, `select oq_enqueue_bulk($1, array_fill($2::jsonb, array[$3::int]), $4,
		clock_timestamp() + $5::text::interval)`, j.Queue, j.Payload, n, j.Priority, runAt)
	r.check(len(ids) == n, "%d ids for %d payloads", len(ids), n)
	for _, id := range ids {
		copied := *j
		r.added(id, &copied, r.now())
	}
}

func (r *run) many() {
	var args []map[string]any
	var jobs []*job
	for range 1 + r.rnd.IntN(5) {
		a, j := r.add(true)
		args = append(args, a)
		jobs = append(jobs, j)
	}
	ids := list[int64](r, "select job_id from oq_enqueue_many($1) order by idx", args)
	r.check(len(ids) == len(jobs), "%d ids for %d jobs", len(ids), len(jobs))
	for i, id := range ids {
		r.added(id, jobs[i], r.now())
	}
}

// open says whether a job is not over, so that it keeps its key.
func (j *job) open() bool {
	return j != nil && (j.State == "ready" || j.State == "scheduled" || j.State == "leased")
}

// keyed enqueues jobs with unique keys, by one call or as several elements of one.
func (r *run) keyed() {
	type result struct {
		ID       int64
		Inserted bool
	}
	var args []map[string]any
	var jobs []*job
	var modes []string
	single := r.chance(50)
	for range 1 + r.rnd.IntN(5) {
		a, j := r.add(false)
		j.Key = fmt.Sprint("k", r.rnd.IntN(4))
		mode := pick(r, []string{"skip", "skip", "replace", "replace", "debounce"})
		if mode == "debounce" {
			j.State, a["delay"] = "scheduled", "3 hours"
		}
		a["unique_key"], a["unique_mode"] = j.Key, mode
		args, jobs, modes = append(args, a), append(jobs, j), append(modes, mode)
		if single {
			break
		}
	}
	var got []result
	if single {
		options := map[string]any{"unique_mode": modes[0]}
		if delay, ok := args[0]["delay"]; ok {
			options["delay"] = delay
		}
		id := one[int64](r, "select oq_enqueue($1, $2, $3, max_retries => $4, headers => $5, unique_key => $6, options => $7)",
			jobs[0].Queue, args[0]["payload"], jobs[0].Priority, args[0]["max_retries"], args[0]["headers"], jobs[0].Key, options)
		got = []result{{id, r.model.jobs[id] == nil}}
	} else {
		for _, text := range list[string](r, "select job_id || ' ' || inserted from oq_enqueue_many($1) order by idx", args) {
			var g result
			if _, err := fmt.Sscan(text, &g.ID, &g.Inserted); err != nil {
				r.fail("%q: %v", text, err)
			}
			got = append(got, g)
		}
	}
	r.check(len(got) == len(jobs), "%d results for %d jobs", len(got), len(jobs))
	entered := r.now() // what one call makes ready may come in any order
	for i, j := range jobs {
		name := j.Queue + " " + j.Key
		holder := r.model.jobs[r.model.keys[name]]
		switch {
		case holder.open() && modes[i] == "skip":
			r.check(got[i] == result{holder.ID, false}, "skip of %s gave %+v, want %+v", name, got[i], *holder)
		case holder.open() && holder.State != "leased":
			r.check(got[i] == result{holder.ID, false}, "%s of %s gave %+v, want %+v", modes[i], name, got[i], *holder)
			if j.State == "ready" && (holder.State != "ready" || holder.Priority != j.Priority) {
				holder.Entered = entered
			}
			holder.State, holder.Due, holder.Priority = j.State, false, j.Priority
			holder.Payload, holder.Headers, holder.MaxRetries = j.Payload, j.Headers, j.MaxRetries
		default:
			r.check(got[i].Inserted, "%s of %s gave %+v, though %+v", modes[i], name, got[i], holder)
			if holder.open() {
				holder.Key = ""
			}
			r.added(got[i].ID, j, entered)
			r.model.keys[name] = j.ID
		}
	}
}

type leased struct {
	ID, Token         int64
	Queue             string
	Payload, Headers  string
	Priority, Attempt int
	MaxRetries        int
}

func (r *run) lease() {
	queue, n := pick(r, queues), 1+r.rnd.IntN(5)
	r.leased(queue, n, `select job_id, lease_token, queue_name, payload::text, coalesce(headers::text, 'null'),
		priority, attempt, max_retries from oq_lease($1, 'w', 7200, $2) with ordinality order by ordinality`, queue, n)
}

func (r *run) next() {
	queue, n := pick(r, queues), 1+r.rnd.IntN(5)
	ids, tokens, valid := r.mixed()
	for _, j := range valid {
		j.State = "completed"
	}
	r.leased(queue, n, `select job_id, lease_token, queue_name, payload::text, coalesce(headers::text, 'null'),
		priority, attempt, max_retries from oq_next($1, 'w', 7200, $2, $3, $4) with ordinality order by ordinality`,
		queue, n, ids, tokens)
}

// leased compares what a lease gave with what stood ready. Where that was too little, or before it took any, it may have
// made due jobs of the queue ready for itself.
func (r *run) leased(queue string, n int, sql string, args ...any) {
	r.t.Helper()
	r.log = append(r.log, fmt.Sprintf("%d: %s %v", r.step, sql, args))
	rows, err := r.conn.Query(context.Background(), sql, args...)
	if err != nil {
		r.fail("lease: %v", err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leased])
	if err != nil {
		r.fail("lease: %v", err)
	}
	r.log[len(r.log)-1] += fmt.Sprintf(" -> %+v", got)
	if r.model.paused[queue] {
		r.check(len(got) == 0, "leased %v from a paused queue", got)
		return
	}
	var ready []*job
	for _, j := range r.in(queue, "ready") {
		if !j.Over {
			ready = append(ready, j)
		}
	}
	slices.SortFunc(ready, func(a, b *job) int {
		if a.Priority != b.Priority {
			return b.Priority - a.Priority
		}
		return a.Entered - b.Entered
	})
	want := ready[:min(n, len(ready))]
	first := r.tendedFirst(got, ready, queue, n)
	if first {
		want = nil
	}
	r.check(len(got) >= len(want) && len(got) <= n, "%d jobs leased of %d, %d ready", len(got), n, len(ready))
	for i, l := range got {
		j := r.model.jobs[l.ID]
		r.check(j != nil, "leased job %d, which nobody knows", l.ID)
		if i < len(want) {
			r.check(j.Priority == want[i].Priority && j.Entered == want[i].Entered && j.State == "ready",
				"leased %+v, want %+v or who came with it", *j, *want[i])
		} else if j.State == "leased" && j.Due {
			j.Lost++
		} else if !first || j.State != "ready" {
			r.check(j.State == "scheduled" && j.Due, "leased %+v, which is not due", *j)
		}
		r.check(!j.Over, "leased %+v, whose time is over", *j)
		r.check(l.Token > j.Token, "token %d of job %d after %d", l.Token, j.ID, j.Token)
		j.State, j.Due, j.Token = "leased", false, l.Token
		j.Attempt++
		r.check(l.Queue == j.Queue && l.Payload == j.Payload && l.Headers == j.Headers && l.Priority == j.Priority &&
			l.Attempt == j.Attempt && l.MaxRetries == j.MaxRetries, "leased %+v, want %+v", l, *j)
	}
	// Whatever else was due there may have moved.
	r.resync(false)
}

// tendedFirst is whether a lease has made ready what was due before it took the first: where nobody ticks and the mark is
// old. Then all go by their priority, and those that were ready are before those that came with them.
func (r *run) tendedFirst(got []leased, ready []*job, queue string, n int) bool {
	all := slices.Clone(ready)
	for _, j := range append(r.in(queue, "scheduled"), r.in(queue, "leased")...) {
		if j.Due && !j.Over && (j.State == "scheduled" || j.Lost+1 < maxLost[queue]) {
			all = append(all, j)
		}
	}
	entered := func(j *job) int {
		if j.State != "ready" {
			return math.MaxInt
		}
		return j.Entered
	}
	slices.SortStableFunc(all, func(a, b *job) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(entered(a), entered(b)))
	})
	if len(got) != min(n, len(all)) {
		return false
	}
	for i, l := range got {
		j := r.model.jobs[l.ID]
		if j == nil || j.Priority != all[i].Priority || entered(j) != entered(all[i]) {
			return false
		}
	}
	return true
}

// mixed are some leases with some tokens that are none.
func (r *run) mixed() (ids, tokens []int64, valid []*job) {
	ids, tokens = []int64{}, []int64{}
	held := r.in("", "leased")
	r.rnd.Shuffle(len(held), func(a, b int) { held[a], held[b] = held[b], held[a] })
	for _, j := range held[:min(len(held), r.rnd.IntN(5))] {
		ids = append(ids, j.ID)
		if r.chance(20) {
			tokens = append(tokens, j.Token-1)
			continue
		}
		tokens = append(tokens, j.Token)
		valid = append(valid, j)
	}
	if r.chance(30) && len(r.model.jobs) > 0 {
		// A job that nobody holds, with the token that it had.
		for _, j := range r.in("", "ready", "scheduled", "completed", "dead", "cancelled", "expired") {
			if r.chance(5) {
				ids = append(ids, j.ID)
				tokens = append(tokens, j.Token)
			}
		}
	}
	return ids, tokens, valid
}

// one lease, or a token that is none.
func (r *run) token() (id, token int64, held *job) {
	all := r.in("", "leased")
	if len(all) == 0 || r.chance(15) {
		others := r.in("", "ready", "scheduled", "completed", "dead", "cancelled", "expired")
		if len(others) == 0 {
			return 12345678, 1, nil
		}
		j := pick(r, others)
		return j.ID, j.Token, nil
	}
	j := pick(r, all)
	if r.chance(15) {
		return j.ID, j.Token + int64(r.rnd.IntN(2)*2) - 1, nil
	}
	return j.ID, j.Token, j
}

func (r *run) ack() {
	id, token, held := r.token()
	done := one[bool](r, "select oq_ack($1, $2, '1')", id, token)
	r.check(done == (held != nil), "ack of %d: %v", id, done)
	if held != nil {
		held.State = "completed"
	}
}

func (r *run) ackMany() {
	ids, tokens, valid := r.mixed()
	acked := list[int64](r, "select oq_ack_many($1, $2)", ids, tokens)
	r.check(len(acked) == len(valid), "%d acked, want %d", len(acked), len(valid))
	for _, j := range valid {
		r.check(slices.Contains(acked, j.ID), "job %d was not acked", j.ID)
		j.State = "completed"
	}
}

func (r *run) nack() {
	id, token, held := r.token()
	retry := !r.chance(15)
	after := pick(r, []*string{nil, ptr("0"), ptr("1 hour")})
	got := one[*string](r, "select oq_nack($1, $2, 'failed', $3, $4::text::interval)", id, token, retry, after)
	if held == nil {
		r.check(got == nil, "nack of a lost lease: %v", got)
		return
	}
	held.Failed++
	want := "scheduled"
	switch {
	case !retry || held.Failed > held.MaxRetries:
		want = "dead"
	case held.Over:
		want = "expired"
	case after != nil && *after == "0":
		want = "ready"
		held.Entered = r.now()
	}
	r.check(got != nil && *got == want, "nack of %+v: %v, want %s", *held, got, want)
	held.State, held.Due = want, false
}

func ptr[T any](v T) *T { return &v }

func (r *run) release() {
	id, token, held := r.token()
	delay := pick(r, []*string{nil, nil, ptr("1 hour")})
	done := one[bool](r, "select oq_release($1, $2, $3::text::interval)", id, token, delay)
	r.check(done == (held != nil), "release: %v", done)
	if held == nil {
		return
	}
	held.Attempt--
	held.Due = false
	switch {
	case held.Over:
		held.State = "expired"
	case delay != nil:
		held.State = "scheduled"
	default:
		held.State, held.Entered = "ready", r.now()
	}
}

func (r *run) heartbeat() {
	if r.chance(50) {
		id, token, held := r.token()
		got := one[string](r, "select oq_heartbeat($1, $2, 7200, '{\"done\": 1}')", id, token)
		want := "lost"
		if j := r.model.jobs[id]; held != nil {
			want = "ok"
			held.Due = false
		} else if j != nil && j.State == "cancelled" && got == "cancelled" {
			want = "cancelled" // of the lease that it had, if it had one
		}
		r.check(got == want, "heartbeat: %s, want %s", got, want)
		return
	}
	ids, tokens, valid := r.mixed()
	ok := list[int64](r, "select job_id from oq_heartbeat_many($1, $2, 7200) where status = 'ok'", ids, tokens)
	r.check(len(ok) == len(valid), "%d heartbeats of %d", len(ok), len(valid))
	for _, j := range valid {
		j.Due = false
	}
}

func (r *run) cancel() {
	all := r.in("", "ready", "scheduled", "leased", "dead", "completed", "cancelled", "expired")
	if len(all) == 0 {
		return
	}
	j := pick(r, all)
	done := one[bool](r, "select oq_cancel($1, 'why')", j.ID)
	want := slices.Contains([]string{"ready", "scheduled", "leased", "dead"}, j.State)
	r.check(done == want, "cancel of %+v: %v", *j, done)
	if want {
		j.State, j.Due = "cancelled", false
	}
}

func (r *run) update() {
	all := r.in("", "ready", "scheduled", "leased", "dead", "completed", "cancelled")
	if len(all) == 0 {
		return
	}
	j := pick(r, all)
	patch := map[string]any{}
	after := *j
	if r.chance(50) {
		after.Priority = pick(r, priorities)
		patch["priority"] = after.Priority
	}
	if r.chance(30) {
		after.Payload = fmt.Sprintf(`{"n": %d}`, r.rnd.IntN(1000))
		patch["payload"] = json.RawMessage(after.Payload)
	}
	if r.chance(30) {
		after.Headers = pick(r, []string{"null", `{"u": 1}`})
		patch["headers"] = json.RawMessage(after.Headers)
	}
	if r.chance(30) {
		after.MaxRetries = r.rnd.IntN(4)
		patch["max_retries"] = after.MaxRetries
	}
	moved := after.Priority != j.Priority
	switch r.rnd.IntN(4) {
	case 0:
		patch["run_at"] = nil
		moved = moved || j.State == "scheduled"
		after.State = "ready"
	case 1:
		patch["run_at"] = "2200-01-01"
		after.State, after.Due = "scheduled", false
	default:
		if j.State == "scheduled" && j.Due {
			after.State, moved = "ready", true
		}
	}
	done := one[bool](r, "select oq_update($1, $2)", j.ID, patch)
	want := j.State == "ready" || j.State == "scheduled"
	r.check(done == want, "update of %+v: %v", *j, done)
	if !want {
		return
	}
	if after.State == "ready" && moved {
		after.Entered = r.now()
	}
	if after.State == "ready" {
		after.Due = false
	}
	*j = after
}

func (r *run) redrive() {
	queue := pick(r, queues)
	state := pick(r, []string{"dead", "cancelled"})
	dry := r.chance(20)
	n := 1 + r.rnd.IntN(4)
	from := r.in(queue, state)
	var want []int64
	for _, j := range from[:min(n, len(from))] {
		want = append(want, j.ID)
	}
	got := list[int64](r, "select oq_redrive($1, jsonb_build_object('state', $2::text), max_jobs => $3, dry_run => $4)",
		queue, state, n, dry)
	r.check(slices.Equal(got, want), "redriven %v, want %v", got, want)
	if dry {
		return
	}
	entered := r.now()
	// The newest of a key takes it back where it is free, the others come without.
	newest := map[string]*job{}
	for _, id := range want {
		if j := r.model.jobs[id]; j.Key != "" {
			newest[j.Key] = j
		}
	}
	for _, id := range want {
		j := r.model.jobs[id]
		if name := j.Queue + " " + j.Key; j.Key != "" && newest[j.Key] == j && !r.model.jobs[r.model.keys[name]].open() {
			r.model.keys[name] = id
		} else if j.Key != "" && newest[j.Key] == j {
			j.Key = ""
		}
	}
	for _, id := range want {
		j := r.model.jobs[id]
		if j.Key != "" && newest[j.Key] != j {
			j.Key = ""
		}
		j.State, j.Failed, j.Lost, j.Entered, j.Due = "ready", 0, 0, entered, false
		if j.Over {
			j.TTL, j.Over = false, false
		}
	}
}

func (r *run) purge() {
	queue := pick(r, queues)
	state := pick(r, []string{"ready", "scheduled", "dead", "completed", "cancelled", "expired"})
	n := 1 + r.rnd.IntN(3)
	doomed := r.in(queue, state)
	got := one[int64](r, "select oq_purge($1, $2, max_jobs => $3)", queue, state, n)
	r.check(int(got) == min(n, len(doomed)), "%d purged of %d, asked for %d", got, len(doomed), n)
	left := list[int64](r, "select job_id from oq_jobs where queue_name = $1 and state = $2", queue, state)
	for _, j := range doomed {
		if !slices.Contains(left, j.ID) {
			delete(r.model.jobs, j.ID)
		}
	}
	r.check(len(left) == len(r.in(queue, state)), "%d %s jobs are left, want %d", len(left), state, len(r.in(queue, state)))
}

func (r *run) pause() {
	queue := pick(r, queues)
	if r.model.paused[queue] || r.chance(60) {
		r.exec("select oq_resume($1)", queue)
		r.model.paused[queue] = false
		return
	}
	r.exec("select oq_pause($1)", queue)
	r.model.paused[queue] = true
}

// passTime lets the time of some jobs come, as if it had gone by: it enters the epoch, as everyone does
// who writes a due time, and sets them to now.
func (r *run) passTime() {
	var due, over []int64
	for _, j := range r.in("", "scheduled", "leased", "ready") {
		if j.State != "ready" && r.chance(20) {
			j.Due = true
			due = append(due, j.ID)
		}
		if j.TTL && r.chance(20) {
			j.Over = true
			over = append(over, j.ID)
		}
	}
	r.exec("begin")
	r.exec("select oq.enter()")
	r.exec("update oq.scheduled set due_at = clock_timestamp() where job_id = any ($1)", due)
	r.exec(testdb.Lapse("where job_id = any ($1)"), due)
	for _, column := range []string{"ttl set expires_at", "job set expires_at", "ready set expires_at",
		"scheduled set expires_at", "leased set job_expires_at"} {
		r.exec("update oq."+column+" = clock_timestamp() where job_id = any ($1)", over)
	}
	r.exec("commit")
}

// resync learns what has moved by itself of the jobs whose time has come. After a tick all have.
func (r *run) resync(ticked bool) {
	r.t.Helper()
	var late []int64
	for _, j := range r.in("", "scheduled", "leased", "ready") {
		if j.Due || j.Over {
			late = append(late, j.ID)
		}
	}
	rows, err := r.conn.Query(context.Background(), "select job_id, state from oq_jobs where job_id = any ($1)", late)
	if err != nil {
		r.fail("%v", err)
	}
	states := map[int64]string{}
	var id int64
	var state string
	if _, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error { states[id] = state; return nil }); err != nil {
		r.fail("%v", err)
	}
	entered := r.now()
	for _, id := range late {
		j := r.model.jobs[id]
		var want string // where it goes, once somebody looks
		switch {
		case j.State == "leased" && j.Due && j.Lost+1 >= maxLost[j.Queue]:
			want = "dead"
		case j.State == "leased" && !j.Due:
			want = "leased"
		case j.Over:
			want = "expired"
		default:
			want = "ready"
		}
		now := states[id]
		if j.State == "scheduled" && j.Over && now == "ready" && !ticked {
			want = "ready"
		}
		if now == j.State && !ticked && want != j.State {
			continue
		}
		r.check(now == want, "job is %q, want %s: %+v", now, want, *j)
		if now != j.State {
			if j.State == "leased" {
				j.Lost++
			}
			j.State, j.Due, j.Entered = now, false, entered
		}
	}
}

// compare holds every job that can be read against the model, and the tables against the laws.
func (r *run) compare() {
	r.t.Helper()
	r.resync(false)
	type row struct {
		ID               int64
		Queue, State     string
		Priority         *int
		Attempt          int
		Failed           *int
		Lost, MaxRetries int
		Payload, Headers *string
		Key              *string
	}
	rows, err := r.conn.Query(context.Background(), `select job_id, queue_name, state, priority, attempt, failures,
		lost_leases, max_retries, payload::text, headers::text, unique_key from oq_jobs`)
	if err != nil {
		r.fail("%v", err)
	}
	seen, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		r.fail("%v", err)
	}
	for _, is := range seen {
		j := r.model.jobs[is.ID]
		if j == nil {
			r.fail("there is a job %+v", is)
		}
		unfinished := is.Failed != nil
		same := is.Queue == j.Queue && is.State == j.State && is.Attempt == j.Attempt && is.Lost == j.Lost
		if unfinished {
			same = same && *is.Failed == j.Failed
		}
		// What the producer said of a finished job may go before its outcome does.
		if is.Payload != nil {
			headers := "null"
			if is.Headers != nil {
				headers = *is.Headers
			}
			key := ""
			if is.Key != nil {
				key = *is.Key
			}
			same = same && key == j.Key && *is.Priority == j.Priority && *is.Payload == j.Payload && headers == j.Headers &&
				is.MaxRetries == j.MaxRetries
		} else {
			same = same && (j.State == "completed" || j.State == "expired")
		}
		if !same {
			text, _ := json.Marshal(is)
			r.fail("job is %s, want %+v", text, *j)
		}
	}
	if len(seen) != len(r.model.jobs) {
		r.fail("%d jobs, want %d", len(seen), len(r.model.jobs))
	}
	rows, err = r.conn.Query(context.Background(),
		"select law || ': ' || violations || ' ' || coalesce(sample, '') from oq_audit() where violations <> 0")
	if err != nil {
		r.fail("%v", err)
	}
	broken, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.fail("%v", err)
	}
	if len(broken) > 0 {
		r.fail("audit: %v", broken)
	}
}

// finish works off everything and leaves nothing unfinished.
func (r *run) finish() {
	r.t.Helper()
	for _, queue := range queues {
		r.exec("select oq_resume($1)", queue)
		r.model.paused[queue] = false
	}
	for round := 0; len(r.in("", "ready", "scheduled", "leased")) > 0; round++ {
		r.check(round < 200, "%d jobs are never done", len(r.in("", "ready", "scheduled", "leased")))
		r.passTime()
		r.tick()
		for _, queue := range queues {
			r.leased(queue, 50, `select job_id, lease_token, queue_name, payload::text, coalesce(headers::text, 'null'),
				priority, attempt, max_retries from oq_lease($1, 'w', 7200, 50) with ordinality order by ordinality`, queue)
		}
		for _, j := range r.in("", "leased") {
			if !j.Due {
				r.check(one[bool](r, "select oq_ack($1, $2)", j.ID, j.Token), "ack of %+v", *j)
				j.State = "completed"
			}
		}
		r.compare()
	}
}

func (r *run) tick() {
	r.exec("select from oq_tick()")
	r.resync(true)
}

func (r *run) advance() {
	r.exec("update oq.mark set raised_at = raised_at - interval '5 s'")
	r.exec("select oq_advance()")
}

// rotate closes the generation, or lets the oldest go a step of its way.
func (r *run) rotate() {
	// Old enough to go, and with ends in it that are to be kept for longer.
	r.exec("update oq.generation_state set opened_at = clock_timestamp() - interval '20 hours'")
	r.exec("update oq.generation_state set closed_at = clock_timestamp() - interval '4 hours' where closed_at is not null")
	for range 1 + r.rnd.IntN(6) {
		r.exec("select oq_rotate($1)", 1+r.rnd.IntN(50))
	}
}

func (r *run) compact() {
	r.exec("select oq.rewrite($1)", pick(r, []string{"ready", "scheduled", "waiting", "leased", "ttl", "mark", "epoch_open", "passed"}))
}
