package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	sqlJobs = `select job_id, state, payload, result, attempt, lost_leases, coalesce(worker_id, ''),
		coalesce(error, ''), finished_at from oq_jobs where queue_name = $1`
	// Those of the jobs of which the worker lost the lease, by the record.
	sqlLost = `select j from unnest($1::bigint[]) j where exists (
		select from oq_attempts(j) a where a.worker_id = $2 and a.outcome = 'lost')`
	sqlAudit = `select law, violations, coalesce(sample, '') from oq_audit() where violations > 0`
)

// check holds what the queue says of the jobs against the files, and prints the table.
type check struct {
	conn         *pgx.Conn
	out          io.Writer
	jobs, broken int
	killed       []int64   // jobs that the killed worker held
	killedAt     time.Time // by the server's clock
	took         time.Duration
	wrong        int
}

type outcome struct {
	Job             int64
	State           string
	Payload, Result []byte
	Attempt, Lost   int
	Worker, Error   string
	Finished        *time.Time
}

func (c *check) fault(format string, args ...any) {
	c.wrong++
	fmt.Fprintf(c.out, "wrong: "+format+"\n", args...)
}

func (c *check) all(ctx context.Context, queue string) ([]outcome, error) {
	rows, err := c.conn.Query(ctx, sqlJobs, queue)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[outcome])
}

func (c *check) report(ctx context.Context) error {
	files, err := c.all(ctx, filesQueue)
	if err != nil {
		return err
	}
	byWorker := map[string]int{}
	verified, retried, lost := 0, 0, 0
	for _, o := range files {
		var t task
		if err := json.Unmarshal(o.Payload, &t); err != nil {
			return err
		}
		byWorker[o.Worker]++
		lost += o.Lost
		if c.file(o, t) {
			verified++
		}
		if o.Attempt-o.Lost > 1 {
			retried++
		}
	}
	again, err := c.heldJobs(ctx, files)
	if err != nil {
		return err
	}
	dead, err := c.all(ctx, brokenQueue)
	if err != nil {
		return err
	}
	buried := 0
	for _, o := range dead {
		if o.State == "dead" && o.Attempt-o.Lost == retries+1 && o.Error == onPurpose {
			buried++
			continue
		}
		c.fault("job %d, which always fails, is %s after %d attempts and %d lost leases: %s",
			o.Job, o.State, o.Attempt, o.Lost, o.Error)
	}
	violations, err := c.audit(ctx)
	if err != nil {
		return err
	}
	if verified != c.jobs || len(files) != c.jobs {
		c.fault("%d of %d jobs, %d verified", len(files), c.jobs, verified)
	}
	if buried != c.broken || len(dead) != c.broken {
		c.fault("%d of %d jobs that always fail, %d dead", len(dead), c.broken, buried)
	}
	if byWorker["go-1"]+byWorker["go-2"] == 0 || byWorker["bash-1"]+byWorker["bash-2"] == 0 {
		c.fault("one language did nothing")
	}

	fmt.Fprintln(c.out)
	t := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(t, what+"\t"+format+"\n", args...)
	}
	row("jobs completed, verified against their files", "%d of %d", verified, c.jobs)
	for _, w := range []string{"go-1", "go-2", "bash-1", "bash-2", victim} {
		row("  by "+w, "%d", byWorker[w])
	}
	row("failed and retried", "%d", retried)
	row("leases that "+victim+" held when killed", "%d", len(c.killed))
	row("  lost, and the job done by another", "%d, the last %.1f s after the kill", again.jobs, again.after.Seconds())
	row("leases lost in all", "%d", lost)
	row(fmt.Sprintf("dead after %d attempts each", retries+1), "%d of %d", buried, c.broken)
	row("violations found by oq_audit", "%d", violations)
	row("time, the wait for the lost leases included", "%.1f s", c.took.Seconds())
	row("jobs a second", "%.0f", float64(c.jobs+c.broken)/c.took.Seconds())
	if err := t.Flush(); err != nil {
		return err
	}
	if c.wrong > 0 {
		return fmt.Errorf("%d things are wrong", c.wrong)
	}
	return nil
}

// file says whether a job ended as its file wants it.
func (c *check) file(o outcome, t task) bool {
	want, err := sum(t.Path)
	if err != nil {
		c.fault("%v", err)
		return false
	}
	var got answer
	if o.State != "completed" || json.Unmarshal(o.Result, &got) != nil || got != want {
		c.fault("%s is %s, %s; want %+v", t.Path, o.State, o.Result, want)
		return false
	}
	attempts := 1
	if t.Fail == "once" {
		attempts = 2
	}
	// A lost lease counts as an attempt too: where it was the first, the job is not made to fail any more.
	if o.Lost == 0 && o.Attempt != attempts {
		c.fault("%s (fail %q) took %d attempts", t.Path, t.Fail, o.Attempt)
		return false
	}
	return true
}

type again struct {
	jobs  int
	after time.Duration
}

// heldJobs are those that the killed worker held: the lease lost, the work done by another.
func (c *check) heldJobs(ctx context.Context, files []outcome) (again, error) {
	lost, err := ids(ctx, c.conn, sqlLost, c.killed, victim)
	if err != nil {
		return again{}, err
	}
	var a again
	for _, o := range files {
		if !slices.Contains(c.killed, o.Job) {
			continue
		}
		if !slices.Contains(lost, o.Job) || o.Lost == 0 || o.Worker == victim || o.Finished == nil {
			c.fault("job %d was held by the killed worker: %s by %q, %d lost leases", o.Job, o.State, o.Worker, o.Lost)
			continue
		}
		a.jobs++
		a.after = max(a.after, o.Finished.Sub(c.killedAt))
	}
	if a.jobs != len(c.killed) {
		c.fault("the killed worker held %d jobs, %d were done again", len(c.killed), a.jobs)
	}
	return a, nil
}

func (c *check) audit(ctx context.Context) (int64, error) {
	rows, err := c.conn.Query(ctx, sqlAudit)
	if err != nil {
		return 0, err
	}
	var all, n int64
	var law, sample string
	_, err = pgx.ForEachRow(rows, []any{&law, &n, &sample}, func() error {
		all += n
		c.fault("%s is violated %d times: %s", law, n, sample)
		return nil
	})
	return all, err
}
