package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) {
	// The Go workers are the demo's own binary: here that is the test's.
	if isWorker() {
		main()
		return
	}
	if os.Getenv("DEMO_TEST_PARENT") != "" {
		parent()
	}
	testdb.Main(m)
}

// parent has a child, and is killed.
func parent() {
	var p processes
	p.env = os.Environ()
	if _, err := p.start("child", "sleep", "600"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started")
	select {}
}

func TestKilledDemoLeavesNoProcess(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Open for as long as the parent or its child lives.
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command(self)
	cmd.Env, cmd.Stdout = append(os.Environ(), "DEMO_TEST_PARENT=1"), out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if err := in.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(in)
	if line, err := lines.ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if rest, err := lines.ReadString('\n'); err != io.EOF {
		t.Errorf("the child lives on: %q, %v", rest, err)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if _, err := db.Pool.Exec(ctx, `select oq_enqueue('somebody.elses')`); err != nil {
		t.Fatal(err)
	}
	// Twice: what the first leaves behind must not disturb the second.
	for range 2 {
		var out bytes.Buffer
		if err := demo(ctx, db.URL, 200, &out); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if !strings.Contains(out.String(), "200 of 200") || !strings.Contains(out.String(), "5 of 5") {
			t.Fatal(out.String())
		}
	}
	var other int
	err := db.Pool.QueryRow(ctx, `select count(*) from oq_jobs
		where queue_name = 'somebody.elses' and state = 'ready'`).Scan(&other)
	if err != nil || other != 1 {
		t.Fatalf("%d jobs in another queue, %v", other, err)
	}
	// No process is left: the server takes a moment to see that a client has gone.
	conn, err := alone(ctx, db.URL, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(ctx)
}

// The demo must not be content with whatever it finds.
func TestReportFindsFaults(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.go")
	if err := os.WriteFile(path, []byte("a\nb\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := sum(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	good := string(raw)
	for name, c := range map[string]struct{ worker, result, want string }{
		"wrong result": {"go-1", `{"sha256": "00", "lines": 2}`, "is completed"},
		"no bash":      {"go-1", good, "one language"},
		"same worker":  {victim, good, "held by the killed worker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			conn := db.Conn(t)
			jobs, broken, err := enqueue(ctx, conn, []string{path})
			if err != nil {
				t.Fatal(err)
			}
			var id int64
			// The first attempt is for failing.
			err = conn.QueryRow(ctx, `select job_id
				from oq_lease($1, $2) cross join lateral oq_nack(job_id, lease_token, null, true, '0')`, filesQueue, c.worker).Scan(&id)
			if err != nil {
				t.Fatal(err)
			}
			var acked bool
			err = conn.QueryRow(ctx, `select oq_ack(job_id, lease_token, $3) from oq_lease($1, $2)`,
				filesQueue, c.worker, c.result).Scan(&acked)
			if err != nil || !acked {
				t.Fatal(acked, err)
			}
			var out bytes.Buffer
			check := check{conn: conn, out: &out, jobs: jobs, broken: broken, killed: []int64{id}}
			if err := check.report(ctx); err == nil || !strings.Contains(out.String(), c.want) {
				t.Fatalf("%v\n%s", err, out.String())
			}
		})
	}
}

// What stands in a payload stays data on its way through psql and bash.
func TestBashWorker(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	paths := map[int64]string{}
	add := func(path string) {
		t.Helper()
		raw, err := json.Marshal(task{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		var id int64
		err = db.Pool.QueryRow(ctx, `select oq_enqueue('odd', $1, max_retries => 0)`, string(raw)).Scan(&id)
		if err != nil {
			t.Fatal(err)
		}
		paths[id] = path
	}
	for _, name := range []string{
		"plain.go", "-n", "it's $(touch pwned) `touch pwned` \"q\" :'queue' ; \\! touch pwned", `back\slash\`, `\N`, `\t`,
		"tab\there\t", " lead and trail ", "new\nline\n", "x\n-- end\n1\t2\tf\t-", "\x1f\r\x01", "é☃",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("a\nb\nc"), 0o644); err != nil {
			t.Fatal(err)
		}
		add(path)
	}
	missing := filepath.Join(dir, "missing 'x' \\ \n$(touch pwned)")
	add(missing)
	add("")

	cmd := exec.CommandContext(ctx, "bash", "../psql/worker.sh", "odd", `bash 'n' \1`)
	script, err := filepath.Abs("../psql/worker.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[1], cmd.Dir = script, dir
	cmd.Env = append(os.Environ(), "DATABASE_URL="+db.URL, "IDLE_SECONDS=1")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("a payload became a command")
	}
	for id, path := range paths {
		var state, worker, fault string
		var result []byte
		err := db.Pool.QueryRow(ctx, `select state, worker_id, result, coalesce(error, '') from oq_get($1)`, id).
			Scan(&state, &worker, &result, &fault)
		if err != nil {
			t.Fatal(err)
		}
		if worker != `bash 'n' \1` {
			t.Errorf("%q: worker %q", path, worker)
		}
		want, err := sum(path)
		if err != nil {
			if state != "dead" || path == missing && !strings.Contains(fault, missing) {
				t.Errorf("%q is %s: %q", path, state, fault)
			}
			continue
		}
		var got answer
		if err := json.Unmarshal(result, &got); err != nil || state != "completed" || got != want {
			t.Errorf("%q is %s with %s (%s)", path, state, result, fault)
		}
	}
}

// A worker whose lease lasts less than its work keeps it, and one that has nothing to do ends.
func TestGoWorker(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	raw, err := json.Marshal(task{Path: "demo_test.go"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Pool.Exec(ctx, `select oq_enqueue('slow', $1) from generate_series(1, 8)`, string(raw)); err != nil {
		t.Fatal(err)
	}
	var workers processes
	workers.env = append(os.Environ(), "DATABASE_URL="+db.URL)
	defer workers.stop(time.Second)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w, err := workers.start("slow", self, "worker", "-queue", "slow", "-name", "slow",
		"-lease", "4s", "-pause", "700ms", "-idle", "6s")
	if err != nil {
		t.Fatal(err)
	}
	// Whoever leases reaps: were a lease lost, it would show.
	for ended := false; !ended; {
		if _, err := db.Pool.Exec(ctx, `select oq_tick()`); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.done:
			ended = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	if w.err != nil {
		t.Fatal(w.err)
	}
	var done int
	err = db.Pool.QueryRow(ctx, `select count(*) from oq_jobs where queue_name = 'slow' and state = 'completed'
		and attempt = 1 and lost_leases = 0`).Scan(&done)
	if err != nil || done != 8 {
		t.Fatalf("%d of 8 done at their first attempt, %v", done, err)
	}
}
