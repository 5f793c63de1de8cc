// Package testdb gives each test a migrated database of its own on a real PostgreSQL server that the
// test process starts. No server is a failure, never a skip.
package testdb

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"

	"github.com/openqueue/openqueue/daemon/pgserver"
	"github.com/openqueue/openqueue/sql"
)

// DB is a test's database.
type DB struct {
	Pool *pgxpool.Pool
	URL  string
}

var shared struct {
	once   sync.Once
	admin  string // URL of the maintenance database
	server *pgserver.Server
	dir    string
	err    error
}

// Main runs a package's tests and stops the server that they shared: call it from TestMain.
func Main(m *testing.M) {
	status := m.Run()
	if shared.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := shared.server.Stop(ctx, "immediate"); err != nil {
			fmt.Fprintln(os.Stderr, "testdb:", err)
			status = 1
		}
		cancel()
		os.RemoveAll(shared.dir)
	}
	os.Exit(status)
}

func start() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if url := os.Getenv("OQ_TEST_DATABASE_URL"); url != "" {
		shared.admin = url
	} else {
		shared.dir, shared.err = os.MkdirTemp("", "oqtest")
		if shared.err != nil {
			return
		}
		if shared.err = os.Chmod(shared.dir, 0o755); shared.err != nil {
			return
		}
		shared.server, shared.err = launch(ctx, filepath.Join(shared.dir, "data"), map[string]string{"fsync": "off"})
		if shared.err != nil {
			return
		}
		shared.admin = shared.server.URL("postgres")
	}
	shared.err = makeTemplate(ctx)
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
	for k, v := range settings {
		all[k] = v
	}
	return pgserver.Start(ctx, pgserver.Options{Install: in, DataDir: dir, Settings: all})
}

const template = "oq_test_template"

// makeTemplate migrates one database, of which every test gets a clone. Several test processes may
// share a server, so it is made under a lock, and anew by each process of a server of its own.
func makeTemplate(ctx context.Context) error {
	admin, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, `select pg_advisory_lock(7310, 1)`); err != nil {
		return err
	}
	if shared.server == nil {
		if _, err := admin.Exec(ctx, `drop database if exists `+template+` with (force)`); err != nil {
			return err
		}
	}
	if _, err := admin.Exec(ctx, `create database `+template); err != nil {
		return err
	}
	return Migrate(ctx, urlOf(template), "oq", "public", -1)
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
	if shared.server != nil {
		return shared.server.URL(db)
	}
	cfg, err := pgx.ParseConfig(shared.admin)
	if err != nil {
		panic(err) // It connected before.
	}
	return fmt.Sprintf("postgres://%s:%s@%s:%d/%s", cfg.User, cfg.Password, cfg.Host, cfg.Port, db)
}

// New is a database with the queue in it, dropped at the end of the test.
func New(t testing.TB) *DB {
	t.Helper()
	return clone(t, template)
}

// Empty is a database with nothing in it.
func Empty(t testing.TB) *DB {
	t.Helper()
	return clone(t, "template1")
}

func clone(t testing.TB, from string) *DB {
	t.Helper()
	shared.once.Do(start)
	if shared.err != nil {
		t.Fatalf("no PostgreSQL server for the tests: %v", shared.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var b [6]byte
	_, _ = rand.Read(b[:])
	name := "oq_test_" + hex.EncodeToString(b[:])
	admin(ctx, t, fmt.Sprintf(`create database %s template %s`, name, from))
	cfg, err := pgxpool.ParseConfig(urlOf(name))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 24
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pool.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		admin(ctx, t, `drop database if exists `+name+` with (force)`)
	})
	return &DB{Pool: pool, URL: urlOf(name)}
}

// Databases are made one at a time: a template that is being copied can't be copied again.
var adminLock sync.Mutex

func admin(ctx context.Context, t testing.TB, sql string) {
	t.Helper()
	adminLock.Lock()
	defer adminLock.Unlock()
	conn, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
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
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	root, err := os.MkdirTemp("", "oqfault")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: filepath.Join(root, "data"), settings: o.Settings}
	s.Restart(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = s.Stop(ctx, "immediate")
		os.RemoveAll(root)
	})
	if err := Migrate(ctx, s.URL("postgres"), "oq", "public", -1); err != nil {
		t.Fatal(err)
	}
	return s
}

// Restart starts the server again after a Stop or a kill.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		server, err := launch(ctx, s.dir, s.settings)
		if err == nil {
			s.Server = server
			return
		}
		// The backends of a killed server take a moment to notice.
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
