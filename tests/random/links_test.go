package random

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

// linksSteps of each run are fewer than of the others: each looks at every job.
const linksSteps = 200

// The queue d is dropped now and then, and comes back with default options and no memory of dependents.
var (
	linkQueues  = []string{"a", "b", "d"}
	linkMaxLost = map[string]int{"a": 2, "b": 100} // others have 3
)

// link is what the model knows of a job. State is ready where only its group may hold it.
type link struct {
	ID       int64
	Queue    string
	State    string
	Parents  []int64 // those that it still waits for
	Declared []int64 // those that it was enqueued with
	Cancel   bool    // what a parent that fails does to it
	Batch    int64   // of which it is a member
	Group    string
	Key      string
	Later    bool // its run_at is to come
	Due      bool // leased or scheduled, and its time has come
	Blind    bool // leased before its queue had dependents
	Old      bool // over, and past its retention: may be gone
	Token    int64
	Failed   int
	Lost     int
}

func (j *link) open() bool {
	return j != nil && slices.Contains([]string{"waiting", "ready", "scheduled", "leased"}, j.State)
}

type batch struct {
	Kinds   []string // the jobs that it will make
	Pending []int64  // members that are not over
	Sealed  bool
	Failed  bool
	Over    bool
}

// graph is the model: jobs, their edges and batches. What is eager in it the queue may do at the next tick
// when late: after an end at REPEATABLE READ, or of a lease that is older than the first dependent.
type graph struct {
	jobs    map[int64]*link
	keys    map[string]int64
	batches map[int64]*batch
	owed    map[string]bool // jobs of batches that are over, not seen yet: "batch kind"
	late    bool
}

func (g *graph) clone() *graph {
	c := &graph{map[int64]*link{}, maps.Clone(g.keys), map[int64]*batch{}, maps.Clone(g.owed), g.late}
	for id, j := range g.jobs {
		copied := *j
		copied.Parents = slices.Clone(j.Parents)
		c.jobs[id] = &copied
	}
	for id, b := range g.batches {
		copied := *b
		copied.Pending = slices.Clone(b.Pending)
		c.batches[id] = &copied
	}
	return c
}

// end is the end of a job: completed, dead, cancelled, expired or gone. The first one counts.
func (g *graph) end(j *link, how string) {
	j.State, j.Due, j.Parents = how, false, nil
	failed := how != "completed"
	for _, c := range g.sorted() {
		if !slices.Contains(c.Parents, j.ID) {
			continue
		}
		g.late = g.late || j.Blind
		c.Parents = slices.DeleteFunc(c.Parents, func(id int64) bool { return id == j.ID })
		if failed && c.Cancel {
			g.end(c, "cancelled")
		} else if len(c.Parents) == 0 && c.State == "waiting" {
			c.place()
		}
	}
	j.Blind = false
	if b := g.batches[j.Batch]; b != nil && slices.Contains(b.Pending, j.ID) {
		b.Pending = slices.DeleteFunc(b.Pending, func(id int64) bool { return id == j.ID })
		b.Failed = b.Failed || failed
		g.fire(j.Batch)
	}
	if how == "gone" {
		delete(g.jobs, j.ID)
	}
}

func (j *link) place() {
	j.State, j.Due = "ready", false
	if j.Later {
		j.State = "scheduled"
	}
}

// fire owes the jobs of a batch that is sealed and whose members are over.
func (g *graph) fire(id int64) {
	b := g.batches[id]
	if b.Over || !b.Sealed || len(b.Pending) > 0 {
		return
	}
	b.Over = true
	for _, kind := range b.Kinds {
		if kind == "on_complete" || (kind == "on_failure") == b.Failed {
			g.owed[fmt.Sprint(id, " ", kind)] = true
		}
	}
}

func (g *graph) sorted() []*link {
	return slices.SortedFunc(maps.Values(g.jobs), func(a, b *link) int { return int(a.ID - b.ID) })
}

type links struct {
	*run
	*graph
	fresh []string // queues that had no dependents when their first job was leased
}

// TestRandomLinks does random things to jobs with parents, and in batches. After each, every job is in the
// state that the model says, batches have made the jobs that they had to, and no others, and the laws hold.
// In the end everything is drained.
func TestRandomLinks(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
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
			l := &links{
				run:   &run{t: t, conn: db.Conn(t), rnd: rand.New(rand.NewPCG(seed, 3)), done: map[string]int{}},
				graph: &graph{map[int64]*link{}, map[string]int64{}, map[int64]*batch{}, map[string]bool{}, false},
			}
			for _, q := range []string{"a", "b"} {
				l.exec(`select oq_create_queue($1, jsonb_build_object('max_lost_leases', $2::int, 'retention', $3::text))`,
					q, linkMaxLost[q], retention[q])
			}
			for l.step = range linksSteps {
				l.one()
				l.laws()
			}
			l.finish()
			made := 0
			for _, b := range l.batches {
				if b.Over {
					made++
				}
			}
			t.Logf("%d jobs, %d batches, %v", len(l.jobs), made, l.done)
		})
	}
}

var linkOperations = []struct {
	name  string
	do    func(l *links)
	alone bool // in no transaction of several calls
}{
	{"enqueue", (*links).enqueue, false},
	{"enqueue", (*links).enqueue, false},
	{"enqueue", (*links).enqueue, false},
	{"many", (*links).many, false},
	{"many", (*links).many, false},
	{"batch", (*links).batch, false},
	{"seal", (*links).seal, false},
	{"lease", (*links).lease, false},
	{"lease", (*links).lease, false},
	{"lease", (*links).lease, false},
	{"ack", (*links).ack, false},
	{"ack", (*links).ack, false},
	{"ack", (*links).ack, false},
	{"ack many", (*links).ackMany, false},
	{"nack", (*links).nack, false},
	{"nack", (*links).nack, false},
	{"release", (*links).release, false},
	{"cancel", (*links).cancel, false},
	{"update", (*links).update, false},
	{"redrive", (*links).redrive, true},
	{"redrive", (*links).redrive, true},
	{"purge", (*links).purge, true},
	{"refused", (*links).refused, true},
	{"drop", (*links).drop, true},
	{"first", (*links).first, true},
	{"first", (*links).first, true},
	{"expire", (*links).expire, true},
	{"time", (*links).passTime, true},
	{"time", (*links).passTime, true},
	{"tick", (*links).tick, true},
	{"tick", (*links).tick, true},
	{"rotate", (*links).rotate, true},
	{"compact", (*links).compactLinks, true},
	{"parents", (*links).parents, true},
}

// one does something by itself, or several things in a transaction, of which half are rolled back.
func (l *links) one() {
	op := pick(l.run, linkOperations)
	l.done[op.name]++
	if op.alone || l.chance(50) {
		op.do(l)
		l.learn(nil)
		return
	}
	kept := l.graph
	l.graph = kept.clone()
	// At REPEATABLE READ everything is left to the next tick.
	level := pick(l.run, []string{"read committed", "read committed", "read committed", "repeatable read"})
	l.exec("begin isolation level " + level)
	l.late = l.late || level == "repeatable read"
	saved := l.chance(50)
	if saved {
		if l.chance(50) {
			op.do(l)
			l.learn(nil)
		}
		l.exec("savepoint s")
	}
	before := l.graph.clone()
	for range 1 + l.rnd.IntN(3) {
		op.do(l)
		l.learn(nil)
		for op = pick(l.run, linkOperations); op.alone; {
			op = pick(l.run, linkOperations)
		}
	}
	undo := l.chance(50)
	if undo && saved {
		l.exec("rollback to s")
		l.graph = before
		if l.chance(50) {
			l.ack()
		}
		l.exec("commit")
	} else if undo {
		l.exec("rollback")
		l.graph = kept
	} else {
		l.exec("commit")
	}
	l.learn(nil)
}

// some gives a job in one of the states, mostly a young one. Not one that the queue is late with.
func (l *links) some(states ...string) *link {
	var found []*link
	for _, j := range l.sorted() {
		if slices.Contains(states, j.State) && !j.Old {
			found = append(found, j)
		}
	}
	if len(found) == 0 {
		return nil
	}
	j := pick(l.run, found[max(0, len(found)-25):])
	if !l.settled(j) {
		return nil
	}
	return j
}

func (l *links) settled(j *link) bool {
	if !l.late {
		return true
	}
	state := one[string](l.run, "select state from oq_jobs where job_id = $1", j.ID)
	return state == j.State || j.Group != "" && j.State == "ready" && state == "waiting"
}

// spec is one job as its producer says it: the arguments, and what the model makes of them.
func (l *links) spec(keys []string) (map[string]any, *link, string) {
	j := &link{Queue: pick(l.run, linkQueues), Cancel: true}
	args := map[string]any{"queue_name": j.Queue}
	if l.chance(60) {
		for range 1 + l.rnd.IntN(3) {
			p := l.some("waiting", "ready", "scheduled", "leased")
			if l.chance(25) {
				p = l.some("completed", "dead", "cancelled", "expired")
			}
			if p != nil && !slices.Contains(j.Declared, p.ID) {
				j.Declared = append(j.Declared, p.ID)
			}
		}
		args["depends_on"] = j.Declared
		if j.Declared == nil {
			delete(args, "depends_on")
		}
	}
	if l.chance(50) {
		j.Cancel = l.chance(40)
		args["on_parent_failure"] = map[bool]string{true: "cancel", false: "run"}[j.Cancel]
	}
	if id := l.unsealed(); id > 0 && l.chance(50) {
		j.Batch = id
		args["batch_id"] = id
	}
	if l.chance(20) {
		j.Group = fmt.Sprint("g", l.rnd.IntN(2))
		args["group_key"] = j.Group
	}
	if l.chance(15) {
		j.Later = true
		args["delay"] = "3 hours"
	}
	mode := ""
	if len(keys) > 0 && l.chance(25) {
		j.Key = pick(l.run, keys)
		if holder := l.jobs[l.keys[j.Queue+" "+j.Key]]; holder.open() && !l.settled(holder) {
			j.Key = ""
			return args, j, mode
		}
		mode = pick(l.run, []string{"skip", "replace"})
		args["unique_key"], args["unique_mode"] = j.Key, mode
	}
	return args, j, mode
}

var linkKeys = []string{"k0", "k1", "k2"}

// made says what became of an enqueue: a new job, or one that had its key.
func (l *links) made(id int64, j *link, mode string) (inserted bool) {
	name := j.Queue + " " + j.Key
	if holder := l.jobs[l.keys[name]]; j.Key != "" && holder.open() {
		if mode == "skip" || holder.State != "leased" {
			l.check(id == holder.ID, "%s of %s gave %d, not %+v", mode, name, id, *holder)
			if mode == "replace" {
				holder.Later = j.Later
				if holder.State != "waiting" {
					holder.place()
				}
			}
			return false
		}
		holder.Key = ""
	}
	l.check(l.jobs[id] == nil, "id %d was given twice", id)
	j.ID, j.State = id, "waiting"
	l.jobs[id] = j
	if j.Key != "" {
		l.keys[name] = id
	}
	if b := l.batches[j.Batch]; b != nil {
		b.Pending = append(b.Pending, id)
	}
	failed := false
	for _, id := range j.Declared {
		if p := l.jobs[id]; p.open() {
			j.Parents = append(j.Parents, id)
		} else if p.State != "completed" {
			failed = true
		}
	}
	if failed && j.Cancel {
		l.end(j, "cancelled")
	} else if len(j.Parents) == 0 {
		j.place()
	}
	return true
}

func (l *links) enqueue() {
	args, j, mode := l.spec(linkKeys)
	options := maps.Clone(args)
	for _, name := range []string{"queue_name", "group_key", "unique_key"} {
		delete(options, name)
	}
	id := one[int64](l.run, "select oq_enqueue($1, group_key => $2, unique_key => $3, options => $4)",
		j.Queue, args["group_key"], args["unique_key"], options)
	l.made(id, j, mode)
}

// many are elements that depend on each other, in any order but a circle.
func (l *links) many() {
	n := 2 + l.rnd.IntN(5)
	keys := slices.Clone(linkKeys)
	args, specs, modes := make([]map[string]any, n), make([]*link, n), make([]string, n)
	parents := make([][]int, n)
	order := l.rnd.Perm(n)
	for i, e := range order {
		args[e], specs[e], modes[e] = l.spec(keys)
		keys = slices.DeleteFunc(keys, func(key string) bool { return key == specs[e].Key })
		args[e]["ref"] = fmt.Sprint("r", e)
		var refs []string
		for _, p := range order[:i] {
			if l.chance(40) {
				parents[e] = append(parents[e], p)
				refs = append(refs, fmt.Sprint("r", p))
			}
		}
		if refs != nil {
			args[e]["depends_on_refs"] = refs
		}
	}
	ids := list[int64](l.run, "select case when inserted then 1 else -1 end * job_id from oq_enqueue_many($1) order by idx", args)
	l.check(len(ids) == n, "%d ids for %d jobs", len(ids), n)
	for _, e := range order {
		for _, p := range parents[e] {
			if id := max(ids[p], -ids[p]); !slices.Contains(specs[e].Declared, id) {
				specs[e].Declared = append(specs[e].Declared, id)
			}
		}
		inserted := l.made(max(ids[e], -ids[e]), specs[e], modes[e])
		l.check(inserted == (ids[e] > 0), "element %d: inserted is %v, want %v", e, !inserted, inserted)
	}
}

func (l *links) unsealed() int64 {
	var found []int64
	for id, b := range l.batches {
		if !b.Sealed {
			found = append(found, id)
		}
	}
	if len(found) == 0 {
		return 0
	}
	slices.Sort(found)
	return pick(l.run, found)
}

func (l *links) batch() {
	options, b := map[string]any{}, &batch{}
	for _, kind := range []string{"on_success", "on_failure", "on_complete"} {
		if l.chance(70) {
			b.Kinds = append(b.Kinds, kind)
			options[kind] = map[string]any{"queue_name": pick(l.run, linkQueues), "payload": map[string]any{"kind": kind}}
		}
	}
	l.batches[one[int64](l.run, "select oq_batch($1)", options)] = b
}

func (l *links) seal() {
	id := l.unsealed()
	if sealed := slices.Sorted(maps.Keys(l.batches)); len(sealed) > 0 && l.chance(10) {
		id = pick(l.run, sealed)
	}
	if id == 0 {
		return
	}
	b := l.batches[id]
	l.check(one[bool](l.run, "select oq_batch_seal($1)", id) != b.Sealed, "seal of %d: %+v", id, *b)
	b.Sealed = true
	l.fire(id)
}

func (l *links) lease() { l.leases(pick(l.run, linkQueues), 1+l.rnd.IntN(4)) }

func (l *links) leases(queue string, n int) {
	type held struct{ ID, Token int64 }
	rows, err := l.conn.Query(context.Background(), "select job_id, lease_token from oq_lease($1, lease_seconds => 7200, max_jobs => $2)", queue, n)
	if err != nil {
		l.fail("%v", err)
	}
	jobs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[held])
	if err != nil {
		l.fail("%v", err)
	}
	l.log = append(l.log, fmt.Sprintf("%d: lease %d of %s -> %v", l.step, n, queue, jobs))
	leased := map[int64]bool{}
	for _, h := range jobs {
		leased[h.ID] = true
	}
	l.learn(leased)
	for _, h := range jobs {
		j := l.jobs[h.ID]
		l.check(j != nil, "leased job %d, which nobody knows", h.ID)
		if j.State == "leased" && j.Due {
			j.Lost++
		} else {
			l.check(j.State == "ready" || j.State == "scheduled" && j.Due, "leased %+v", *j)
		}
		j.State, j.Due, j.Token = "leased", false, h.Token
		j.Blind = !one[bool](l.run, "select linked from oq.leased where job_id = $1", h.ID)
	}
}

func (l *links) ack() {
	if j := l.some("leased"); j != nil {
		l.check(one[bool](l.run, "select oq_ack($1, $2)", j.ID, j.Token), "ack of %+v", *j)
		l.end(j, "completed")
	}
}

func (l *links) ackMany() {
	var ids, tokens []int64
	for range 1 + l.rnd.IntN(5) {
		if j := l.some("leased"); j != nil && !slices.Contains(ids, j.ID) {
			ids, tokens = append(ids, j.ID), append(tokens, j.Token)
		}
	}
	if ids == nil {
		return
	}
	acked := list[int64](l.run, "select oq_ack_many($1, $2)", ids, tokens)
	l.check(len(acked) == len(ids), "acked %v of %v", acked, ids)
	for _, id := range ids {
		l.end(l.jobs[id], "completed")
	}
}

func (l *links) nack() {
	j := l.some("leased")
	if j == nil {
		return
	}
	retry, after := l.chance(40), pick(l.run, []string{"0", "1 hour"})
	got := one[string](l.run, "select oq_nack($1, $2, 'no', $3, $4::text::interval)", j.ID, j.Token, retry, after)
	j.Failed++
	j.Due = false
	want := "ready"
	switch {
	case !retry || j.Failed > 3:
		want = "dead"
		l.end(j, "dead")
	case after != "0":
		want = "scheduled"
	}
	j.State = want
	l.check(got == want, "nack of %+v: %s", *j, got)
}

func (l *links) release() {
	j := l.some("leased")
	if j == nil {
		return
	}
	delay := pick(l.run, []*string{nil, ptr("1 hour")})
	l.check(one[bool](l.run, "select oq_release($1, $2, $3::text::interval)", j.ID, j.Token, delay), "release of %+v", *j)
	j.State, j.Due = map[bool]string{true: "ready", false: "scheduled"}[delay == nil], false
}

func (l *links) cancel() {
	j := l.some("waiting", "waiting", "ready", "scheduled", "leased", "dead", "completed", "cancelled")
	if j == nil {
		return
	}
	want := j.open() || j.State == "dead"
	l.check(one[bool](l.run, "select oq_cancel($1)", j.ID) == want, "cancel of %+v", *j)
	if want {
		l.end(j, "cancelled")
	}
}

func (l *links) update() {
	j := l.some("waiting", "ready", "scheduled", "leased", "dead")
	if j == nil {
		return
	}
	patch := pick(l.run, []string{`{"priority": 5}`, `{"run_at": null}`, `{"run_at": "2200-01-01", "priority": -3}`})
	want := j.open() && j.State != "leased"
	l.check(one[bool](l.run, "select oq_update($1, $2)", j.ID, patch) == want, "update of %+v", *j)
	if !want {
		return
	}
	switch {
	case strings.Contains(patch, "null"):
		j.Later = false
	case strings.Contains(patch, "2200"):
		j.Later = true
	case j.State == "scheduled" && j.Due:
		j.Later = false
	default:
		return
	}
	if j.State != "waiting" {
		j.place()
	}
}

func (l *links) redrive() {
	if j := l.some(pick(l.run, []string{"dead", "cancelled"})); j != nil {
		l.redriven(j)
	}
}

func (l *links) redriven(j *link) {
	got := list[int64](l.run, "select oq_redrive($1, jsonb_build_object('state', $2::text, 'job_ids', jsonb_build_array($3::bigint)))", j.Queue, j.State, j.ID)
	l.check(slices.Equal(got, []int64{j.ID}), "redrive of %+v: %v", *j, got)
	j.State, j.Failed, j.Lost, j.Later = "ready", 0, 0, false
	if name := j.Queue + " " + j.Key; j.Key != "" && l.jobs[l.keys[name]].open() && l.keys[name] != j.ID {
		j.Key = ""
	} else if j.Key != "" {
		l.keys[name] = j.ID
	}
}

func (l *links) purge() {
	l.exec("select oq_purge($1, $2, max_jobs => $3)", pick(l.run, linkQueues),
		pick(l.run, []string{"waiting", "waiting", "ready", "scheduled", "dead", "dead", "completed", "cancelled", "expired"}), 1+l.rnd.IntN(2))
	l.vanished()
}

// vanished ends those that are not there any more.
func (l *links) vanished() {
	left := list[int64](l.run, "select job_id from oq_jobs")
	for _, j := range l.sorted() {
		if !slices.Contains(left, j.ID) {
			l.end(j, "gone")
		}
	}
}

// refused enqueues what must be refused, and leaves nothing.
func (l *links) refused() {
	args, _, _ := l.spec(nil)
	switch l.rnd.IntN(3) {
	case 0:
		args["depends_on"] = []int64{1 << 40}
	case 1:
		for id, b := range l.batches {
			if b.Sealed {
				args["batch_id"] = id
			}
		}
		if id, _ := args["batch_id"].(int64); id > 0 && !l.batches[id].Sealed || id == 0 {
			args["batch_id"] = 1 << 40
		}
	default:
		args["ref"], args["depends_on_refs"] = "r", []string{"r"}
	}
	text, _ := json.Marshal([]any{args})
	_, err := l.conn.Exec(context.Background(), "select from oq_enqueue_many($1)", text)
	var e *pgconn.PgError
	l.check(errors.As(err, &e) && e.Code == "OQ001", "%s: %v", text, err)
}

// first makes a dependent of a job that is leased already, in a queue that had none, and may end the job, redrive or
// purge it before the tick has told the lease.
func (l *links) first() {
	queue := fmt.Sprint("f", len(l.fresh))
	l.fresh = append(l.fresh, queue)
	parent := &link{Queue: queue, Cancel: true}
	l.made(one[int64](l.run, "select oq_enqueue($1)", queue), parent, "")
	l.leases(queue, 1)
	child := &link{Queue: pick(l.run, linkQueues), Cancel: l.chance(50), Declared: []int64{parent.ID}}
	l.made(one[int64](l.run, "select oq_enqueue($1, options => jsonb_build_object('depends_on', array[$2::bigint], 'on_parent_failure', $3::text))",
		child.Queue, parent.ID, map[bool]string{true: "cancel", false: "run"}[child.Cancel]), child, "")
	if l.chance(30) {
		return
	}
	if l.chance(30) {
		l.tick()
	}
	if l.chance(50) {
		l.check(one[bool](l.run, "select oq_ack($1, $2)", parent.ID, parent.Token), "ack of %+v", *parent)
		l.end(parent, "completed")
	} else {
		l.exec("select oq_nack($1, $2, 'no', false)", parent.ID, parent.Token)
		l.end(parent, "dead")
	}
	l.learn(nil)
	if l.chance(50) {
		l.check(one[int](l.run, "select oq_purge($1, $2)::int", queue, parent.State) == 1, "purge of %+v", *parent)
		l.end(parent, "gone")
	} else if parent.State == "dead" {
		l.redriven(parent)
	}
}

func (l *links) drop() {
	if l.chance(60) || one[int](l.run, "select count(*)::int from oq_queues where queue_name = 'd'") == 0 {
		return
	}
	l.exec("select oq_drop_queue('d', true)")
	l.vanished()
}

// expire ends the life of one that waits, for whatever.
func (l *links) expire() {
	j := l.some("waiting", "ready", "scheduled")
	if j == nil || j.Due {
		return
	}
	l.exec("begin")
	l.exec("select oq.enter()")
	for _, table := range []string{"ready", "waiting", "scheduled"} {
		l.exec("update oq."+table+" set expires_at = clock_timestamp() where job_id = $1", j.ID)
	}
	l.exec("insert into oq.ttl (expires_at, job_id) values (clock_timestamp(), $1)", j.ID)
	l.exec("commit")
	l.exec("select oq_expire()")
	l.end(j, "expired")
}

// passTime lets the time of some jobs come.
func (l *links) passTime() { l.due(30) }

func (l *links) due(percent int) {
	var due, later []int64
	for _, j := range l.sorted() {
		switch {
		case !l.chance(percent):
		case j.State == "scheduled" || j.State == "leased":
			j.Due, j.Later = true, false
			due = append(due, j.ID)
		case j.State == "waiting" && j.Later:
			j.Later = false
			later = append(later, j.ID)
		}
	}
	l.exec("begin")
	l.exec("select oq.enter()")
	l.exec("update oq.scheduled set due_at = clock_timestamp() where job_id = any ($1)", due)
	l.exec(testdb.Lapse("where job_id = any ($1)"), due)
	l.exec("update oq.job set run_at = clock_timestamp() where run_at > clock_timestamp() and job_id = any ($1)", slices.Concat(due, later))
	l.exec("commit")
}

// tick does what is left to do, though its time has not come.
func (l *links) tick() {
	l.exec("update oq.todo set due_at = clock_timestamp()")
	l.exec("select from oq_tick()")
	l.late = false
	for _, c := range l.jobs {
		for _, id := range c.Parents {
			l.jobs[id].Blind = false
		}
	}
	l.learn(nil)
	for _, j := range l.sorted() {
		l.check(!j.Due, "the tick has left %+v", *j)
	}
}

// rotate lets generations go, and with them what is past its retention. What ended a moment ago is not.
func (l *links) rotate() {
	if !l.late && l.chance(50) {
		queue := pick(l.run, linkQueues)
		l.exec(`update oq.finished set finished_at = finished_at - interval '1 month'
			where queue_id in (select queue_id from oq.queue where queue_name = $1)`, queue)
		l.exec("update oq.queue set created_at = created_at - interval '1 month' where queue_name = $1", queue)
		for _, j := range l.jobs {
			j.Old = j.Old || j.Queue == queue && slices.Contains([]string{"completed", "cancelled", "expired"}, j.State)
		}
	}
	for range 1 + l.rnd.IntN(4) {
		l.exec("update oq.generation_state set opened_at = clock_timestamp() - interval '20 hours', try_after = null")
		// They stay in their order.
		l.exec("update oq.generation_state set closed_at = closed_at - interval '4 hours' where closed_at > clock_timestamp() - interval '4 hours'")
		l.exec("select oq_rotate($1)", 1+l.rnd.IntN(60))
	}
}

func (l *links) compactLinks() {
	l.exec("select oq.rewrite($1)", pick(l.run, []string{"ready", "scheduled", "waiting", "leased", "todo"}))
}

// parents holds what a worker reads of the parents of its job against the model.
func (l *links) parents() {
	j := l.some("waiting", "ready", "leased")
	if j == nil || l.late {
		return
	}
	var want []string
	for _, id := range slices.Sorted(slices.Values(j.Declared)) {
		p := l.jobs[id]
		switch {
		case p == nil:
			want = append(want, fmt.Sprint(id, " gone"))
		case p.Old || p.Group != "":
			return
		default:
			want = append(want, fmt.Sprint(id, " ", p.State))
		}
	}
	got := list[string](l.run, "select parent_id || ' ' || coalesce(state, 'gone') from oq_parents($1)", j.ID)
	l.check(slices.Equal(got, want), "parents of %+v: %v, want %v", *j, got, want)
}

// learn takes up what has moved by itself, of jobs whose time had come and of batches, and holds every job
// against the model, but for those that were leased just now.
func (l *links) learn(leased map[int64]bool) {
	l.t.Helper()
	type row struct {
		ID           int64
		Queue, State string
		Key          *string
		Batch, Kind  *string
		Over         bool
	}
	rows, err := l.conn.Query(context.Background(), `select job_id, queue_name, state, unique_key, headers ->> 'batch', payload ->> 'kind',
		payload is null from oq_jobs`)
	if err != nil {
		l.fail("%v", err)
	}
	seen, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		l.fail("%v", err)
	}
	states := map[int64]row{}
	for _, is := range seen {
		states[is.ID] = is
	}
	for _, j := range l.sorted() {
		is := states[j.ID]
		if !j.Due || leased[j.ID] || is.State == j.State {
			continue
		}
		if j.State == "leased" {
			j.Lost++
			if most, named := linkMaxLost[j.Queue]; j.Lost >= most && named || j.Lost >= 3 && !named {
				l.end(j, "dead")
				continue
			}
		}
		j.State, j.Due = "ready", false
	}
	for _, is := range seen {
		if l.jobs[is.ID] != nil {
			continue
		}
		l.check(is.Batch != nil && is.Kind != nil, "there is a job %+v", is)
		name := *is.Batch + " " + *is.Kind
		l.check(l.owed[name], "batch %s has made job %d, too early or once more", name, is.ID)
		delete(l.owed, name)
		l.jobs[is.ID] = &link{ID: is.ID, Queue: is.Queue, State: "ready"}
	}
	if !l.late {
		l.check(len(l.owed) == 0, "batches have not made %v", l.owed)
	}
	for _, j := range l.sorted() {
		is, there := states[j.ID]
		if leased[j.ID] {
			continue
		}
		if j.Old && !there {
			delete(l.jobs, j.ID)
			continue
		}
		ok := is.State == j.State ||
			is.State == "waiting" && (j.Group != "" && j.State == "ready" ||
				l.late && slices.Contains([]string{"ready", "scheduled", "cancelled"}, j.State))
		l.check(ok, "job %d is %q, want %+v", j.ID, is.State, *j)
		key := ""
		if is.Key != nil {
			key = *is.Key
		}
		l.check(is.Over || key == j.Key, "job %d has the key %q, want %+v", j.ID, key, *j)
	}
}

func (l *links) laws() {
	l.t.Helper()
	broken := list[string](l.run, "select law || ': ' || violations || ' ' || coalesce(sample, '') from oq_audit() where violations <> 0")
	l.check(len(broken) == 0, "audit: %v", broken)
	l.log = l.log[:len(l.log)-1]
}

// finish seals all batches and works off everything: nothing waits, each batch has made its jobs, no edge is left.
func (l *links) finish() {
	for id := l.unsealed(); id > 0; id = l.unsealed() {
		l.exec("select oq_batch_seal($1)", id)
		l.batches[id].Sealed = true
		l.fire(id)
		l.learn(nil)
	}
	for round := 0; ; round++ {
		left := 0
		for _, j := range l.jobs {
			if j.open() {
				left++
			}
		}
		if left == 0 && !l.late {
			break
		}
		l.check(round < 200, "%d jobs are never done", left)
		l.due(100)
		l.tick()
		for _, queue := range slices.Concat(linkQueues, l.fresh) {
			l.leases(queue, 100)
		}
		for _, j := range l.sorted() {
			if j.State == "leased" && !j.Due {
				l.check(one[bool](l.run, "select oq_ack($1, $2)", j.ID, j.Token), "ack of %+v", *j)
				l.end(j, "completed")
			}
		}
		l.learn(nil)
	}
	l.laws()
	for id, b := range l.batches {
		l.check(b.Over, "batch %d is not over: %+v", id, *b)
	}
	for _, table := range []string{"waiting", "dependency", "batch", "batch_failure"} {
		l.check(one[int](l.run, "select count(*)::int from oq."+table) == 0, "%s is not empty", table)
	}
	// Nothing is left to do for the tick, either.
	l.exec("update oq.todo set due_at = clock_timestamp()")
	l.exec("select from oq_tick()")
	l.check(one[int](l.run, "select count(*)::int from oq.todo where kind <> 'group'") == 0, "there is still something to do")
}
