// Package faults kills what can be killed, under load, and looks whether anything was lost.
package faults

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

// The test binary is its own worker process, to be killed: see worker.
const workerURL = "OQ_TEST_WORKER_URL"

func TestMain(m *testing.M) {
	if url := os.Getenv(workerURL); url != "" {
		if err := worker(url); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	testdb.Main(m)
}

const patience = 30 * time.Second

type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func run(t testing.TB, q querier, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := q.Exec(ctx, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func try[T any](q querier, sql string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

func list[T any](t testing.TB, q querier, sql string, args ...any) []T {
	t.Helper()
	values, err := try[T](q, sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return values
}

func get[T any](t testing.TB, q querier, sql string, args ...any) T {
	t.Helper()
	values := list[T](t, q, sql, args...)
	if len(values) != 1 {
		t.Fatalf("%s: %d rows, want one", sql, len(values))
	}
	return values[0]
}

func until(t testing.TB, q querier, what, sql string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !get[bool](t, q, sql, args...) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func audit(t testing.TB, q querier) {
	t.Helper()
	for _, broken := range list[string](t, q,
		"select law || ': ' || violations || ' ' || coalesce(sample, '') from oq_audit() where violations <> 0") {
		t.Errorf("audit: %s", broken)
	}
}

// process is one that the test started, and ends.
type process struct {
	*exec.Cmd
	out  bytes.Buffer
	done chan struct{}
}

func start(t testing.TB, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.Env = append(os.Environ(), env...)
	p.Dir = t.TempDir()
	p.Stdout, p.Stderr = &p.out, &p.out
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Wait(); close(p.done) }()
	t.Cleanup(func() { p.kill() })
	return p
}

// kill ends it at once, and is certain of it.
func (p *process) kill() {
	_ = p.Process.Signal(syscall.SIGKILL)
	<-p.done
}

// daemon builds openqueued once for all tests of this package.
func daemon(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "openqueued")
	out, err := exec.Command("go", "build", "-o", bin, "github.com/openqueue/openqueue/daemon/openqueued").CombinedOutput()
	if err != nil {
		t.Fatalf("build of the daemon: %v\n%s", err, out)
	}
	return bin
}

func startDaemon(t testing.TB, bin, url string) *process {
	t.Helper()
	return start(t, []string{"OQ_DATABASE_URL=" + url, "OQ_HTTP_ADDR="}, bin, "run")
}
