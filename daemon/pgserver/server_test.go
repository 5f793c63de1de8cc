package pgserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "oqserver")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "data")
}

func query(t *testing.T, url, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var out string
	if err := conn.QueryRow(ctx, sql).Scan(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestServerLives(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	in, err := Ensure(ctx, 0, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Install: in, DataDir: scratch(t)}
	if _, err := Attach(o.DataDir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("attach to nothing: %v", err)
	}
	s, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(s.PID(), syscall.SIGKILL) })
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(ctx, "create table kept as select 1"); err != nil {
		t.Fatal(err)
	}
	conn.Close(ctx)

	if _, err := Start(ctx, o); err == nil {
		t.Fatal("a second start on the same data directory went ahead")
	}
	a, err := Attach(o.DataDir)
	if err != nil || a.PID() != s.PID() || a.Port() != s.Port() {
		t.Fatalf("attached to %+v, %v; want %+v", a, err, s)
	}
	if os.Geteuid() == 0 {
		info, err := os.Stat("/proc/" + query(t, s.URL("postgres"), "select pg_backend_pid()::text"))
		if err == nil && info.Sys().(*syscall.Stat_t).Uid == 0 {
			t.Fatal("the server runs as root")
		}
	}

	// A crash leaves postmaster.pid behind; the data and the port survive it.
	port := s.Port()
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := Attach(o.DataDir); errors.Is(err, ErrNotRunning) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for i := 0; ; i++ {
		// The killed server's backends take a moment to notice.
		if s, err = Start(ctx, o); err == nil {
			break
		} else if i == 20 {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if s.Port() != port {
		t.Errorf("port %d after the restart, was %d", s.Port(), port)
	}
	if got := query(t, s.URL("postgres"), "select count(*)::text from kept"); got != "1" {
		t.Errorf("%s rows after the restart", got)
	}
	if err := s.Stop(ctx, "fast"); err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(o.DataDir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("attach after the stop: %v", err)
	}
}

func TestFindRefusesUnknownMajor(t *testing.T) {
	if _, err := Find(9); !errors.Is(err, ErrNotFound) {
		t.Fatalf("found PostgreSQL 9: %v", err)
	}
	if _, err := Ensure(context.Background(), 9, os.Stderr); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got PostgreSQL 9: %v", err)
	}
}
