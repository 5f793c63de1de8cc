// Package shards simulates what comes after one machine: several PostgreSQL servers behind one router
// (clients/go, Shards), one openqueued for all of them, and a set of servers that changes under load.
package shards

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	openqueue "github.com/openqueue/openqueue/clients/go"
	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

const (
	patience  = 60 * time.Second
	keys      = 200
	producers = 4
	burst     = 3
	queue     = "work"
	lease     = 6 * time.Second // None is to be lost but with a server, or two jobs of a key could be at work.
)

// task is a job's payload: the n-th of its key.
type task struct {
	Key string
	N   int
}

var tasks = openqueue.Queue[task]{Name: queue}

// committed is what an enqueue returned.
type committed struct {
	shard string
	id    int64
}

// world is the servers, and what producers and workers of all phases have seen.
type world struct {
	servers map[string]*testdb.Server
	pools   map[string]*pgxpool.Pool
	now     atomic.Pointer[openqueue.Shards] // what producers route by

	mu      sync.Mutex
	ledger  map[task]committed
	made    map[string]int            // jobs by shard
	refused map[string]int            // failed enqueues by shard
	slowest time.Duration             // of those
	done    map[task]int              // how often it was done
	doneBy  map[string]int            // jobs done at least once, by shard
	order   map[string]map[string]int // the newest done, by shard and key
	wrong   []string                  // against the order
	again   int                       // done more than once

	turns [producers]atomic.Int64 // keys that a producer has been at
}

func (w *world) add(t *testing.T, name string) {
	t.Helper()
	s := testdb.StartServer(t, testdb.ServerOptions{Settings: map[string]string{
		"shared_buffers": "16MB", "max_connections": "60", "fsync": "off"}})
	cfg, err := pgxpool.ParseConfig(s.URL("postgres") + "&connect_timeout=2")
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = producers + 1
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w.servers[name], w.pools[name] = s, pool
	w.mu.Lock()
	w.order[name] = map[string]int{}
	w.mu.Unlock()
	w.exec(t, name, `select oq_create_queue($1, '{"retention": "1 hour"}')`, queue)
}

func (w *world) exec(t *testing.T, shard, sql string, args ...any) {
	t.Helper()
	if _, err := w.pools[shard].Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %s: %v", shard, sql, err)
	}
}

func get[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// set is the shards of these names; one with a ! drains.
func (w *world) set(t *testing.T, names ...string) *openqueue.Shards {
	t.Helper()
	var all []openqueue.Shard
	for _, n := range names {
		name, drain := strings.CutSuffix(n, "!")
		all = append(all, openqueue.Shard{Name: name, Pool: w.pools[name], Drain: drain})
	}
	s, err := openqueue.NewShards(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func key(i int) string { return fmt.Sprintf("customer %d", i) }

// try enqueues, and is not cut off when its producer is told to end: what is committed is to be in the ledger.
func (w *world) try(shard openqueue.Shard, job task) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	began := time.Now()
	id, err := tasks.Enqueue(ctx, shard.Pool, job, &openqueue.Options{GroupKey: job.Key,
		UniqueKey: fmt.Sprintf("%s/%d", job.Key, job.N), UniqueFor: time.Hour})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.refused[shard.Name]++
		w.slowest = max(w.slowest, time.Since(began))
		return false
	}
	w.ledger[job] = committed{shard.Name, id}
	w.made[shard.Name]++
	return true
}

// produce enqueues for its share of the keys, some jobs of each, round and round. What fails is tried again in the next round, where
// it was tried first: whether it was committed is not known, and the unique key makes sure that it is there once.
func (w *world) produce(ctx context.Context, first int) {
	next := map[string]task{}
	where := map[string]openqueue.Shard{}
	for round := 0; ctx.Err() == nil; round++ {
		for i := first; i < keys && ctx.Err() == nil; i += producers {
			k := key(i)
			for range burst {
				if _, again := where[k]; !again {
					where[k] = w.now.Load().For(k)
					next[k] = task{k, next[k].N + 1}
				}
				if !w.try(where[k], next[k]) {
					break
				}
				delete(where, k)
			}
			w.turns[first].Add(1)
			time.Sleep(8 * time.Millisecond) // Two cores are to have time for the rest.
		}
	}
	// What is still open was not committed, or nobody knows: it is settled.
	for k, shard := range where {
		job := next[k]
		if !w.try(shard, job) {
			w.mu.Lock()
			w.wrong = append(w.wrong, fmt.Sprintf("%v was refused by %s at the end", job, shard.Name))
			w.mu.Unlock()
		}
	}
}

// worker does what it gets and notes the order: within a shard the jobs of a key rise, and one that comes
// again, since its ack was lost with the server, is the newest.
func (w *world) worker(shard openqueue.Shard) *openqueue.Worker {
	return &openqueue.Worker{Queue: queue, Concurrency: 8, Lease: lease, Timeout: 5 * time.Second, Poll: time.Second,
		Handler: tasks.Handler(func(ctx context.Context, j *openqueue.Job, job task) error {
			time.Sleep(rand.N(20 * time.Millisecond)) // The work: some are at it when their server goes down.
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.done[job]++; w.done[job] == 1 {
				w.doneBy[shard.Name]++
			}
			switch newest := w.order[shard.Name][job.Key]; {
			case job.N == newest:
				w.again++
			case job.N < newest:
				w.wrong = append(w.wrong, fmt.Sprintf("%s: %v after %d", shard.Name, job, newest))
			default:
				w.order[shard.Name][job.Key] = job.N
			}
			return nil
		})}
}

// running is what a goroutine returns, once it was told to end.
func running(t *testing.T, run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// grown returns when so many more jobs were made, and as many done, in each of the shards.
func (w *world) grown(t *testing.T, by int, shards ...string) {
	t.Helper()
	w.mu.Lock()
	made, done := map[string]int{}, map[string]int{}
	for _, s := range shards {
		made[s], done[s] = w.made[s]+by, w.doneBy[s]+by
	}
	w.mu.Unlock()
	until(t, fmt.Sprintf("%v make and do %d more jobs", shards, by), func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, s := range shards {
			if w.made[s] < made[s] || w.doneBy[s] < done[s] {
				return false
			}
		}
		return true
	})
}

func (w *world) empty(t *testing.T, shard string) bool {
	t.Helper()
	return get[int](t, w.pools[shard], `select coalesce(sum(ready + scheduled + waiting + leased), 0)::int from oq_queues`) == 0
}

// settled holds a shard against the ledger: the jobs that were made and no other, all completed, in order.
func (w *world) settled(t *testing.T, name string) {
	t.Helper()
	until(t, name+" is empty", func() bool { return w.empty(t, name) })
	var ids []int64
	w.mu.Lock()
	for job, c := range w.ledger {
		if c.shard == name {
			ids = append(ids, c.id)
			if w.done[job] == 0 {
				t.Errorf("%s: %v was never done", name, job)
			}
		}
	}
	w.mu.Unlock()
	pool := w.pools[name]
	if n := get[int](t, pool, `select count(*)::int from oq_jobs`); n != len(ids) {
		t.Errorf("%s: %d jobs, %d were committed", name, n, len(ids))
	}
	if n := get[int](t, pool, `select count(*)::int from oq_jobs where state = 'completed' and job_id = any ($1)`, ids); n != len(ids) {
		t.Errorf("%s: %d of %d committed jobs are completed", name, n, len(ids))
	}
	if broken := get[string](t, pool, `select coalesce(string_agg(law || ': ' || coalesce(sample, ''), ', '), '')
		from oq_audit() where violations <> 0`); broken != "" {
		t.Errorf("%s: audit: %s", name, broken)
	}
}

// process is openqueued for some of the servers.
type process struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
	http string
}

func (w *world) daemon(t *testing.T, bin string, shards ...string) *process {
	t.Helper()
	var urls []string
	for _, s := range shards {
		urls = append(urls, w.servers[s].URL("postgres"))
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	p := &process{cmd: exec.Command(bin, "run"), done: make(chan struct{}), http: addr}
	p.cmd.Env = append(os.Environ(), "OQ_DATABASE_URLS="+strings.Join(urls, " "), "OQ_HTTP_ADDR="+addr)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(p.stop)
	return p
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// unready lists the servers, host:port, that the daemon does not find ready; "all" while it does not answer.
func (p *process) unready() string {
	answer, err := http.Get("http://" + p.http + "/readyz")
	if err != nil {
		return "all"
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return "all"
	}
	var bad []string
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimSpace(line); line != "" && line != "ready" && !strings.HasSuffix(line, ": ready") {
			bad = append(bad, strings.SplitN(line, "/", 2)[0])
		}
	}
	return strings.Join(bad, " ")
}
