package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/daemon/pgserver"
)

const (
	filesQueue  = "demo.files"
	brokenQueue = "demo.broken"
	victim      = "go-victim"

	sqlDrop   = `select oq_drop_queue($1, force => true)`
	sqlCreate = `select oq_create_queue($1, $2)`
	sqlBulk   = `select count(*) from oq_enqueue_bulk($1, $2)`
	sqlHeld   = `select count(*) from oq_jobs where queue_name = $1 and worker_id = $2 and state = 'leased'`
	sqlCounts = `select coalesce(sum(ready), 0)::bigint, coalesce(sum(scheduled), 0)::bigint,
		coalesce(sum(leased), 0)::bigint, coalesce(sum(completed), 0)::bigint, coalesce(sum(dead), 0)::bigint
		from oq_stats() where queue_name in ('demo.files', 'demo.broken')`
	sqlJobs  = `select state, payload, result, attempt, lost_leases, coalesce(worker_id, '') from oq_jobs where queue_name = $1`
	sqlAudit = `select law, violations, coalesce(sample, '') from oq_audit() where violations > 0`
)

func demo(ctx context.Context, url string, limit int, out io.Writer) (err error) {
	paths, err := sources(ctx, limit)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "openqueue-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	if url == "" {
		var stop func()
		if url, stop, err = server(ctx, root, out); err != nil {
			return err
		}
		defer stop()
	}
	daemonBin := filepath.Join(tmp, "openqueued")
	build := exec.CommandContext(ctx, "go", "build", "-o", daemonBin, "./daemon/openqueued")
	build.Dir, build.Stderr = root, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the daemon: %w", err)
	}
	p := &processes{env: append(os.Environ(), "DATABASE_URL="+url, "OQ_DATABASE_URL="+url, "OQ_HTTP_ADDR=",
		"OQ_LOG_LEVEL=warn", "IDLE_SECONDS=3600")}
	defer p.stopAll()
	if err := p.run(ctx, daemonBin, "migrate"); err != nil {
		return err
	}
	if _, err := p.start("openqueued", daemonBin, "run"); err != nil {
		return err
	}

	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	began := time.Now()
	jobs, broken, err := enqueue(ctx, conn, paths)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d files of the Go standard library are jobs, %d more always fail; enqueued in %.2f s\n",
		jobs, broken, time.Since(began).Seconds())

	self, err := os.Executable()
	if err != nil {
		return err
	}
	killed, err := p.start(victim, self, "worker", "-queue", filesQueue, "-name", victim, "-slow", "50ms")
	if err != nil {
		return err
	}
	held, err := killWithLeases(ctx, conn, killed)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "killed %s (SIGKILL) while it held %d leases\n", victim, held)

	script := filepath.Join(root, "clients", "psql", "worker.sh")
	for _, w := range [][]string{
		{"go-1", self, "worker", "-queue", filesQueue, "-name", "go-1"},
		{"go-2", self, "worker", "-queue", filesQueue, "-name", "go-2"},
		{"go-broken", self, "worker", "-queue", brokenQueue, "-name", "go-broken"},
		{"bash-1", "bash", script, filesQueue, "bash-1"},
		{"bash-2", "bash", script, filesQueue, "bash-2"},
	} {
		if _, err := p.start(w[0], w[1], w[2:]...); err != nil {
			return err
		}
	}
	if err := progress(ctx, conn, p, out); err != nil {
		return err
	}
	took := time.Since(began)
	p.stopAll()
	return report(ctx, conn, out, jobs, broken, held, took)
}

// sources are the files to work on.
func sources(ctx context.Context, limit int) ([]string, error) {
	raw, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	var paths []string
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(raw)), "src"),
		func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".go") {
				paths = append(paths, path)
			}
			return err
		})
	if err != nil {
		return nil, err
	}
	if limit > 0 && len(paths) > limit {
		paths = paths[:limit]
	}
	if len(paths) < 100 {
		return nil, fmt.Errorf("only %d .go files in the standard library", len(paths))
	}
	return paths, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	raw, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(raw))), nil
}

// server is the one of `make run`, or started in its place for as long as the demo runs.
func server(ctx context.Context, root string, out io.Writer) (string, func(), error) {
	dir := filepath.Join(root, ".openqueue", "pgdata")
	stop := func() {}
	s, err := pgserver.Attach(dir)
	if errors.Is(err, pgserver.ErrNotRunning) {
		var in pgserver.Install
		if in, err = pgserver.Ensure(ctx, 0, out); err != nil {
			return "", nil, err
		}
		if err = os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return "", nil, err
		}
		if s, err = pgserver.Start(ctx, pgserver.Options{Install: in, DataDir: dir}); err == nil {
			stop = func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				_ = s.Stop(ctx, "fast")
			}
		}
	}
	if err != nil {
		return "", nil, err
	}
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		stop()
		return "", nil, err
	}
	defer conn.Close(ctx)
	var found bool
	err = conn.QueryRow(ctx, `select exists (select from pg_database where datname = 'openqueue')`).Scan(&found)
	if err == nil && !found {
		_, err = conn.Exec(ctx, `create database openqueue`)
	}
	if err != nil {
		stop()
		return "", nil, err
	}
	return s.URL("openqueue"), stop, nil
}

// enqueue makes a job of each file; every fiftieth fails at its first attempt, and every fortieth has a
// twin in the other queue that always fails.
func enqueue(ctx context.Context, conn *pgx.Conn, paths []string) (jobs, broken int, err error) {
	for _, q := range []struct{ name, options string }{
		{filesQueue, `{"lease_seconds": 3, "retry": {"kind": "fixed", "base": "300 ms"}}`},
		{brokenQueue, `{"lease_seconds": 3, "max_retries": 2, "retry": {"kind": "exponential", "base": "200 ms"}}`},
	} {
		// What an earlier demo left behind.
		if _, err := conn.Exec(ctx, sqlCreate, q.name, q.options); err != nil {
			return 0, 0, err
		}
		if _, err := conn.Exec(ctx, sqlDrop, q.name); err != nil {
			return 0, 0, err
		}
		if _, err := conn.Exec(ctx, sqlCreate, q.name, q.options); err != nil {
			return 0, 0, err
		}
	}
	var good, bad []string
	for i, path := range paths {
		t := task{Path: path}
		if i%50 == 0 {
			t.Fail = "once"
		}
		raw, err := json.Marshal(t)
		if err != nil {
			return 0, 0, err
		}
		good = append(good, string(raw))
		if i%40 == 0 && len(bad) < 50 {
			raw, err := json.Marshal(task{Path: path, Fail: "always"})
			if err != nil {
				return 0, 0, err
			}
			bad = append(bad, string(raw))
		}
	}
	for len(good) > 0 {
		n := min(len(good), 1000)
		var made int
		if err := conn.QueryRow(ctx, sqlBulk, filesQueue, good[:n]).Scan(&made); err != nil {
			return 0, 0, err
		}
		good = good[n:]
		jobs += made
	}
	return jobs, len(bad), conn.QueryRow(ctx, sqlBulk, brokenQueue, bad).Scan(&broken)
}

// killWithLeases kills a worker that is seen to hold leases, and tells how many it left behind.
func killWithLeases(ctx context.Context, conn *pgx.Conn, p *process) (int, error) {
	for {
		var held int
		if err := conn.QueryRow(ctx, sqlHeld, filesQueue, victim).Scan(&held); err != nil {
			return 0, err
		}
		if held > 0 {
			if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
				return 0, err
			}
			<-p.done
			if err := conn.QueryRow(ctx, sqlHeld, filesQueue, victim).Scan(&held); err != nil {
				return 0, err
			}
			if held == 0 {
				return 0, errors.New("the killed worker held no lease")
			}
			return held, nil
		}
		select {
		case <-p.done:
			return 0, fmt.Errorf("%s ended by itself: %v", victim, p.err)
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// progress shows the counts until nothing is left to do.
func progress(ctx context.Context, conn *pgx.Conn, p *processes, out io.Writer) error {
	for {
		var ready, scheduled, leased, completed, dead int64
		err := conn.QueryRow(ctx, sqlCounts).Scan(&ready, &scheduled, &leased, &completed, &dead)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "ready %6d  scheduled %4d  leased %4d  completed %6d  dead %4d\n",
			ready, scheduled, leased, completed, dead)
		if ready+scheduled+leased == 0 {
			return nil
		}
		if err := p.failed(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

type outcome struct {
	State         string
	Payload       []byte
	Result        []byte
	Attempt, Lost int
	Worker        string
}

// report holds every result against its file.
func report(ctx context.Context, conn *pgx.Conn, out io.Writer, jobs, broken, held int, took time.Duration) error {
	all := func(queue string) ([]outcome, error) {
		rows, err := conn.Query(ctx, sqlJobs, queue)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowToStructByPos[outcome])
	}
	done, err := all(filesQueue)
	if err != nil {
		return err
	}
	byWorker := map[string]int{}
	wrong, retried, lost := 0, 0, 0
	for _, o := range done {
		var t task
		var got answer
		if err := json.Unmarshal(o.Payload, &t); err != nil {
			return err
		}
		want, err := sum(t.Path)
		if err != nil {
			return err
		}
		if o.State != "completed" || json.Unmarshal(o.Result, &got) != nil || got != want {
			wrong++
			fmt.Fprintf(out, "wrong: %s is %s, %s\n", t.Path, o.State, o.Result)
		}
		// A lost lease counts as an attempt, so a job that lost its first does not fail any more.
		if o.Lost == 0 && (t.Fail == "once") != (o.Attempt > 1) {
			wrong++
			fmt.Fprintf(out, "wrong: %s (fail %q) took %d attempts and lost %d\n", t.Path, t.Fail, o.Attempt, o.Lost)
		}
		byWorker[o.Worker]++
		lost += o.Lost
		if o.Attempt-o.Lost > 1 {
			retried++
		}
	}
	dead, err := all(brokenQueue)
	if err != nil {
		return err
	}
	attempts := 0
	for _, o := range dead {
		if o.State != "dead" || o.Attempt != 3 {
			wrong++
			fmt.Fprintf(out, "wrong: a job that always fails is %s after %d attempts\n", o.State, o.Attempt)
		}
		attempts += o.Attempt
	}
	rows, err := conn.Query(ctx, sqlAudit)
	if err != nil {
		return err
	}
	violations := 0
	var law, sample string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&law, &n, &sample}, func() error {
		violations++
		fmt.Fprintf(out, "audit: %s is violated %d times: %s\n", law, n, sample)
		return nil
	}); err != nil {
		return err
	}

	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "jobs completed, verified against their files\t%d of %d\n", len(done)-wrong, jobs)
	for _, w := range []string{"go-1", "go-2", "bash-1", "bash-2", victim} {
		fmt.Fprintf(t, "  by %s\t%d\n", w, byWorker[w])
	}
	fmt.Fprintf(t, "failed once and retried\t%d\n", retried)
	fmt.Fprintf(t, "leases held by the killed worker, lost and done again\t%d, %d\n", held, lost)
	fmt.Fprintf(t, "dead after three attempts each\t%d of %d\n", len(dead), broken)
	fmt.Fprintf(t, "violations found by oq_audit\t%d\n", violations)
	fmt.Fprintf(t, "time\t%.1f s\n", took.Seconds())
	fmt.Fprintf(t, "jobs a second, waiting for the killed worker's leases included\t%.0f\n", float64(jobs)/took.Seconds())
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case wrong > 0 || violations > 0:
		return fmt.Errorf("%d jobs are wrong, %d laws violated", wrong, violations)
	case len(done) != jobs || len(dead) != broken:
		return fmt.Errorf("%d of %d jobs and %d of %d dead ones", len(done), jobs, len(dead), broken)
	case lost < held:
		return fmt.Errorf("the killed worker held %d leases, only %d were lost", held, lost)
	case byWorker["go-1"]+byWorker["go-2"] == 0 || byWorker["bash-1"]+byWorker["bash-2"] == 0:
		return errors.New("one language did nothing")
	}
	return nil
}
