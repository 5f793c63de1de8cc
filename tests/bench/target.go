package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// target is a database of its own for one contender in one row, with the ledger of what was done
// to it. Nobody else's dead rows, statistics or generations can reach it.
type target struct {
	contender
	name      string
	url       string
	conn      *pgx.Conn
	daemonCmd *exec.Cmd
	log       string
	queues    []string
	groups    int64
	body      string // every job's payload
	born      time.Time

	loaded           int64   // jobs made by fill
	made             []int64 // ids that enqueues returned
	leased           []int64 // ids that leases returned
	madeAt, leasedAt []int64 // the same order
	finished         int64   // acks that were accepted
}

// fresh makes a target. The first of a contender also makes the template that the others copy.
func (b *bench) fresh(ctx context.Context, c contender, purpose string) (*target, error) {
	if err := b.template(ctx, c); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	name := fmt.Sprintf("%s_%s_%s", b.prefix, purpose, c.name)
	if err := b.createDatabase(ctx, name, b.prefix+"_"+c.name); err != nil {
		return nil, err
	}
	t := newTarget(c, name, b.databaseURL(name))
	var err error
	if t.conn, err = pgx.Connect(ctx, t.url); err != nil {
		return nil, err
	}
	if c.daemon {
		err = b.startDaemon(ctx, t)
	}
	if err != nil {
		t.close(ctx)
		return nil, err
	}
	b.open = append(b.open, t)
	return t, nil
}

func newTarget(c contender, name, url string) *target {
	return &target{contender: c, name: name, url: url, queues: []string{queue}, body: payload, born: time.Now()}
}

// worker connects one closed loop to the target.
func (t *target) worker(ctx context.Context, role string, r *run) (*worker, error) {
	c, err := dial(ctx, t.url, role)
	if err != nil {
		return nil, err
	}
	w := &worker{client: c, contender: &t.contender, run: r, body: jsonb(t.body)}
	for _, name := range t.queues {
		w.queues = append(w.queues, []byte(name))
	}
	for g := range t.groups {
		w.groups = append(w.groups, fmt.Appendf(nil, "g%d", g))
	}
	return w, nil
}

func (b *bench) template(ctx context.Context, c contender) error {
	if b.templates[c.name] {
		return nil
	}
	name := b.prefix + "_" + c.name
	if err := b.createDatabase(ctx, name, "template0"); err != nil {
		return err
	}
	if c.schema == "" {
		cmd := exec.CommandContext(ctx, b.openqueued, "migrate")
		cmd.Env = append(os.Environ(), "OQ_DATABASE_URL="+b.databaseURL(name))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("openqueued migrate: %w\n%s", err, out)
		}
	} else {
		conn, err := pgx.Connect(ctx, b.databaseURL(name))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		if _, err := conn.PgConn().Exec(ctx, c.schema).ReadAll(); err != nil {
			return err
		}
	}
	b.templates[c.name] = true
	return nil
}

// startDaemon runs openqueued as in production and waits until it is ready.
func (b *bench) startDaemon(ctx context.Context, t *target) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	l.Close()
	t.log = filepath.Join(b.dir, t.name+".log")
	log, err := os.Create(t.log)
	if err != nil {
		return err
	}
	defer log.Close()
	t.daemonCmd = exec.Command(b.openqueued, "run")
	cmd := t.daemonCmd
	cmd.Env = append(os.Environ(), "OQ_DATABASE_URL="+t.url, "OQ_HTTP_ADDR="+addr)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(15 * time.Second)
	for {
		resp, err := http.Get("http://" + addr + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			out, _ := os.ReadFile(t.log)
			return fmt.Errorf("openqueued did not become ready: %w\n%s", err, out)
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// close ends a target's daemon and connection; its database goes with the others at the end.
func (t *target) close(ctx context.Context) error {
	var err error
	if t.daemonCmd != nil {
		t.daemonCmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { t.daemonCmd.Process.Kill() })
		if wait := t.daemonCmd.Wait(); wait != nil {
			out, _ := os.ReadFile(t.log)
			err = fmt.Errorf("openqueued run: %w\n%s", wait, out)
		}
		kill.Stop()
		t.daemonCmd = nil
	}
	return errors.Join(err, t.conn.Close(ctx))
}

// waiting is how many jobs the ledger says are unfinished.
func (t *target) waiting() int64 { return t.loaded + int64(len(t.made)) - t.finished }

// book enters a worker's doings. Only after its loop has ended.
func (t *target) book(w *worker) {
	t.made = append(t.made, w.made...)
	t.leased = append(t.leased, w.leased...)
	t.madeAt = append(t.madeAt, w.madeAt...)
	t.leasedAt = append(t.leasedAt, w.leasedAt...)
	t.finished += w.finished
}

// fill loads jobs until n are unfinished, evenly over so many priorities.
func (t *target) fill(ctx context.Context, n int64, priorities int) error {
	return t.bulkLoad(ctx, t.contender.load, n-t.waiting(), priorities)
}

// fillLater loads n jobs that will not be due while the benchmark runs.
func (t *target) fillLater(ctx context.Context, n int64, priorities int) error {
	return t.bulkLoad(ctx, t.contender.loadLater, n, priorities)
}

func (t *target) bulkLoad(ctx context.Context, sql string, n int64, priorities int) error {
	const loaders = 2
	batch := max(1, min(10_000, 32_000_000/int64(len(t.body))))
	if n <= 0 {
		return nil
	}
	type call struct {
		queue    string
		size     int64
		priority int
	}
	var calls []call
	for i, name := range t.queues { // evenly; the first take what is left over
		share, queues := n/int64(len(t.queues)), int64(len(t.queues))
		if int64(i) < n%queues {
			share++
		}
		for ; share > 0; share -= min(share, batch) {
			calls = append(calls, call{name, min(share, batch), len(calls) % priorities})
		}
	}
	load := func(loader int) error {
		conn, err := pgx.Connect(ctx, t.url)
		if err != nil {
			return err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		if t.producer != "" {
			if _, err := conn.Exec(ctx, "set role "+t.producer); err != nil {
				return err
			}
		}
		for i := loader; i < len(calls); i += loaders {
			c := calls[i]
			var got int64
			err := conn.QueryRow(ctx, sql, c.queue, t.body, c.size, c.priority).Scan(&got)
			if err != nil {
				return err
			}
			if got != c.size {
				return fmt.Errorf("%s: loading %d jobs gave %d", t.name, c.size, got)
			}
		}
		return nil
	}
	errs := make([]error, loaders)
	var wg sync.WaitGroup
	for loader := range loaders {
		wg.Go(func() { errs[loader] = load(loader) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	t.loaded += n
	return nil
}

// settle leaves space, statistics and write-ahead log as they are between two bursts, so that no
// round pays for the one before it.
func (t *target) settle(ctx context.Context) error {
	if _, err := t.conn.Exec(ctx, t.contender.settle); err != nil {
		return err
	}
	_, err := t.conn.Exec(ctx, "checkpoint")
	return err
}

// rest ends what is unfinished and lets the tables come to rest.
func (t *target) rest(ctx context.Context) error {
	if err := t.drain(ctx); err != nil {
		return err
	}
	return t.settle(ctx)
}

// verify holds the database against the ledger: nothing lost, nothing doubled, no law broken.
func (t *target) verify(ctx context.Context) error {
	made, leased := slices.Sorted(slices.Values(t.made)), slices.Sorted(slices.Values(t.leased))
	for kind, ids := range map[string][]int64{"made": made, "leased": leased} {
		for i := 1; i < len(ids); i++ {
			if ids[i] == ids[i-1] {
				return fmt.Errorf("%s: job %d was %s twice", t.name, ids[i], kind)
			}
		}
	}
	if t.contender.unfinished == "" { // nobody can say: then all that was made must have been leased
		if t.waiting() == 0 && !slices.Equal(made, leased) {
			return fmt.Errorf("%s: other jobs were leased than enqueued", t.name)
		}
		return nil
	}
	var unfinished int64
	if err := t.conn.QueryRow(ctx, t.contender.unfinished).Scan(&unfinished); err != nil {
		return err
	}
	if unfinished != t.waiting() {
		return fmt.Errorf("%s: %d jobs enqueued and %d acked, but %d unfinished", t.name,
			t.loaded+int64(len(t.made)), t.finished, unfinished)
	}
	if t.loaded == 0 && unfinished == 0 && !slices.Equal(made, leased) {
		return fmt.Errorf("%s: other jobs were leased than enqueued", t.name)
	}
	if !t.contender.daemon {
		return nil
	}
	rows, err := t.conn.Query(ctx, "select law, violations, sample from oq_audit() where violations > 0")
	if err != nil {
		return err
	}
	type violation struct {
		Law        string
		Violations int64
		Sample     *string
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[violation])
	if err != nil {
		return err
	}
	for _, v := range found {
		sample := ""
		if v.Sample != nil {
			sample = *v.Sample
		}
		err = errors.Join(err, fmt.Errorf("%s: oq_audit: %s: %d violations: %s", t.name, v.Law,
			v.Violations, sample))
	}
	return err
}

// drain finishes what is left, untimed. Jobs that nobody can lease are lost.
func (t *target) drain(ctx context.Context) error {
	if t.waiting() == 0 {
		return nil
	}
	w, err := t.worker(ctx, t.consumer, &run{timed: len(t.madeAt) > 0, start: t.born})
	if err != nil {
		return err
	}
	defer w.close()
	w.number = 4 // nobody's
	work := leaseAndAck(100, pause)
	if t.consume != nil {
		work = t.consume
	}
	left, before, moved := t.waiting(), int64(0), time.Now()
	for w.finished < left && ctx.Err() == nil {
		if t.tick != "" {
			if err := w.query(t.tick, nil); err != nil {
				return err
			}
		}
		if err := work(w); err != nil {
			return err
		}
		if w.finished > before {
			before, moved = w.finished, time.Now()
		} else if time.Since(moved) > 30*time.Second {
			return fmt.Errorf("%s: no lease gives the last %d jobs", t.name, left-w.finished)
		}
	}
	t.book(w)
	return ctx.Err()
}
