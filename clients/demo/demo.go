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
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	filesQueue  = "demo.files"
	brokenQueue = "demo.broken"
	victim      = "go-victim"
	minFiles    = 100
	retries     = 2 // of a job that always fails

	sqlDrop   = `select oq_drop_queue($1, force => true)`
	sqlCreate = `select oq_create_queue($1, $2)`
	sqlBulk   = `select count(*) from oq_enqueue_bulk($1, $2)`
	sqlCounts = `select coalesce(sum(ready + waiting), 0)::bigint, coalesce(sum(scheduled), 0)::bigint,
		coalesce(sum(leased), 0)::bigint, coalesce(sum(completed), 0)::bigint, coalesce(sum(dead), 0)::bigint
		from oq_stats() where queue_name in ('demo.files', 'demo.broken')`
	sqlHeld = `select job_id from oq_jobs where queue_name = $1 and worker_id = $2 and state = 'leased'`
	// The server may still be at the last call of a client that is gone.
	sqlSessions = `select count(*), clock_timestamp() from pg_stat_activity
		where datname = current_database() and pid <> pg_backend_pid() and starts_with(application_name, $1)`
	// One demo at a time on a server, until its session ends.
	sqlAlone = `select pg_try_advisory_lock(hashtext('openqueue demo'))`
	sqlDone  = `select job_id from oq_jobs where queue_name = $1 and worker_id = $2 and state = 'completed'`
)

func demo(ctx context.Context, url string, limit int, out io.Writer) error {
	paths, err := sources(ctx, limit)
	if err != nil {
		return err
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "openqueue-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var daemons, workers processes
	// Time for a server to write out what it has.
	defer daemons.stop(90 * time.Second)
	defer workers.stop(10 * time.Second)
	if url, err = serve(ctx, &daemons, root, tmp, url); err != nil {
		return err
	}
	conn, err := alone(ctx, url, out)
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
	script := filepath.Join(root, "clients", "psql", "worker.sh")
	workers.env = append(os.Environ(), "DATABASE_URL="+url, "IDLE_SECONDS=30")
	// Ten seconds for a lease of three: it lives by its heartbeats, until it is killed.
	slow, err := workers.start(victim, self, "worker", "-queue", filesQueue, "-name", victim, "-pause", "500ms")
	if err != nil {
		return err
	}
	// Each is seen at work before the faster ones come and leave it nothing.
	seen := func(sql, worker string) error {
		return until(ctx, &daemons, &workers, func() (bool, error) {
			jobs, err := ids(ctx, conn, sql, filesQueue, worker)
			return len(jobs) > 0, err
		})
	}
	if err := seen(sqlHeld, victim); err != nil {
		return err
	}
	for _, name := range []string{"bash-1", "bash-2"} {
		if _, err := workers.start(name, "bash", script, filesQueue, name); err != nil {
			return err
		}
		if err := seen(sqlDone, name); err != nil {
			return err
		}
	}
	for _, w := range []struct{ name, queue string }{
		{"go-1", filesQueue}, {"go-2", filesQueue}, {"go-broken", brokenQueue},
	} {
		if _, err := workers.start(w.name, self, "worker", "-queue", w.queue, "-name", w.name); err != nil {
			return err
		}
	}

	c := check{conn: conn, out: out, jobs: jobs, broken: broken}
	var shown time.Time
	err = until(ctx, &daemons, &workers, func() (bool, error) {
		var left [3]int64
		var completed, dead int64
		err := conn.QueryRow(ctx, sqlCounts).Scan(&left[0], &left[1], &left[2], &completed, &dead)
		if err != nil {
			return false, err
		}
		over := left == [3]int64{}
		if over || time.Since(shown) > 500*time.Millisecond {
			shown = time.Now()
			fmt.Fprintf(out, "ready %6d  scheduled %4d  leased %4d  completed %6d  dead %4d\n",
				left[0], left[1], left[2], completed, dead)
		}
		if c.killed == nil && completed >= int64(jobs/4) {
			if c.killed, c.killedAt, err = killWithLeases(ctx, conn, slow); err != nil {
				return false, err
			}
			fmt.Fprintf(out, "killed %s (SIGKILL) while it held %d leases\n", victim, len(c.killed))
			return false, nil
		}
		return over, nil
	})
	if err != nil {
		return err
	}
	c.took = time.Since(began)
	workers.stop(10 * time.Second)
	return c.report(ctx)
}

// alone connects once no other demo is at work, nor what one left: the workers of one that was killed end by
// themselves when they have nothing to do.
func alone(ctx context.Context, url string, out io.Writer) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	began, told, mine := time.Now(), false, false
	for {
		if !mine {
			err = conn.QueryRow(ctx, sqlAlone).Scan(&mine)
		}
		if err == nil && mine {
			var others int
			var now time.Time
			err = conn.QueryRow(ctx, sqlSessions, session("")).Scan(&others, &now)
			if err == nil && others == 0 {
				return conn, nil
			}
		}
		if err != nil {
			conn.Close(context.WithoutCancel(ctx))
			return nil, err
		}
		if !told && time.Since(began) > time.Second {
			fmt.Fprintln(out, "waiting for another demo on this server, or what is left of it, to end")
			told = true
		}
		time.Sleep(50 * time.Millisecond)
	}
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
	if len(paths) < minFiles {
		return nil, fmt.Errorf("only %d .go files in the standard library", len(paths))
	}
	return paths, nil
}

// enqueue makes a job of each file; every fiftieth fails at its first attempt, and every fortieth has a
// twin in the other queue that always fails.
func enqueue(ctx context.Context, conn *pgx.Conn, paths []string) (jobs, broken int, err error) {
	for _, q := range []struct{ name, options string }{
		{filesQueue, `{"lease_seconds": 3, "retry": {"kind": "fixed", "base": "300 ms"}}`},
		{brokenQueue, fmt.Sprintf(`{"lease_seconds": 3, "max_retries": %d,
			"retry": {"kind": "exponential", "base": "200 ms"}}`, retries)},
	} {
		// Dropped, for what an earlier demo left behind; created before, for there may be none.
		for _, call := range []string{"create", "drop", "create"} {
			if call == "drop" {
				_, err = conn.Exec(ctx, sqlDrop, q.name)
			} else {
				_, err = conn.Exec(ctx, sqlCreate, q.name, q.options)
			}
			if err != nil {
				return 0, 0, err
			}
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
	if err := conn.QueryRow(ctx, sqlBulk, brokenQueue, bad).Scan(&broken); err != nil {
		return 0, 0, err
	}
	if jobs != len(paths) || broken != len(bad) {
		return 0, 0, fmt.Errorf("enqueued %d of %d jobs and %d of %d broken ones", jobs, len(paths), broken, len(bad))
	}
	return jobs, broken, nil
}

// until asks again and again, as long as every process lives.
func until(ctx context.Context, daemons, workers *processes, over func() (bool, error)) error {
	for {
		if yes, err := over(); yes || err != nil {
			return err
		}
		if err := errors.Join(daemons.failed(), workers.failed()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// killWithLeases returns the jobs that the killed worker held once nothing of it was left, and when
// that was.
func killWithLeases(ctx context.Context, conn *pgx.Conn, p *process) (held []int64, at time.Time, err error) {
	if err := p.kill(); err != nil {
		return nil, at, err
	}
	for alive := 1; alive > 0; time.Sleep(5 * time.Millisecond) {
		if err := conn.QueryRow(ctx, sqlSessions, session(p.name)).Scan(&alive, &at); err != nil {
			return nil, at, err
		}
	}
	held, err = ids(ctx, conn, sqlHeld, filesQueue, p.name)
	if err == nil && len(held) == 0 {
		err = errors.New("the killed worker held no lease")
	}
	return held, at, err
}

func ids(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]int64, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}
