package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// options are for a server of the test's own, whose data directory is in a folder of that mode.
func options(t *testing.T, mode os.FileMode) Options {
	t.Helper()
	in, err := Ensure(testContext(t), 0, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "oqserver")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "data")
	t.Cleanup(func() {
		if s, err := Attach(dir); err == nil {
			if err := s.Stop(context.Background(), "immediate"); err != nil {
				t.Error(err)
			}
		}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			os.RemoveAll(real)
		}
		os.RemoveAll(root)
	})
	if err := os.Chmod(root, mode); err != nil {
		t.Fatal(err)
	}
	return Options{Install: in, DataDir: dir, Settings: map[string]string{"shared_buffers": "16MB"}}
}

func mustStart(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func query(t *testing.T, s *Server, sql string) string {
	t.Helper()
	ctx := testContext(t)
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var out string
	if err := conn.QueryRow(ctx, sql).Scan(&out); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}
	return out
}

func uidOf(t *testing.T, pid int) int {
	t.Helper()
	out, err := exec.Command("ps", "-o", "uid=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		t.Fatalf("ps %d: %v", pid, err)
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	return uid
}

func TestStartStopAndStartAgain(t *testing.T) {
	ctx := testContext(t)
	o := options(t, 0o755)
	if _, err := Attach(o.DataDir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("attach to nothing: %v", err)
	}
	s := mustStart(t, o)
	if uid := uidOf(t, s.PID()); uid == 0 || os.Geteuid() != 0 && uid != os.Geteuid() {
		t.Errorf("the server runs as user id %d", uid)
	}
	if got := query(t, s, `select current_setting('listen_addresses') || current_setting('data_checksums')
		|| current_setting('server_encoding') || current_setting('shared_buffers')`); got != "127.0.0.1onUTF816MB" {
		t.Errorf("settings %s", got)
	}
	if out, err := exec.Command(filepath.Join(o.Install.Bin, "postgres"), "--version").Output(); err != nil ||
		!strings.Contains(string(out), " "+query(t, s, `select current_setting('server_version')`)) {
		t.Errorf("not the server that was asked for: %s, %v", out, err)
	}
	query(t, s, `create table kept as select 1`)
	if _, err := Start(ctx, o); err == nil || !strings.Contains(err.Error(), "running") {
		t.Fatalf("a second start on the same data directory: %v", err)
	}
	a, err := Attach(o.DataDir)
	if err != nil || a.PID() != s.PID() || a.Port() != s.Port() {
		t.Fatalf("attached to %+v, %v; want %+v", a, err, s)
	}
	if err := s.Stop(ctx, "smart"); err == nil {
		t.Error("stopped in an unknown mode")
	}
	for _, mode := range []string{"fast", "immediate"} {
		port := s.Port()
		if err := s.Stop(ctx, mode); err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(ctx, mode); err != nil {
			t.Errorf("stop of a stopped server: %v", err)
		}
		if _, err := Attach(o.DataDir); !errors.Is(err, ErrNotRunning) {
			t.Fatalf("attach after the stop: %v", err)
		}
		if s = mustStart(t, o); s.Port() != port {
			t.Errorf("port %d after the restart, was %d", s.Port(), port)
		}
		if got := query(t, s, `select count(*)::text from kept`); got != "1" {
			t.Errorf("%s rows after stop %s", got, mode)
		}
	}
}

func TestStartAfterKill(t *testing.T) {
	o := options(t, 0o755)
	s := mustStart(t, o)
	query(t, s, `create table kept as select 1`)
	// A backend that outlives its postmaster for a while.
	conn, err := pgx.Connect(testContext(t), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(testContext(t), "fast"); err != nil {
		t.Fatal(err)
	}
	again := mustStart(t, o)
	if got := query(t, again, `select count(*)::text from kept`); got != "1" {
		t.Errorf("%s rows after the kill", got)
	}
	if again.Port() != s.Port() {
		t.Errorf("port %d after the kill, was %d", again.Port(), s.Port())
	}
}

// A restarted container gives the dead server's pid to something else.
func TestStartWithRecycledPID(t *testing.T) {
	o := options(t, 0o755)
	s := mustStart(t, o)
	file := filepath.Join(o.DataDir, "postmaster.pid")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(testContext(t), "immediate"); err != nil {
		t.Fatal(err)
	}
	cred, err := unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "600")
	other.Dir = "/"
	other.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	_, rest, _ := strings.Cut(string(raw), "\n")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%d\n%s", other.Process.Pid, rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if cred != nil {
		if err := os.Chown(file, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Attach(o.DataDir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("attached to a process that is no server: %v", err)
	}
	mustStart(t, o)
}

// The pid file of one server must not lead to another that has its port now.
func TestAttachKnowsItsServer(t *testing.T) {
	a, b := options(t, 0o755), options(t, 0o755)
	sa := mustStart(t, a)
	raw, err := os.ReadFile(filepath.Join(a.DataDir, "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(b.DataDir, "postmaster.pid")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Attach(b.DataDir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("attached to %+v, %v; that is %s", s, err, sa.dir)
	}
}

func TestRememberedPortIsTaken(t *testing.T) {
	o := options(t, 0o755)
	s := mustStart(t, o)
	port := s.Port()
	if err := s.Stop(testContext(t), "fast"); err != nil {
		t.Fatal(err)
	}
	other := options(t, 0o755)
	other.Port = port
	if got := mustStart(t, other).Port(); got != port {
		t.Fatalf("port %d, asked for %d", got, port)
	}
	if got := mustStart(t, o).Port(); got == port {
		t.Fatal("two servers on one port")
	}
}

// Root's own home is closed to the user that the server runs as.
func TestStartBelowClosedFolder(t *testing.T) {
	o := options(t, 0o700)
	s := mustStart(t, o)
	query(t, s, `create table kept as select 1`)
	if a, err := Attach(o.DataDir); err != nil || a.PID() != s.PID() {
		t.Fatalf("attached to %+v, %v", a, err)
	}
	if err := s.Stop(testContext(t), "fast"); err != nil {
		t.Fatal(err)
	}
	if got := query(t, mustStart(t, o), `select count(*)::text from kept`); got != "1" {
		t.Errorf("%s rows after the restart", got)
	}
}

func TestStartRefusesOtherFolders(t *testing.T) {
	o := options(t, 0o755)
	if err := os.Mkdir(o.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(o.DataDir, "precious")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(testContext(t), o); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Fatalf("start in a folder of something else: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
}

// What is cut short in initdb begins anew.
func TestStartAfterCancelledInit(t *testing.T) {
	// Where this process stands still meanwhile, initdb is through before the cancel: then once more.
	for range 10 {
		o := options(t, 0o755)
		ctx, cancel := context.WithCancel(testContext(t))
		ended := make(chan error, 1)
		go func() {
			_, err := Start(ctx, o)
			ended <- err
		}()
		for begun := false; !begun && len(ended) == 0; time.Sleep(time.Millisecond) {
			found, _ := filepath.Glob(o.DataDir + ".new/*")
			begun = len(found) > 0
		}
		cancel()
		if err := <-ended; err != nil && strings.Contains(err.Error(), "initdb") {
			mustStart(t, o)
			return
		}
	}
	t.Fatal("initdb was never cut short")
}

func TestStartSaysWhatTheServerSays(t *testing.T) {
	o := options(t, 0o755)
	o.Settings = map[string]string{"shared_buffers": "it's no size"}
	if _, err := Start(testContext(t), o); err == nil || !strings.Contains(err.Error(), "shared_buffers") {
		t.Fatalf("start with a bad setting: %v", err)
	}
}

func TestFind(t *testing.T) {
	in, err := Ensure(testContext(t), 0, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := Find(in.Major); err != nil || same != in {
		t.Errorf("found %+v, %v; want %+v", same, err, in)
	}
	for _, major := range []int{9, 13, 19} {
		if _, err := Find(major); !errors.Is(err, ErrNotFound) {
			t.Errorf("found PostgreSQL %d: %v", major, err)
		}
		if _, err := Ensure(testContext(t), major, os.Stderr); !errors.Is(err, ErrNotFound) {
			t.Errorf("got PostgreSQL %d: %v", major, err)
		}
	}
}

// A wrapper or a part of an installation is not a server.
func TestInspect(t *testing.T) {
	dir, err := os.MkdirTemp("", "oqbin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("postgres", "echo 'postgres (PostgreSQL) 16.3 (Debian 16.3-1)'")
	script("initdb", "")
	if _, err := inspect(dir); err == nil {
		t.Error("took a folder without pg_ctl")
	}
	script("pg_ctl", "")
	if in, err := inspect(dir); err != nil || in.Major != 16 {
		t.Errorf("inspected %+v, %v", in, err)
	}
	for _, text := range []string{"echo 'postgres (PostgreSQL) 13.1'", "echo 'postgres (PostgreSQL) 19beta1'", "echo huh", "exit 1"} {
		script("postgres", text)
		if in, err := inspect(dir); err == nil {
			t.Errorf("%s: took %+v", text, in)
		}
	}
}

func TestUnpackedPackage(t *testing.T) {
	native := filepath.Join(t.TempDir(), "native")
	for name, text := range map[string]string{
		"bin/postgres": "", "lib/libpq.so.5.18": "the library",
		"pg-symlinks.json": `[{"source": "native/lib/libpq.so.5.18", "target": "native/lib/libpq.so.5"}]`,
	} {
		path := filepath.Join(native, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := link(native); err != nil {
		t.Fatal(err)
	}
	if err := openUp(native); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(native, "lib", "libpq.so.5")); err != nil || string(got) != "the library" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
	for name, mode := range map[string]os.FileMode{
		"bin": 0o755, "bin/postgres": 0o755, "lib": 0o755, "lib/libpq.so.5.18": 0o644,
	} {
		if info, err := os.Stat(filepath.Join(native, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, mode)
		}
	}
}
