package shards

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	openqueue "github.com/openqueue/openqueue/clients/go"
	"github.com/openqueue/openqueue/tests/testdb"
)

func TestSetOfServersChanges(t *testing.T) {
	t.Parallel()
	w := &world{servers: map[string]*testdb.Server{}, order: map[string]map[string]int{}}
	w.pools, w.ledger, w.made, w.refused = map[string]*pgxpool.Pool{}, map[task]committed{}, map[string]int{}, map[string]int{}
	w.done, w.doneBy = map[task]int{}, map[string]int{}
	bin := filepath.Join(t.TempDir(), "openqueued")
	if out, err := exec.Command("go", "build", "-o", bin, "../../daemon/openqueued").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"a", "b", "c"} {
		w.add(t, name)
	}
	began := time.Now()
	step := func(format string, args ...any) {
		t.Helper()
		t.Logf("%4.1f s: "+format, append([]any{time.Since(began).Seconds()}, args...)...)
	}

	three := w.set(t, "a", "b", "c")
	w.now.Store(three)
	clock := w.daemon(t, bin, "a", "b", "c")
	until(t, "the daemon serves all three", func() bool { return clock.unready() == "" })
	stopWorkers := running(t, func(ctx context.Context) error { return three.Run(ctx, w.worker) })
	stopProducers := running(t, func(ctx context.Context) error {
		var all sync.WaitGroup
		for i := range producers {
			all.Go(func() { w.produce(ctx, i) })
		}
		all.Wait()
		return nil
	})
	w.grown(t, 150, "a", "b", "c")
	w.balanced(t, three)
	w.later(t, three, 60, 3*time.Second)

	// One goes down in the middle of it: its jobs wait, its producers are told at once, the others go on.
	w.stop(t, "b", "immediate")
	made, done := w.counts("b")
	step("b is down with %d jobs that wait", made-done)
	if made-done < 10 {
		t.Errorf("only %d jobs wait in b: the fault shows nothing", made-done)
	}
	w.add(t, "d") // For later: the time passes anyway.
	w.grown(t, 150, "a", "c")
	address := hostOf(t, w.servers["b"])
	until(t, "the daemon misses b alone", func() bool { return clock.unready() == address })
	if after, _ := w.counts("b"); after != made {
		t.Errorf("%d jobs were made in b while it was down", after-made)
	}
	w.servers["b"].Restart(t)
	w.grown(t, 100, "b")
	until(t, "the daemon serves all three again", func() bool { return clock.unready() == "" })
	refused, slowest := w.refusals()
	step("b is back; refused enqueues: %v, the slowest after %s", refused, slowest)
	if refused["b"] == 0 {
		t.Error("no enqueue was refused while b was down")
	}

	// A fourth: first who works there, then who produces there.
	four := w.set(t, "a", "b", "c", "d")
	next := w.daemon(t, bin, "a", "b", "c", "d")
	until(t, "the new daemon serves all four", func() bool { return next.unready() == "" })
	clock.stop()
	clock = next
	stopNext := running(t, func(ctx context.Context) error { return four.Run(ctx, w.worker) })
	stopWorkers()
	stopWorkers = stopNext
	moved := 0
	for i := range keys {
		if before, after := three.For(key(i)).Name, four.For(key(i)).Name; before != after {
			moved++
			if after != "d" {
				t.Errorf("%s moved from %s to %s", key(i), before, after)
			}
		}
	}
	step("a fourth: %d of %d keys move", moved, keys)
	if moved < keys/8 || moved > keys*3/8 {
		t.Errorf("%d of %d keys moved, want about a quarter", moved, keys)
	}
	w.now.Store(four)
	w.grown(t, 100, "a", "b", "c", "d")

	// One is taken away: first nobody produces there any more, then it is empty, then nobody works there.
	rest := w.set(t, "a!", "b", "c", "d")
	w.now.Store(rest)
	w.turned(t)
	w.settled(t, "a")
	made, _ = w.counts("a")
	for i := range keys {
		if before, after := four.For(key(i)).Name, rest.For(key(i)).Name; (before == "a") != (before != after) {
			t.Errorf("%s went from %s to %s", key(i), before, after)
		}
	}
	gone := w.set(t, "b", "c", "d")
	next = w.daemon(t, bin, "b", "c", "d")
	until(t, "the last daemon serves three", func() bool { return next.unready() == "" })
	clock.stop()
	stopNext = running(t, func(ctx context.Context) error { return gone.Run(ctx, w.worker) })
	stopWorkers()
	w.now.Store(gone)
	w.stop(t, "a", "fast")
	step("a is empty after %d jobs, and gone", made)
	w.grown(t, 50, "b", "c", "d")
	if after, _ := w.counts("a"); after != made {
		t.Errorf("%d jobs were made in a after it was drained", after-made)
	}

	stopProducers()
	for _, name := range []string{"b", "c", "d"} {
		w.settled(t, name)
	}
	stopNext()
	w.mu.Lock()
	defer w.mu.Unlock()
	newest := map[string]int{}
	for job := range w.ledger {
		newest[job.Key] = max(newest[job.Key], job.N)
	}
	total := 0
	for _, n := range newest {
		total += n
	}
	if total != len(w.ledger) {
		t.Errorf("%d jobs in the ledger, %d were to be made", len(w.ledger), total)
	}
	for job := range w.done {
		if _, known := w.ledger[job]; !known {
			t.Errorf("%v was done and never committed", job)
		}
	}
	for _, line := range w.wrong {
		t.Error(line)
	}
	for name, n := range w.refused {
		if name != "b" {
			t.Errorf("%s, which was never down, refused %d enqueues", name, n)
		}
	}
	if w.slowest > 3*time.Second {
		t.Errorf("a producer was told after %s", w.slowest)
	}
	step("%d jobs committed and completed, by shard %v; done more than once: %d", len(w.ledger), w.made, w.again)
}

// balanced holds the jobs of each shard against its keys: the producers go through all keys in turns.
func (w *world) balanced(t *testing.T, s *openqueue.Shards) {
	t.Helper()
	share := map[string]int{}
	for i := range keys {
		share[s.For(key(i)).Name]++
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, n := range share {
		jobs, want := float64(w.made[name])/float64(len(w.ledger)), float64(n)/keys
		if jobs < want-0.1 || jobs > want+0.1 || want < 0.2 || want > 0.5 {
			t.Errorf("%s has %.2f of the jobs and %.2f of the keys", name, jobs, want)
		}
	}
	t.Logf("keys by shard %v, jobs %v", share, w.made)
}

// later makes jobs that are due in a while.
func (w *world) later(t *testing.T, s *openqueue.Shards, jobs int, delay time.Duration) {
	t.Helper()
	for i := range jobs {
		job := task{fmt.Sprintf("later %d", i), 1}
		shard := s.For(job.Key)
		id, err := tasks.Enqueue(t.Context(), shard.Pool, job, &openqueue.Options{GroupKey: job.Key, Delay: delay})
		if err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.ledger[job] = committed{shard.Name, id}
		w.made[shard.Name]++
		w.mu.Unlock()
	}
}

func (w *world) stop(t *testing.T, name, mode string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.servers[name].Stop(ctx, mode); err != nil {
		t.Fatal(err)
	}
	w.turned(t) // What was under way is over.
}

// turned returns when each producer has been through a whole turn.
func (w *world) turned(t *testing.T) {
	t.Helper()
	var want []int64
	for i := range w.turns {
		want = append(want, w.turns[i].Load()+2)
	}
	until(t, "all producers go on", func() bool {
		for i := range w.turns {
			if w.turns[i].Load() < want[i] {
				return false
			}
		}
		return true
	})
}

func (w *world) counts(shard string) (made, done int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.made[shard], w.doneBy[shard]
}

func (w *world) refusals() (map[string]int, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.refused), w.slowest
}

func hostOf(t *testing.T, s *testdb.Server) string {
	t.Helper()
	u, err := url.Parse(s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
