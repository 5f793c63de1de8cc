package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	osexec "os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/openqueue/openqueue/daemon/pgserver"
	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) {
	if command := os.Getenv("OQ_TEST_DAEMON"); command != "" {
		// Also where the tests run under nohup, which would have it ignore hangups.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		os.Exit(Main([]string{"openqueued", command}))
	}
	testdb.Main(m)
}

// The second signal ends it at once, unless it is the first one come by two ways, or a hangup.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	signals, hangups, done := make(chan os.Signal), make(chan os.Signal), make(chan struct{})
	var now time.Time
	stopped, killed := make(chan bool), make(chan bool)
	go stopOn(signals, hangups, done, func() time.Time { return now },
		func() { stopped <- true }, func() { killed <- true })
	defer close(done)
	got := func() string {
		select {
		case <-stopped:
			return "stop"
		case <-killed:
			<-stopped
			return "kill"
		}
	}
	for i, c := range []struct {
		from chan os.Signal
		at   time.Duration
		want string
	}{
		{hangups, 0, "stop"}, {hangups, 9 * time.Second, "stop"},
		{signals, 10 * time.Second, "stop"}, {signals, 10*time.Second + 100*time.Millisecond, "stop"},
		{hangups, 12 * time.Second, "stop"}, {signals, 13 * time.Second, "kill"},
	} {
		now = time.Unix(1, 0).Add(c.at)
		c.from <- os.Interrupt
		if did := got(); did != c.want {
			t.Errorf("%d: %s, want %s", i, did, c.want)
		}
	}
}

// A closed terminal, and a log whose reader is gone (make run | tee log, and ^C), end it in order.
func TestEndsInOrder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		signals []syscall.Signal
		deaf    bool
	}{
		"term":         {[]syscall.Signal{syscall.SIGTERM}, false},
		"hangups":      {[]syscall.Signal{syscall.SIGHUP, syscall.SIGHUP}, false},
		"nobody reads": {[]syscall.Signal{syscall.SIGINT}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := osexec.CommandContext(ctx, self)
			cmd.Env = append(os.Environ(), "OQ_TEST_DAEMON=run", "OQ_HTTP_ADDR=", "OQ_DATABASE_URL="+db.URL)
			log, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(log)
			for lines.Scan() && !strings.Contains(lines.Text(), "leadership") {
			}
			if c.deaf {
				log.Close()
			}
			for _, s := range c.signals {
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			last := ""
			for lines.Scan() {
				last = lines.Text()
			}
			if !c.deaf && !strings.Contains(last, "stopped") {
				t.Errorf("it ends with %q", last)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

const patience = 30 * time.Second

func config(url string) Config {
	return Config{DatabaseURL: url, Schema: "oq", APISchema: "public", LogLevel: "info", LogFormat: "json",
		TickMaxRows: 1000, StatsEvery: time.Second}
}

// until waits for a condition, never for a time.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// started runs a clock in the background; stop ends it and returns what run returned.
func started(t *testing.T, cfg Config) (*clock, func() error) {
	t.Helper()
	return startedWith(t, cfg, zerolog.New(zerolog.NewTestWriter(t)))
}

func startedWith(t *testing.T, cfg Config, log zerolog.Logger) (*clock, func() error) {
	t.Helper()
	c, err := newClock(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	return c, begin(t, c)
}

func begin(t *testing.T, c *clock) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			t.Fatal("the clock does not stop")
			return nil
		}
	}
	t.Cleanup(func() {
		if !stopped {
			_ = stop()
		}
	})
	return stop
}

func isReady(c *clock) bool {
	ready, _ := c.readiness()
	return ready
}

func exec(t *testing.T, db *testdb.DB, sql string) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func number(t *testing.T, db *testdb.DB, sql string) int {
	t.Helper()
	var n int
	if err := db.Pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func TestExitCodes(t *testing.T) {
	empty := testdb.Empty(t)
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		want int
	}{
		"no command":        {nil, nil, exitConfig},
		"unknown command":   {[]string{"fly"}, nil, exitConfig},
		"unknown flag":      {[]string{"run", "--fast"}, nil, exitConfig},
		"extra argument":    {[]string{"run", "now"}, nil, exitConfig},
		"version":           {[]string{"version"}, nil, exitOK},
		"version of what":   {[]string{"version", "x"}, nil, exitConfig},
		"no such port":      {[]string{"run"}, map[string]string{"OQ_HTTP_ADDR": "127.0.0.1:99999"}, exitConfig},
		"config":            {[]string{"config"}, nil, exitOK},
		"bad level":         {[]string{"config"}, map[string]string{"OQ_LOG_LEVEL": "loud"}, exitConfig},
		"bad format":        {[]string{"config"}, map[string]string{"OQ_LOG_FORMAT": "xml"}, exitConfig},
		"bad rows":          {[]string{"config"}, map[string]string{"OQ_TICK_MAX_ROWS": "0"}, exitConfig},
		"rows are a number": {[]string{"config"}, map[string]string{"OQ_TICK_MAX_ROWS": "many"}, exitConfig},
		"bad schema":        {[]string{"config"}, map[string]string{"OQ_SCHEMA": "a b"}, exitConfig},
		"bad address":       {[]string{"config"}, map[string]string{"OQ_HTTP_ADDR": "7310"}, exitConfig},
		"bad URL":           {[]string{"run"}, map[string]string{"OQ_DATABASE_URL": "postgres://%zz"}, exitConfig},
		"nobody to ask":     {[]string{"health"}, map[string]string{"OQ_HTTP_ADDR": ""}, exitConfig},
		"nobody answers":    {[]string{"health"}, map[string]string{"OQ_HTTP_ADDR": "127.0.0.1:1"}, exitFailed},
		"not installed":     {[]string{"run"}, map[string]string{"OQ_DATABASE_URL": empty.URL, "OQ_HTTP_ADDR": ""}, exitSchema},
		"port taken":        {[]string{"run"}, map[string]string{"OQ_DATABASE_URL": empty.URL, "OQ_HTTP_ADDR": "256.0.0.1:1"}, exitFailed},
		"schema public":     {[]string{"migrate"}, map[string]string{"OQ_DATABASE_URL": empty.URL, "OQ_SCHEMA": "public"}, exitConfig},
		"schema pg_x":       {[]string{"migrate"}, map[string]string{"OQ_DATABASE_URL": empty.URL, "OQ_SCHEMA": "pg_x"}, exitConfig},
		"API schema pg_x":   {[]string{"migrate"}, map[string]string{"OQ_DATABASE_URL": empty.URL, "OQ_API_SCHEMA": "pg_x"}, exitConfig},
		"one schema":        {[]string{"migrate"}, map[string]string{"OQ_DATABASE_URL": empty.URL, "OQ_API_SCHEMA": "oq"}, exitConfig},
		"below nothing":     {[]string{"migrate", "--to", "-1"}, map[string]string{"OQ_DATABASE_URL": empty.URL}, exitConfig},
		"to nowhere":        {[]string{"migrate", "--to", ""}, map[string]string{"OQ_DATABASE_URL": empty.URL}, exitConfig},
		"no such service":   {[]string{"config"}, map[string]string{"PGSERVICE": "nope"}, exitConfig},
		"unknown migration": {[]string{"migrate", "--to", "999"}, map[string]string{"OQ_DATABASE_URL": empty.URL}, exitConfig},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			if got := Main(append([]string{"openqueued"}, c.args...)); got != c.want {
				t.Errorf("exit %d, want %d", got, c.want)
			}
		})
	}
}

// Who mistypes a setting finds no trace of it in the database.
func TestBadSchemaLeavesNothing(t *testing.T) {
	db := testdb.Empty(t)
	t.Setenv("OQ_DATABASE_URL", db.URL)
	for _, schema := range []string{"public", "pg_x", "pg_catalog", "information_schema"} {
		t.Setenv("OQ_SCHEMA", schema)
		if got := Main([]string{"openqueued", "migrate"}); got != exitConfig {
			t.Errorf("%s: exit %d", schema, got)
		}
	}
	exec(t, db, "create schema app")
	t.Setenv("OQ_SCHEMA", "app")
	if got := Main([]string{"openqueued", "migrate"}); got != exitConfig {
		t.Errorf("a schema of somebody else: exit %d", got)
	}
	if n := number(t, db, "select count(*) from pg_class where relnamespace = 'public'::regnamespace"); n != 0 {
		t.Errorf("%d relations", n)
	}
}

// Each variable is blamed for its own.
func TestBlame(t *testing.T) {
	t.Setenv("PGSERVICE", "nope")
	for _, v := range []string{"OQ_DATABASE_URL", "OQ_DATABASE_URLS"} {
		for _, url := range []string{"", "postgres://h/db"} {
			t.Setenv(v, url)
			if _, err := loadConfig(); err == nil || strings.Contains(err.Error(), "URL") || !strings.Contains(err.Error(), "PGSERVICE") {
				t.Errorf("%s=%s: %v", v, url, err)
			}
		}
		t.Setenv(v, "")
	}
	t.Setenv("PGSERVICE", "")
	t.Setenv("OQ_DATABASE_URL", "postgres://h:secret/db")
	if _, err := loadConfig(); err == nil || !strings.Contains(err.Error(), "OQ_DATABASE_URL") || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
}

// What is in a log file is text, with times that tell a tick from the next.
func TestLogLines(t *testing.T) {
	stamp := regexp.MustCompile(`\d\d:\d\d:\d\d\.\d\d\d`)
	for _, format := range []string{"json", "console"} {
		var out, errOut bytes.Buffer
		t.Setenv("OQ_LOG_FORMAT", format)
		t.Setenv("OQ_HTTP_ADDR", "")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := command(ctx, []string{"openqueued", "run"}, &out, &errOut); err != nil {
			t.Fatal(err)
		}
		got := errOut.String()
		if !strings.Contains(got, "started") || len(stamp.FindAllString(got, -1)) != strings.Count(got, "\n") {
			t.Errorf("%s: no milliseconds in %q", format, got)
		}
		if strings.Contains(got, "\x1b") {
			t.Errorf("%s: colours where there is no terminal: %q", format, got)
		}
	}
}

// The settings in force name the database also where libpq's variables do.
func TestConfigNamesTheDatabase(t *testing.T) {
	t.Setenv("PGHOST", "db.example")
	t.Setenv("PGPORT", "5433")
	t.Setenv("PGUSER", "me")
	t.Setenv("PGDATABASE", "app")
	var out bytes.Buffer
	if err := command(t.Context(), []string{"openqueued", "config"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "db.example:5433/app") {
		t.Errorf("config says\n%s", out.String())
	}
}

func TestEmptyVariableIsNotSet(t *testing.T) {
	t.Setenv("OQ_DATABASE_URL", "")
	t.Setenv("DATABASE_URL", "postgres://me@db.example/app")
	if cfg, err := loadConfig(); err != nil || cfg.DatabaseURL != "postgres://me@db.example/app" {
		t.Errorf("%q, %v", cfg.DatabaseURL, err)
	}
}

// What other programs are set by is no setting of the daemon.
func TestVariablesOfOthers(t *testing.T) {
	t.Setenv("HTTP_ADDR", "0.0.0.0:80")
	t.Setenv("API_SCHEMA", "other")
	cfg, err := loadConfig()
	if err != nil || cfg.HTTPAddr != "127.0.0.1:7310" || cfg.APISchema != "public" {
		t.Errorf("%s, %s, %v", cfg.HTTPAddr, cfg.APISchema, err)
	}
	t.Setenv("OQ_HTTP_ADDR", "127.0.0.1:1")
	t.Setenv("OQ_API_SCHEMA", "api")
	if cfg, err = loadConfig(); err != nil || cfg.HTTPAddr != "127.0.0.1:1" || cfg.APISchema != "api" {
		t.Errorf("%s, %s, %v", cfg.HTTPAddr, cfg.APISchema, err)
	}
}

// Schemas may have names as long as migration 001 lets them be.
func TestLongNamesOfSchemas(t *testing.T) {
	for _, c := range []struct {
		schema, api int
		ok          bool
	}{{41, 63, true}, {42, 63, false}, {41, 64, false}} {
		t.Setenv("OQ_SCHEMA", strings.Repeat("s", c.schema))
		t.Setenv("OQ_API_SCHEMA", strings.Repeat("a", c.api))
		if _, err := loadConfig(); (err == nil) != c.ok {
			t.Errorf("%d and %d characters: %v", c.schema, c.api, err)
		}
	}
}

// Where the address is taken, dev neither makes a server nor says that one runs.
func TestDevWantsItsAddressFirst(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := config("")
	cfg.HTTPAddr = taken.Addr().String()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	var out bytes.Buffer
	if err := dev(t.Context(), cfg, zerolog.Nop(), &out); err == nil || !strings.Contains(err.Error(), "OQ_HTTP_ADDR") {
		t.Errorf("dev ended with %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "pgdata")); !os.IsNotExist(err) {
		t.Errorf("there is a server's data: %v", err)
	}
	if out.Len() > 0 {
		t.Errorf("it says %q", out.String())
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"postgres://u:secret@h/db":                "postgres://u:xxxxx@h/db",
		"postgres://h/db?password=secret&a=b":     "postgres://h/db?password=xxxxx&a=b",
		"host=h password=secret dbname=d":         "host=h password=xxxxx dbname=d",
		`host=h password='se\' cret' dbname=d`:    "host=h password=xxxxx dbname=d",
		`host=h password=se\ cr\\et\' dbname=d`:   "host=h password=xxxxx dbname=d",
		"host=h password=a://b dbname=d":          "host=h password=xxxxx dbname=d",
		"":                                        "",
		"postgres://postgres@127.0.0.1:1/x?a=b":   "postgres://postgres@127.0.0.1:1/x?a=b",
		"host=h user=u":                           "host=h user=u",
		"postgres://h/d?pass%77ord=s&a=b":         "postgres://h/d?pass%77ord=xxxxx&a=b",
		"postgres://h/d?a=b&sslp%61ssword=s":      "postgres://h/d?a=b&sslp%61ssword=xxxxx",
		"postgres://h/d?%70%61%73%73word=s;x&b=c": "postgres://h/d?%70%61%73%73word=xxxxx&b=c",
		"postgres://h/d?passfile=/x&%zz=1":        "postgres://h/d?passfile=/x&%zz=xxxxx",
		"postgres://u:12#34@h/db":                 "postgres://u:xxxxx@h/db",
		"postgres://u:p@ss@h:1,[::1]:2/db":        "postgres://u:xxxxx@h:1,[::1]:2/db",
		"postgresql://u:secret@h:5432/d?x=y&z=zz": "postgresql://u:xxxxx@h:5432/d?x=y&z=zz",
	} {
		if got := redact(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestMigrateUpDownUp(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	for _, step := range []struct {
		to   int
		want string
	}{{-1, "was 0"}, {-1, "was 2"}, {0, "migration 0"}, {-1, "was 0"}} {
		var out bytes.Buffer
		if err := Migrate(t.Context(), config(db.URL), step.to, &out); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), step.want) {
			t.Errorf("to %d: %q, want %q", step.to, out.String(), step.want)
		}
	}
	exec(t, db, "select oq_enqueue('q')")
	exec(t, db, "update public.openqueue_version set version = 99")
	if err := Migrate(t.Context(), config(db.URL), -1, io.Discard); !errors.Is(err, errSchema) {
		t.Errorf("a newer schema: %v", err)
	}
}

// With another API schema than the installed one a migration would do nothing, or leave functions behind.
func TestMigrateWithAnotherAPISchema(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	cfg := config(db.URL)
	cfg.APISchema = "api"
	for _, to := range []int{-1, 1, 0} {
		err := Migrate(t.Context(), cfg, to, io.Discard)
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "in schema public") {
			t.Errorf("to %d: %v", to, err)
		}
	}
	exec(t, db, "select oq_enqueue('q')")
	exec(t, db, "drop function oq_version()")
	if err := Migrate(t.Context(), config(db.URL), -1, io.Discard); !errors.Is(err, errSchema) {
		t.Errorf("no oq_version: %v", err)
	}
	for _, to := range []int{1, -1} {
		if err := Migrate(t.Context(), config(db.URL), to, io.Discard); err != nil {
			t.Error(err)
		}
	}
	if n := number(t, db, "select count(*) from oq_jobs where oq_version() <> ''"); n != 1 {
		t.Errorf("%d jobs", n)
	}
}

func TestOtherVersionIsRefused(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db, "create or replace function oq_version() returns text language sql as $$ select '9.0.0' $$")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// It ends by itself: this does not go away.
	if err := run(ctx, config(db.URL), zerolog.Nop()); !errors.Is(err, errSchema) || ctx.Err() != nil {
		t.Errorf("version 9: %v", err)
	}
}

// A queue that goes while the daemon runs is one that is not installed; one of several that comes again is served again.
func TestQueueGoesBesideIt(t *testing.T) {
	t.Parallel()
	db, other := testdb.New(t), testdb.New(t)
	c, err := newClock(config(db.URL), zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- c.run(ctx) }()
	until(t, "ready", func() bool { return isReady(c) })
	cfg := config("")
	cfg.DatabaseUrls = db.URL + " " + other.URL
	several, _ := started(t, cfg)
	until(t, "both are ready", func() bool { return isReady(several) })
	if err := Migrate(t.Context(), config(db.URL), 0, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, errSchema) {
		t.Errorf("the queue is gone: %v", err)
	}
	until(t, "it says why", func() bool { return strings.Contains(several.databases[0].unready(), "not installed") })
	if err := Migrate(t.Context(), config(db.URL), -1, io.Discard); err != nil {
		t.Fatal(err)
	}
	until(t, "both are ready again", func() bool { return isReady(several) })
}

// A login that may not use the API's schema yet is refused, and does not find the queue missing.
func TestLoginWithoutTheSchema(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	cfg := config(db.URL)
	conn := db.Conn(t)
	cfg.APISchema = "api"
	if err := checkVersion(t.Context(), conn, cfg.APISchema); !errors.Is(err, errSchema) {
		t.Errorf("nothing there: %v", err)
	}
	if err := Migrate(t.Context(), cfg, -1, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := checkVersion(t.Context(), conn, cfg.APISchema); err != nil {
		t.Error(err)
	}
	conn = db.Conn(t) // one that has not prepared the call
	if _, err := conn.Exec(t.Context(), "set role pg_monitor"); err != nil {
		t.Fatal(err)
	}
	var refused *pgconn.PgError
	if err := checkVersion(t.Context(), conn, cfg.APISchema); !errors.As(err, &refused) || refused.Code != "42501" {
		t.Errorf("without usage of the schema: %v", err)
	}
}

// A login without the daemon's role is told what it lacks, and goes on once it has it.
func TestLoginWithoutTheRole(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	role := "d_" + strings.TrimPrefix(u.Path, "/")
	exec(t, db, "create role "+role+" login")
	u.User = url.User(role)
	c, stop := started(t, config(u.String()))
	until(t, "it says why", func() bool { return strings.Contains(c.databases[0].unready(), "a member of oq_daemon") })
	exec(t, db, "grant oq_daemon to "+role)
	until(t, "ready", func() bool { return isReady(c) })
	if err := stop(); err != nil {
		t.Error(err)
	}
	exec(t, db, "drop role "+role)
}

func TestDutiesAreDoneInTime(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, stop := started(t, config(db.URL))
	until(t, "ready", func() bool { return isReady(c) })
	exec(t, db, "select oq_enqueue('q', options => '{\"delay\": \"300 ms\"}')")
	exec(t, db, "select oq_enqueue('lost')")
	exec(t, db, "select oq_lease('lost', lease_seconds => 1)")
	until(t, "the delayed job is ready", func() bool {
		return number(t, db, "select count(*) from oq_jobs where queue_name = 'q' and state = 'ready'") == 1
	})
	until(t, "the lost job is back", func() bool {
		return number(t, db, "select count(*) from oq_jobs where queue_name = 'lost' and state = 'ready' and lost_leases = 1") == 1
	})
	server := httptest.NewServer(c.handler())
	defer server.Close()
	page := func(path string) (int, string) {
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready"} {
		if code, body := page(path); code != http.StatusOK || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	database := `database="` + c.databases[0].label + `"`
	until(t, "the gauges know the queues", func() bool {
		_, body := page("/metrics")
		return strings.Contains(body, `openqueue_queue_jobs{`+database+`,queue="lost",state="ready"} 1`)
	})
	_, body := page("/metrics")
	for _, want := range []string{
		"openqueue_leader{" + database + "} 1", "openqueue_database_up{" + database + "} 1",
		`openqueue_duty_done_total{` + database + `,duty="promote"}`, `openqueue_duty_done_total{` + database + `,duty="reap"}`,
		"openqueue_tick_duration_seconds_bucket{" + database,
		`openqueue_loop_last_success_timestamp_seconds{` + database + `,loop="tick"}`,
		"openqueue_queue_oldest_ready_seconds", `openqueue_build_info{`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("stopped: %v", err)
	}
}

// An idle daemon ticks once a second, and soon when something comes due: a delay of 10 ms does not take half a second.
func TestIdleDaemonNoticesWhatComesDue(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, _ := started(t, config(db.URL))
	until(t, "ready", func() bool { return isReady(c) })
	var took []time.Duration
	for n := range 9 {
		// Anywhere between two ticks.
		time.Sleep(time.Second + time.Duration(n)*100*time.Millisecond)
		began := time.Now()
		exec(t, db, "select oq_enqueue('q', options => '{\"delay\": \"10 ms\"}')")
		until(t, "it is ready", func() bool { return number(t, db, "select count(*) from oq.scheduled") == 0 })
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if took[4] > 400*time.Millisecond {
		t.Errorf("half of the jobs took %v or more: %v", took[4], took)
	}
}

func TestOneLeaderOfTwo(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	a, _ := started(t, config(db.URL))
	until(t, "the first is ready", func() bool { return isReady(a) })
	b, _ := started(t, config(db.URL))
	until(t, "the second is ready", func() bool { return isReady(b) })
	leaders := `select count(*) from pg_locks where locktype = 'advisory'
		and database = (select oid from pg_database where datname = current_database())
		and classid = (hashtext('oq:leader')::bigint & 4294967295)::oid`
	if n := number(t, db, leaders); n != 1 {
		t.Fatalf("%d leaders", n)
	}
	// The leader's session is killed, again and again: somebody leads soon, and nobody gives up.
	for range 3 {
		exec(t, db, `select pg_terminate_backend(pid) from pg_stat_activity
			where application_name = 'openqueued' and datname = current_database()`)
		until(t, "somebody leads again", func() bool { return number(t, db, leaders) == 1 })
		exec(t, db, "select oq_enqueue('q', options => '{\"delay\": \"10 ms\"}')")
		until(t, "the duties go on", func() bool {
			return number(t, db, "select count(*) from oq_jobs where state = 'scheduled'") == 0
		})
	}
	until(t, "both are ready", func() bool { return isReady(a) && isReady(b) })
}

// A tick that hangs makes the process unready, and is cut short by its own time-out.
func TestStuckTickIsUnready(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	all, err := newClock(config(db.URL), zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	c := all.databases[0]
	if why := c.unready(); !strings.Contains(why, "tick has not run yet") {
		t.Errorf("before the first tick: %q", why)
	}
	beat := func(l *loop, at time.Time) { l.beat.Store(&at) }
	for _, l := range c.loops {
		beat(l, time.Now())
	}
	if why := c.unready(); why != "" {
		t.Errorf("after a tick: %q", why)
	}
	// The machine's clock was put back.
	beat(c.loops[0], time.Now().Add(time.Hour))
	if why := c.unready(); why != "" {
		t.Errorf("after a tick in an hour: %q", why)
	}
	beat(c.loops[0], time.Now().Add(-time.Minute))
	if why := c.unready(); !regexp.MustCompile(`tick last ran 1m\d+s ago`).MatchString(why) {
		t.Errorf("after a minute: %q", why)
	}
}

// A container may have the address of a proxy in its environment, which leads everywhere but to the daemon.
func TestHealthGoesByNoProxy(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		ip := addr.(*net.IPNet).IP
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() { // To the loopback Go goes by no proxy anyway.
			continue
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ready\n") }))
		cmd := osexec.Command(self)
		cmd.Env = append(os.Environ(), "OQ_TEST_DAEMON=health", "OQ_HTTP_ADDR="+listener.Addr().String(),
			"HTTP_PROXY=http://127.0.0.1:9", "NO_PROXY=")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ready\n" {
			t.Errorf("%s: %v: %s", ip, err, out)
		}
	}
}

// A host that accepts and says nothing, as a primary that hangs, keeps the daemon from no other one of its URL.
func TestMuteHost(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	mute := newLine(t, "")
	url := strings.Replace(db.URL, "@", "@"+mute.listener.Addr().String()+",", 1)
	c, _ := started(t, config(url))
	until(t, "ready", func() bool { return isReady(c) })
}

// A session that leads to a standby, as for a moment after a failover, is given up for another.
func TestReadOnlySessionIsGivenUp(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	conn := db.Conn(t)
	set := func(to string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), `do $$ begin
			execute format('alter database %I set default_transaction_read_only = `+to+`', current_database()); end $$`)
		if err != nil {
			t.Fatal(err)
		}
	}
	set("on")
	var log safeBuffer
	c, _ := startedWith(t, config(db.URL), zerolog.New(&log))
	const why = "the server is a standby, or read-only"
	until(t, "it says why", func() bool { return strings.Contains(log.String(), why) })
	if said := c.databases[0].unready(); !strings.Contains(said, "tick has not run yet ("+why+")") {
		t.Errorf("while it is read-only: %q", said)
	}
	set("off")
	until(t, "ready", func() bool { return isReady(c) })
}

// A tick is READ COMMITTED, whatever the database's default is.
func TestStricterDefaultIsolation(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db, `do $$ begin
		execute format('alter database %I set default_transaction_isolation = serializable', current_database()); end $$`)
	c, _ := started(t, config(db.URL))
	until(t, "ready", func() bool { return isReady(c) })
}

// A duty that fails inside oq_tick is a warning of the server: counted and logged, the others go on. Also where the
// role or the database asks for errors only.
func TestFailingDutyIsCounted(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db, `do $$ begin
		execute format('alter database %I set client_min_messages = error', current_database()); end $$`)
	exec(t, db, `create or replace function oq_rotate(max_rows int default 5000) returns bigint language plpgsql
		as $$ begin raise exception 'no room'; end $$`)
	c, _ := started(t, config(db.URL))
	server := httptest.NewServer(c.handler())
	defer server.Close()
	until(t, "the warning is counted", func() bool {
		resp, err := http.Get(server.URL + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return strings.Contains(string(body), `,loop="warning"}`)
	})
	until(t, "ready all the same", func() bool { return isReady(c) })
}

func TestLoopBacksOffAndComesBack(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	tries, failures := 0, 0
	var said bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l := &loop{
		log: zerolog.New(&said), failed: func(string) { failures++ }, limit: patience,
		connect: func(ctx context.Context) (*pgx.Conn, error) {
			if tries++; tries <= 2 {
				return nil, errors.New("no server")
			}
			return pgx.Connect(ctx, db.URL)
		},
	}
	runs := 0
	l.duty = duty{"test", func(context.Context, *pgx.Conn) (time.Duration, error) {
		switch runs++; runs {
		case 1:
			return 0, errors.New("once")
		case 3:
			cancel()
		}
		return time.Millisecond, nil
	}}
	if err := l.run(ctx); err != nil || tries != 3 || failures != 3 || runs != 3 {
		t.Fatalf("%v after %d connections, %d failures, %d runs", err, tries, failures, runs)
	}
	if strings.Count(said.String(), "cannot begin a session") != 2 || strings.Contains(said.String(), "lost the session") {
		t.Errorf("no session was lost: %s", said.String())
	}
}

// dev from nothing; a second one says what is running; the data survives.
func TestDev(t *testing.T) {
	dir, err := os.MkdirTemp("", "oqdev")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := config("")
	cfg.DataDir = filepath.Join(dir, "data")
	t.Cleanup(func() {
		if s, err := pgserver.Attach(filepath.Join(cfg.DataDir, "pgdata")); err == nil {
			_ = syscall.Kill(s.PID(), syscall.SIGQUIT)
		}
	})
	for round := 1; round <= 2; round++ {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var out bytes.Buffer
		ended := make(chan error, 1)
		go func() { ended <- dev(ctx, cfg, zerolog.Nop(), &out) }()
		var url string
		until(t, "the queue is there", func() bool {
			s, err := pgserver.Attach(filepath.Join(cfg.DataDir, "pgdata"))
			if err != nil {
				return false
			}
			url = s.URL(devDatabase)
			conn, err := pgx.Connect(ctx, url)
			if err != nil {
				return false
			}
			defer conn.Close(ctx)
			// Each session of the daemon has found the schema that it wants.
			var id, sessions int
			return conn.QueryRow(ctx, `select count(*) from pg_stat_activity where application_name = 'openqueued'
				and query like '%oq_%'`).Scan(&sessions) == nil && sessions == 2 &&
				conn.QueryRow(ctx, "select oq_enqueue('q')").Scan(&id) == nil && id >= round
		})
		var second bytes.Buffer
		if err := dev(ctx, cfg, zerolog.Nop(), &second); err != nil || !strings.Contains(second.String(), url) {
			t.Errorf("the second says %q, %v", second.String(), err)
		}
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(patience):
			t.Fatal("dev does not end")
		}
		if !strings.Contains(out.String(), "psql '"+url+"'") {
			t.Errorf("no psql line in %q", out.String())
		}
		if _, err := pgserver.Attach(filepath.Join(cfg.DataDir, "pgdata")); err == nil {
			t.Error("the server runs on")
		}
	}
}

// Whoever scrapes while the gauges are refreshed sees every queue, and who leads.
func TestMetricsHaveNoGaps(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	m := newMetrics(registry)
	all := []queueStats{{Queue: "a"}, {Queue: "b"}, {Queue: "c"}}
	m.queues(append(all, queueStats{Queue: "dropped"}))
	m.lead(true)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				m.queues(all)
				m.lead(true)
			}
		}
	}()
	series := map[string]int{}
	for range 2000 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		clear(series)
		for _, f := range families {
			series[f.GetName()] = len(f.GetMetric())
			if f.GetName() == "openqueue_leader" && f.GetMetric()[0].GetGauge().GetValue() != 1 {
				t.Fatal("nobody leads")
			}
		}
		if series["openqueue_queue_jobs"] < 18 || series["openqueue_queue_oldest_ready_seconds"] < 3 {
			t.Fatalf("a queue is missing: %v", series)
		}
	}
	close(done)
	<-ended
	if series["openqueue_queue_jobs"] != 18 || series["openqueue_queue_oldest_ready_seconds"] != 3 {
		t.Errorf("the dropped one is there: %v", series)
	}
}
