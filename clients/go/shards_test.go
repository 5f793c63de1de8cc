package openqueue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

func named(t testing.TB, names ...string) *Shards {
	t.Helper()
	var all []Shard
	for _, n := range names {
		name, drain := strings.CutSuffix(n, " drains")
		all = append(all, Shard{Name: name, Pool: new(pgxpool.Pool), Drain: drain})
	}
	s, err := NewShards(all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// moved counts where keys go when one set of shards becomes another.
func moved(before, after *Shards, keys int) map[string]int {
	ways := map[string]int{}
	for i := range keys {
		key := fmt.Sprintf("customer %d", i)
		if a, b := before.For(key).Name, after.For(key).Name; a != b {
			ways[a+" to "+b]++
		}
	}
	return ways
}

func TestShardsMoveTheirShareOnly(t *testing.T) {
	t.Parallel()
	const keys = 40_000
	share := func(what string, n, want int) {
		t.Helper()
		// Five times the standard deviation of so many throws of a coin, at least.
		if d := n - want; d*d > 25*want {
			t.Errorf("%s: %d keys, want about %d", what, n, want)
		}
	}
	four := named(t, "a", "b", "c", "d")
	held := map[string]int{}
	for i := range keys {
		held[four.For(fmt.Sprintf("customer %d", i)).Name]++
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		share("held by "+name, held[name], keys/4)
	}
	for what, sets := range map[string][2]*Shards{
		"a fourth":      {named(t, "c", "a", "b"), four},
		"one less":      {named(t, "d", "a", "b", "c"), named(t, "c", "b", "a")},
		"one that ends": {four, named(t, "a", "b", "c", "d drains")},
	} {
		ways := moved(sets[0], sets[1], keys)
		for way, n := range ways {
			if !strings.HasSuffix(way, " to d") && !strings.HasPrefix(way, "d to ") {
				t.Errorf("%s: %d keys moved from %s", what, n, way)
			}
			share(what+", from "+way, n, keys/12)
		}
		if len(ways) != 3 {
			t.Errorf("%s: %v", what, ways)
		}
	}
	if ways := moved(four, named(t, "d", "c", "b", "a"), keys); len(ways) > 0 {
		t.Errorf("the order of the shards moves keys: %v", ways)
	}
}

// What the documentation says, in SQL: so that other producers choose as this one does.
func TestShardsAsInSQL(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	s := named(t, "a", "b", "grün", "d/e", "f drains")
	for i := range 200 {
		key := strings.Repeat("schlüssel/", i) + fmt.Sprint(i)
		want := get[string](t, db.Pool, `select name from unnest(array['a', 'b', 'grün', 'd/e']) name
			order by sha256(convert_to(name || '/' || $1, 'UTF8')) desc limit 1`, key)
		if got := s.For(key).Name; got != want {
			t.Errorf("%d: %s, in SQL %s", i, got, want)
		}
	}
}

func TestNewShards(t *testing.T) {
	t.Parallel()
	p := new(pgxpool.Pool)
	for name, all := range map[string][]Shard{
		"none": {}, "no name": {{Pool: p}}, "no pool": {{Name: "a"}}, "all drain": {{Name: "a", Pool: p, Drain: true}},
		"twice": {{Name: "a", Pool: p}, {Name: "b", Pool: p}, {Name: "a", Pool: p}},
	} {
		if _, err := NewShards(all...); !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := named(t, "a", "b drains")
	if b, known := s.Get("b"); !known || b.Name != "b" || !b.Drain {
		t.Errorf("b is %v, %v", b, known)
	}
	if _, known := s.Get("c"); known {
		t.Error("c is known")
	}
}

// A server that takes the connection and says nothing costs a producer its connect_timeout, no more.
func TestShardThatHangs(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	pool, err := pgxpool.New(t.Context(), "postgres://u@"+mute.Addr().String()+"/x?connect_timeout=1&sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s, err := NewShards(Shard{Name: "mute", Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := Enqueue(t.Context(), s.For("key").Pool, "q", 1, nil); err == nil {
		t.Error("enqueued nowhere")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the error came after %s", took)
	}
}

// One that refuses its worker is tried until it does not; the others work all the time.
func TestShardsRun(t *testing.T) {
	t.Parallel()
	good, empty := testdb.New(t), testdb.Empty(t)
	s, err := NewShards(Shard{Name: "good", Pool: good.Pool}, Shard{Name: "empty", Pool: empty.Pool, Drain: true})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 10)
	workers := make(chan string, 1000)
	worker := func(shard Shard) *Worker {
		workers <- shard.Name
		return &Worker{Queue: "q", Handler: func(ctx context.Context, j *Job) error {
			done <- shard.Name
			return nil
		}}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := startRun(ctx, s, worker)
	refused := func(times int) {
		t.Helper()
		for tries := 0; tries < times; {
			select {
			case name := <-workers:
				if name == "empty" {
					tries++
				}
			case err := <-ended:
				t.Fatal("ended: ", err)
			case <-time.After(patience):
				t.Fatal("not tried again")
			}
		}
	}
	wait := func(want string) {
		t.Helper()
		select {
		case got := <-done:
			if got != want {
				t.Errorf("a job of %s, want one of %s", got, want)
			}
		case err := <-ended:
			t.Fatal("ended: ", err)
		case <-time.After(patience):
			t.Fatal("no job of ", want)
		}
	}
	refused(4)
	get[int64](t, good.Pool, "select oq_enqueue('q')")
	wait("good")
	if err := testdb.Migrate(t.Context(), empty.URL, "oq", "public", -1); err != nil {
		t.Fatal(err)
	}
	get[int64](t, empty.Pool, "select oq_enqueue('q')")
	wait("empty")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	// What can't ever work ends all at once; who is refused at the end is named.
	if err := <-startRun(t.Context(), s, func(Shard) *Worker { return &Worker{Queue: "q"} }); !errors.Is(err, ErrArgument) {
		t.Errorf("a worker without a handler: %v", err)
	}
	s.all[1].Pool = testdb.Empty(t).Pool
	ctx, cancel = context.WithCancel(t.Context())
	for len(workers) > 0 {
		<-workers
	}
	said := make(lines, 1000)
	ended = startRun(ctx, s, func(shard Shard) *Worker {
		w := worker(shard)
		w.Logger = slog.New(slog.NewTextHandler(said, nil))
		return w
	})
	said.until(t, "the worker was refused")
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "shard empty: ") {
		t.Errorf("refused at the end: %v", err)
	}
}

func startRun(ctx context.Context, s *Shards, worker func(Shard) *Worker) chan error {
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, worker) }()
	return ended
}

// BenchmarkShardsFor is the router's cost a job: go test ./clients/go -run - -bench ShardsFor
func BenchmarkShardsFor(b *testing.B) {
	for _, n := range []int{1, 3, 10} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			var names []string
			for i := range n {
				names = append(names, fmt.Sprintf("db%d", i))
			}
			s := named(b, names...)
			b.ReportAllocs()
			for b.Loop() {
				s.For("customer 12345678")
			}
		})
	}
}

// lines are what a logger writes.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

func (l lines) until(t testing.TB, text string) {
	t.Helper()
	for line := ""; !strings.Contains(line, text); {
		select {
		case line = <-l:
		case <-time.After(patience):
			t.Fatalf("never said: %s", text)
		}
	}
}
