package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A job of a healthy database is at most so late, whatever the others do. Below the time-out of one
// connection, the longest that another database could make it wait.
const prompt = 5 * time.Second

// line is a server between the daemon and PostgreSQL, on an address of its own. Frozen, it accepts
// and passes nothing on, as a machine does that hangs.
type line struct {
	listener net.Listener
	frozen   atomic.Bool
	accepted atomic.Int64
	mu       sync.Mutex
	conns    []net.Conn
	wait     sync.WaitGroup
}

// newLine leads to addr, or nowhere.
func newLine(t *testing.T, addr string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{listener: listener}
	l.frozen.Store(addr == "")
	l.wait.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			l.accepted.Add(1)
			l.keep(in)
			if l.frozen.Load() {
				continue
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				in.Close()
				continue
			}
			l.keep(out)
			l.wait.Go(func() { l.pass(in, out) })
			l.wait.Go(func() { l.pass(out, in) })
		}
	})
	t.Cleanup(l.close)
	return l
}

func (l *line) keep(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
}

func (l *line) pass(from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 8192)
	for {
		n, err := from.Read(buf)
		if l.frozen.Load() {
			// What was under way is lost, and nobody is told.
			_, _ = io.Copy(io.Discard, from)
			return
		}
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (l *line) close() {
	l.listener.Close()
	l.mu.Lock()
	for _, c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.wait.Wait()
}

// through is the URL of db by way of the line.
func (l *line) through(t *testing.T, db string) string {
	t.Helper()
	u, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.listener.Addr().String()
	return u.String()
}

func hostOf(t *testing.T, db string) string {
	t.Helper()
	u, err := url.Parse(db)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func several(urls ...string) Config {
	cfg := config("")
	cfg.DatabaseUrls = strings.Join(urls, ",")
	return cfg
}

// page is what the daemon answers, without a socket.
func page(c *clock, path string) (int, string) {
	w := httptest.NewRecorder()
	c.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// servedInTime makes one job that is to be promoted and one that is to be reaped, and watches both.
func servedInTime(t *testing.T, db *testdb.DB) {
	t.Helper()
	exec(t, db, `select oq_enqueue('delayed', options => '{"delay": "100 ms"}')`)
	exec(t, db, `select oq_enqueue('lost')`)
	exec(t, db, `select oq_lease('lost', 'nobody', lease_seconds => 1)`)
	began := time.Now()
	until(t, "the delayed job is promoted and the lost one reaped", func() bool {
		return number(t, db, `select count(*) from oq_jobs where state in ('scheduled', 'leased')`) == 0
	})
	if took := time.Since(began); took > prompt {
		t.Errorf("promoted and reaped after %s", took)
	}
	if n := number(t, db, `select count(*) from oq_jobs where queue_name = 'lost' and lost_leases = 1`); n != 1 {
		t.Errorf("%d jobs were reaped", n)
	}
	exec(t, db, `select oq_purge('delayed', 'ready'), oq_purge('lost', 'ready')`)
}

func sessions(t *testing.T, db *testdb.DB) int {
	t.Helper()
	return number(t, db, `select count(*) from pg_stat_activity
		where application_name = 'openqueued' and datname = current_database()`)
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestSources(t *testing.T) {
	for _, v := range []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSERVICE"} {
		t.Setenv(v, "")
	}
	for list, want := range map[string][]string{
		"postgres://u@a/x": {"a:5432/x"},
		"postgres://u:p@a/x,postgresql://u:p@a:6000/x":   {"a:5432/x", "a:6000/x"},
		" postgres://u@a/x\n\tpostgres://u@b/x , ":       {"a:5432/x", "b:5432/x"},
		"postgres://u@a/x,, postgres://u@a/y":            {"a:5432/x", "a:5432/y"},
		"postgres://u:p@a:1,b:2/x,postgres://u@a:1/x":    {"a:1,b:2/x", "a:1/x"},
		"postgres://u@[::1]/x,postgres://u@/x?host=/tmp": {"[::1]:5432/x", "/tmp:5432/x"},
		"postgres://me@a": {"a:5432/me"},
		"postgres://u:a%2Cb%20c@a/x,postgres://u@a/x%2Cy": {"a:5432/x", "a:5432/x,y"},
	} {
		all, err := Config{DatabaseUrls: list}.sources()
		var got []string
		for _, s := range all {
			got = append(got, s.label)
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %q, %v, want %q", list, got, err, want)
		}
	}
	for list, want := range map[string]string{
		",":                               "want URLs",
		"host=a dbname=secret":            "want URLs",
		"a:secret@b/x,postgres://u@a/x":   "want URLs",
		"postgres://u:secret@a/x,b/y":     "entry 1: a comma",
		"postgres://u:se,cret@a/x":        "entry 1: a comma",
		"postgres://u@a/x?user=secret,b":  "entry 1: a comma",
		"postgres://u:secret@a/x b/y":     "entry 1: a blank",
		"postgres://u:sec ret@a/x":        "entry 1: a blank",
		"postgres://u:secret@a/%FF":       "entry 1 is not",
		"postgres://u:secret@a/x%0Ay":     "entry 1 is not",
		"postgres://a/x,postgres://%zz":   "entry 2 is not",
		"postgres://a/x,postgres://a:b/y": "entry 2 is not",
		"postgres://u:secret@a/x,postgres://u@b/x,postgres://v@A:5432/x?sslmode=disable": "entries 1 and 3 are the same database, a:5432/x",
	} {
		_, err := Config{DatabaseUrls: list}.sources()
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want %q", list, err, want)
		}
	}
	_, err := Config{DatabaseURL: "postgres://a/x", DatabaseUrls: "postgres://a/x"}.sources()
	if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "unset one") {
		t.Errorf("both: %v", err)
	}
}

func TestCommandsWithSeveral(t *testing.T) {
	for _, v := range []string{"OQ_DATABASE_URL", "DATABASE_URL"} {
		t.Setenv(v, "") // It comes back after the test.
		os.Unsetenv(v)
	}
	t.Setenv("OQ_DATABASE_URLS", "postgres://u:secret@a/x postgres://u:sec#ret@b/y")
	t.Setenv("OQ_HTTP_ADDR", "")
	for _, c := range []struct {
		args, want string
	}{{"dev", "one database"}, {"migrate --to 0", "one database"}} {
		err := command(t.Context(), append([]string{"openqueued"}, strings.Fields(c.args)...), io.Discard, io.Discard)
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	var out bytes.Buffer
	if err := command(t.Context(), []string{"openqueued", "config"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if want := "postgres://u:xxxxx@a/x,postgres://u:xxxxx@b/y\n"; !strings.Contains(out.String(), want) {
		t.Errorf("config: %s", out.String())
	}
	for _, v := range []string{"OQ_DATABASE_URL", "DATABASE_URL"} {
		t.Setenv(v, "postgres://u@a/x")
		if got := Main([]string{"openqueued", "config"}); got != exitConfig {
			t.Errorf("%s is set as well: exit %d", v, got)
		}
		os.Unsetenv(v)
	}
	// A list of one is the same as OQ_DATABASE_URL.
	t.Setenv("OQ_DATABASE_URLS", "postgres://u@a/x,")
	if cfg, err := loadConfig(); err != nil || cfg.DatabaseURL != "postgres://u@a/x" || cfg.DatabaseUrls != "" {
		t.Errorf("a list of one: %+v, %v", cfg, err)
	}
}

// One that refuses does not keep the databases after it from their migration.
func TestMigrateSeveral(t *testing.T) {
	t.Parallel()
	a, b := testdb.Empty(t), testdb.Empty(t)
	cfg := several(a.URL, "postgres://u:secret@127.0.0.1:1/x", b.URL)
	var out bytes.Buffer
	err := migrateAll(t.Context(), cfg, -1, &out)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1/x: ") || strings.Contains(err.Error(), "secret") {
		t.Errorf("one is away: %v", err)
	}
	if n := strings.Count(out.String(), "was 0"); n != 2 {
		t.Errorf("%q", out.String())
	}
	for _, db := range []*testdb.DB{a, b} {
		exec(t, db, "select oq_enqueue('q')")
	}
}

func TestSeveralAreServed(t *testing.T) {
	t.Parallel()
	a, b := testdb.New(t), testdb.New(t)
	var log safeBuffer
	c, stop := startedWith(t, several(a.URL, b.URL), zerolog.New(&log))
	until(t, "both are ready", func() bool { return isReady(c) })
	servedInTime(t, a)
	servedInTime(t, b)
	// Both have a queue of the same name.
	exec(t, a, "select oq_enqueue('same')")
	exec(t, b, "select oq_enqueue('same') from generate_series(1, 2)")
	until(t, "the gauges tell the databases apart", func() bool {
		_, body := page(c, "/metrics")
		return strings.Contains(body, `openqueue_queue_jobs{database="`+c.databases[0].label+`",queue="same",state="ready"} 1`) &&
			strings.Contains(body, `openqueue_queue_jobs{database="`+c.databases[1].label+`",queue="same",state="ready"} 2`)
	})
	_, metrics := page(c, "/metrics")
	want := ""
	for i, db := range []*testdb.DB{a, b} {
		label := c.databases[i].label
		if name := label[strings.LastIndex(label, "/"):]; !strings.HasPrefix(label, hostOf(t, db.URL)+"/") ||
			!strings.Contains(db.URL, name) {
			t.Errorf("label %s of %s", label, db.URL)
		}
		for _, gauge := range []string{"openqueue_leader", "openqueue_database_up"} {
			if !strings.Contains(metrics, gauge+`{database="`+label+`"} 1`) {
				t.Errorf("%s is no %s", label, gauge)
			}
		}
		if !strings.Contains(log.String(), `"database":"`+label+`","leader":true`) {
			t.Errorf("no log line says that %s is led:\n%s", label, log.String())
		}
		want += label + ": ready\n"
	}
	if code, body := page(c, "/readyz"); code != http.StatusOK || body != want {
		t.Errorf("/readyz: %d %q, want %q", code, body, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// What is wrong with the others from the first moment on does not reach the healthy one, and each of
// them is served when its fault is gone, without a restart.
func TestOthersFaultsAtTheStart(t *testing.T) {
	t.Parallel()
	good, other, empty := testdb.New(t), testdb.New(t), testdb.Empty(t)
	exec(t, other, "alter function oq_version() rename to oq_version_kept")
	exec(t, other, "create function oq_version() returns text language sql as $$ select '9.0.0' $$")
	hole := newLine(t, "")
	var log safeBuffer
	began := time.Now()
	c, stop := startedWith(t, several(hole.through(t, good.URL), "postgres://u:secret@127.0.0.1:1/x",
		other.URL, empty.URL, good.URL), zerolog.New(&log))
	until(t, "the good one is ready", func() bool { return c.databases[4].unready() == "" })
	if took := time.Since(began); took > prompt {
		t.Errorf("ready after %s", took)
	}
	for range 3 {
		servedInTime(t, good)
	}
	until(t, "each says what is wrong", func() bool {
		code, body := page(c, "/readyz")
		lines := strings.Split(strings.TrimSpace(body), "\n")
		if code != http.StatusServiceUnavailable || len(lines) != 5 {
			t.Fatalf("/readyz: %d %s", code, body)
		}
		return strings.Contains(lines[0], "tick has not run yet") && strings.Contains(lines[1], "tick has not run yet") &&
			strings.Contains(lines[2], "the database has version 9.0.0") &&
			strings.Contains(lines[3], "not installed") && strings.HasSuffix(lines[4], ": ready")
	})
	if code, _ := page(c, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	_, metrics := page(c, "/metrics")
	for i, up := range []int{0, 0, 0, 0, 1} {
		for _, gauge := range []string{"openqueue_leader", "openqueue_database_up"} {
			if line := fmt.Sprintf("%s{database=%q} %d\n", gauge, c.databases[i].label, up); !strings.Contains(metrics, line) {
				t.Errorf("no %s", line)
			}
		}
	}
	if _, err := other.Pool.Exec(t.Context(), `drop function oq_version()`); err != nil {
		t.Fatal(err)
	}
	exec(t, other, "alter function oq_version_kept() rename to oq_version")
	if err := Migrate(t.Context(), config(empty.URL), -1, io.Discard); err != nil {
		t.Fatal(err)
	}
	until(t, "both are ready now", func() bool {
		return c.databases[2].unready() == "" && c.databases[3].unready() == ""
	})
	servedInTime(t, empty)
	if hole.accepted.Load() == 0 {
		t.Error("nobody fell into the hole")
	}
	if strings.Contains(log.String(), "secret") {
		t.Error("the log holds a password")
	}
	began = time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > prompt {
		t.Errorf("stopped after %s", took)
	}
}

// One database is closed, one stops answering in the middle of a session; both come back.
func TestOneGoesAway(t *testing.T) {
	t.Parallel()
	good, closed, hung := testdb.New(t), testdb.New(t), testdb.New(t)
	way := newLine(t, hostOf(t, hung.URL))
	c, err := newClock(several(good.URL, closed.URL, way.through(t, hung.URL)), zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range c.databases {
		for _, l := range d.loops {
			l.limit = 2 * time.Second
		}
	}
	stop := begin(t, c)
	until(t, "all are ready", func() bool { return isReady(c) })

	name := closed.Pool.Config().ConnConfig.Database
	shut := func(allow bool) {
		exec(t, good, fmt.Sprintf("alter database %s allow_connections %t", name, allow))
	}
	shut(false)
	exec(t, good, `select pg_terminate_backend(pid) from pg_stat_activity where datname = '`+name+`'`)
	way.frozen.Store(true)
	until(t, "the two are not ready, and the good one is served meanwhile", func() bool {
		servedInTime(t, good)
		return c.databases[1].unready() != "" && c.databases[2].unready() != ""
	})
	servedInTime(t, good)
	code, body := page(c, "/readyz")
	lines := strings.Split(body, "\n")
	if code != http.StatusServiceUnavailable || !strings.HasSuffix(lines[0], ": ready") ||
		!strings.Contains(lines[1], "tick last ran") || !strings.Contains(lines[2], "tick last ran") {
		t.Errorf("/readyz: %d %s", code, body)
	}
	_, metrics := page(c, "/metrics")
	for i, up := range []int{1, 0, 0} {
		for _, gauge := range []string{"openqueue_leader", "openqueue_database_up"} {
			if line := fmt.Sprintf("%s{database=%q} %d\n", gauge, c.databases[i].label, up); !strings.Contains(metrics, line) {
				t.Errorf("no %s", line)
			}
		}
	}
	shut(true)
	way.frozen.Store(false)
	until(t, "all are ready again", func() bool { return isReady(c) })
	servedInTime(t, closed)
	servedInTime(t, hung)

	// A server that hangs does not hold the end up.
	way.frozen.Store(true)
	began := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > prompt {
		t.Errorf("stopped after %s", took)
	}
}

// A run of a duty that gets no answer is given up, with its session.
func TestDutyIsCutShort(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	opened, failures := 0, 0
	l := &loop{
		log: zerolog.Nop(), failed: func(string) { failures++ }, limit: 200 * time.Millisecond,
		connect: func(ctx context.Context) (*pgx.Conn, error) {
			opened++
			return pgx.Connect(ctx, db.URL)
		},
	}
	l.duty = duty{"test", func(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
		if opened == 1 {
			_, err := conn.Exec(ctx, "select pg_sleep(3600)")
			return 0, err
		}
		cancel()
		return 0, nil
	}}
	if err := l.run(ctx); err != nil || opened != 2 || failures != 1 {
		t.Errorf("%v after %d connections, %d failures", err, opened, failures)
	}
}

// Nothing stays behind: not parallel, since it counts what the whole process has.
func TestNothingIsLeftBehind(t *testing.T) {
	a, b := testdb.New(t), testdb.New(t)
	hole := newLine(t, "")
	if sessions(t, a)+sessions(t, b) != 0 {
		t.Fatal("somebody is here already")
	}
	// Else the collector would close what was forgotten.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	before := runtime.NumGoroutine()
	for range 3 {
		cfg := several(a.URL, b.URL, hole.through(t, a.URL))
		cfg.HTTPAddr = "127.0.0.1:0"
		c, stop := started(t, cfg)
		until(t, "two are ready, the third hangs", func() bool {
			return c.databases[0].unready() == "" && c.databases[1].unready() == "" && hole.accepted.Load() > 0
		})
		if n, m := sessions(t, a), sessions(t, b); n != 2 || m != 2 {
			t.Errorf("%d and %d sessions, want 2 each", n, m)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		until(t, "the sessions are gone", func() bool { return sessions(t, a)+sessions(t, b) == 0 })
	}
	until(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}
