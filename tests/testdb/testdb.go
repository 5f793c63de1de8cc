// Package testdb gives each test a migrated database of its own on a real PostgreSQL server that the
// test process starts. No server is a failure, never a skip.
package testdb

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"

	"github.com/openqueue/openqueue/daemon/pgserver"
	"github.com/openqueue/openqueue/sql"
)

// Lapse is a statement that ends leases at once, as if their time were over: of all jobs (""), or "where …".
func Lapse(which string) string {
	return "with lapsed as (update oq.leased set expires_at = clock_timestamp() " + which + ") select setval('oq.reap_after', 0)"
}

// DB is a test's database.
type DB struct {
	Pool *pgxpool.Pool
	URL  string
}

var shared struct {
	once     sync.Once
	admin    string // URL of the maintenance database
	template string
	server   *pgserver.Server
	end      func() error
	err      error
}

// Main runs a package's tests and ends the server that they shared: call it from TestMain.
func Main(m *testing.M) {
	status := m.Run()
	if shared.end != nil {
		if err := shared.end(); err != nil {
			fmt.Fprintln(os.Stderr, "testdb:", err)
			status = 1
		}
	}
	os.Exit(status)
}

func start() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	shared.template = "oq_test_template_" + randomHex()
	if url := os.Getenv("OQ_TEST_DATABASE_URL"); url != "" {
		shared.admin = url
		shared.end = func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			return admin(ctx, `drop database if exists `+shared.template+` with (force)`)
		}
	} else {
		var root string
		if root, shared.end, shared.err = guardedDir(inMemory()); shared.err != nil {
			return
		}
		shared.server, shared.err = launch(ctx, filepath.Join(root, "data"), map[string]string{"fsync": "off"})
		if shared.err != nil {
			return
		}
		shared.admin = shared.server.URL("postgres")
	}
	shared.err = makeTemplate(ctx)
}

// inMemory is a folder for temporary files in memory, with room for a server; empty: there is none. Each test's database is
// hundreds of files, which some file systems make so slowly that it takes longer than the test.
func inMemory() string {
	const dir, room = "/dev/shm", 4 << 30
	var fs syscall.Statfs_t
	if os.Getenv("TMPDIR") != "" || syscall.Statfs(dir, &fs) != nil || uint64(fs.Bavail)*uint64(fs.Bsize) < room {
		return ""
	}
	return dir
}

// guardedDir is a folder for a server, in data, within parent, with a process that outlives this one: when end is
// called, or when this process dies of a timeout, a panic or a signal, it ends whatever server runs
// there and removes the folder.
func guardedDir(parent string) (root string, end func() error, err error) {
	if root, err = os.MkdirTemp(parent, "oqtest"); err != nil {
		return "", nil, err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return "", nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", `
		read -r _
		file=$1/data/postmaster.pid
		if pid=$(head -n 1 "$file" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null; then
			i=0
			while [ -e "$file" ] && [ $((i += 1)) -lt 200 ]; do sleep 0.05; done
		fi
		rm -rf "$(readlink -f "$1/data")" "$1"`, "sh", root)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	alive, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	return root, func() error { return errors.Join(alive.Close(), cmd.Wait()) }, nil
}

func launch(ctx context.Context, dir string, settings map[string]string) (*pgserver.Server, error) {
	major := 0
	if v := os.Getenv("OQ_TEST_PG_MAJOR"); v != "" {
		var err error
		if major, err = strconv.Atoi(v); err != nil {
			return nil, fmt.Errorf("OQ_TEST_PG_MAJOR=%s: %w", v, err)
		}
	}
	in, err := pgserver.Ensure(ctx, major, os.Stderr)
	if err != nil {
		return nil, err
	}
	all := map[string]string{
		"shared_buffers": "128MB", "max_connections": "200", "max_prepared_transactions": "10",
		"wal_level": "logical",
	}
	maps.Copy(all, settings)
	return pgserver.Start(ctx, pgserver.Options{Install: in, DataDir: dir, Settings: all})
}

// makeTemplate migrates one database, of which every test gets a clone. The roles belong to the whole
// server, which several test processes may share: one migrates at a time.
func makeTemplate(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `select pg_advisory_lock(7310, 1)`); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `create database `+shared.template); err != nil {
		return err
	}
	return Migrate(ctx, urlOf(shared.template), "oq", "public", -1)
}

// Migrate brings a database to a version of the schema; -1 is the newest.
func Migrate(ctx context.Context, url, schema, apiSchema string, to int32) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	versions := "public.openqueue_version"
	if schema != "oq" {
		versions = "public." + schema + "_version"
	}
	m, err := migrate.NewMigrator(ctx, conn, versions)
	if err != nil {
		return err
	}
	m.Data = map[string]any{"schema": schema, "api_schema": apiSchema}
	files, err := fs.Sub(sql.Migrations, "migrations")
	if err != nil {
		return err
	}
	if err := m.LoadMigrations(files); err != nil {
		return err
	}
	if to < 0 {
		to = int32(len(m.Migrations))
	}
	return m.MigrateTo(ctx, to)
}

func urlOf(db string) string {
	u, err := url.Parse(shared.admin)
	if err != nil || u.Scheme == "" {
		return shared.admin + " dbname=" + db
	}
	u.Path = "/" + db
	return u.String()
}

// New is a database with the queue in it, dropped at the end of the test.
func New(t testing.TB) *DB {
	t.Helper()
	shared.once.Do(start)
	return clone(t, shared.template)
}

// Empty is a database with nothing in it.
func Empty(t testing.TB) *DB {
	t.Helper()
	shared.once.Do(start)
	return clone(t, "template0")
}

func clone(t testing.TB, from string) *DB {
	t.Helper()
	if shared.err != nil {
		t.Fatalf("no PostgreSQL server for the tests: %v", shared.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	name := "oq_test_" + randomHex()
	if err := admin(ctx, fmt.Sprintf(`create database %s template %s`, name, from)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := admin(ctx, `drop database if exists `+name+` with (force)`); err != nil {
			t.Error(err)
		}
	})
	cfg, err := pgxpool.ParseConfig(urlOf(name))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 24
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &DB{Pool: pool, URL: urlOf(name)}
}

// Databases are made one at a time: a template that is being copied can't be copied again.
var adminLock sync.Mutex

func admin(ctx context.Context, sql string) error {
	adminLock.Lock()
	defer adminLock.Unlock()
	conn, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

func randomHex() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // It never fails.
	return hex.EncodeToString(b[:])
}

// Conn is a session of the test's own.
func (db *DB) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// WaitBlocked returns when the session with that pid waits for a lock.
func (db *DB) WaitBlocked(t testing.TB, pid uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		var waits bool
		err := db.Pool.QueryRow(ctx, `select exists (
			select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock')`, int32(pid)).Scan(&waits)
		if err != nil {
			t.Fatalf("session %d does not block: %v", pid, err)
		}
		if waits {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Psql runs psql on the database, with -c or -f or whatever args say, and is what it prints.
func (db *DB) Psql(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	args = append([]string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", db.URL}, args...)
	out, err := exec.CommandContext(ctx, "psql", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("psql %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// ServerOptions are for tests that break a server, which get one of their own.
type ServerOptions struct {
	Settings map[string]string
}

// Server is a test's own server, durable, with the queue in database postgres.
type Server struct {
	*pgserver.Server
	dir      string
	settings map[string]string
}

// StartServer starts one; it ends with the test.
func StartServer(t testing.TB, o ServerOptions) *Server {
	t.Helper()
	s := newServer(t, o.Settings)
	s.Restart(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := Migrate(ctx, s.URL("postgres"), "oq", "public", -1); err != nil {
		t.Fatal(err)
	}
	return s
}

// newServer has a folder that goes with the test, and no files yet.
func newServer(t testing.TB, settings map[string]string) *Server {
	t.Helper()
	root, end, err := guardedDir("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return &Server{dir: filepath.Join(root, "data"), settings: settings}
}

// Restart starts the server again after a Stop or a kill.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	server, err := launch(ctx, s.dir, s.settings)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = server
}

// Standby starts a copy of the server that follows it; it ends with the test. The server is restarted: its files
// are copied while it is down, since not every install has pg_basebackup.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	standby := newServer(t, map[string]string{})
	if err := s.Stop(ctx, "fast"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, "cp", "-RpH", s.dir, standby.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(standby.dir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.Restart(t)
	maps.Copy(standby.settings, s.settings)
	standby.settings["primary_conninfo"] = fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", s.Port())
	standby.Restart(t)
	return standby
}
