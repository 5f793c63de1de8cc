package openqueue

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/puddle/v2"
)

// Worker does the jobs of one queue. Fields left zero take the defaults named.
type Worker struct {
	Pool       *pgxpool.Pool // also how its own connections are made: one a fetcher, one to listen, one for heartbeats
	Queue      string
	Handler    Handler
	Middleware []Middleware // the first is the outermost

	ID          string        // shown to people; host name and a random part
	Concurrency int           // handlers at a time; 10
	Batch       int           // jobs a lease, of which those wait here that no handler is free for; Concurrency
	Fetchers    int           // connections that lease and ack, each its own batches for a share of the handlers; 1
	Lease       time.Duration // whole seconds; the queue's lease_seconds
	Poll        time.Duration // how often to look though nothing woke it; 5 s, with Pooler 1 s
	Drain       time.Duration // how long running jobs may go on when Run's context ends; 30 s
	Timeout     time.Duration // of a call of the server; 30 s
	Pooler      bool          // a transaction pooler stands between: poll only, no prepared statements

	Logger *slog.Logger // nothing is logged without one
	// Observe is called for each job, by several goroutines at once: keep it short. A panic in it is logged.
	Observe func(Event)
	// Extract puts a trace's context from a job's headers into its handler's. Default: ContextWithTrace.
	Extract func(ctx context.Context, headers Headers) context.Context

	handler   Handler
	lanes     []*lane
	listener  *listener
	beats     *session
	throttles *session
	reports   *session        // of acks one by one, and where the pool is closed
	side      context.Context // of what goes on beside the lanes
	giveUp    context.CancelCauseFunc
	known     atomic.Int64  // how long a lease lasts, once one was seen
	learned   chan struct{} // it is another than it was
	jobs      context.Context
	stopJobs  context.CancelCauseFunc
	abandoned atomic.Int64
}

// Event is what became of a job in a worker.
type Event struct {
	Job *Job
	// acked: done. scheduled, ready, dead or, where its time to live has passed, expired: where a failed attempt led.
	// released: given back, and no attempt counted. cancelled: by oq_cancel, which the worker was told while the handler
	// ran; a job that was cancelled after the last heartbeat may be said to be acked. lost: its lease ended, so that it
	// was or will be done again, or nobody knows whether the server took the outcome.
	State string
	Err   error         // what the handler returned
	Took  time.Duration // the handler
}

// ErrAbandoned is in Run's error where handlers did not return though their contexts had ended. Their
// leases run out by themselves.
var ErrAbandoned = errors.New("handlers did not return")

// stopGrace is how long a handler has to return after its context has ended for good.
const stopGrace = 5 * time.Second

func (w *Worker) prepare() error {
	switch {
	case w.Pool == nil:
		return fmt.Errorf("%w: Worker.Pool is nil", ErrArgument)
	case w.Handler == nil:
		return fmt.Errorf("%w: Worker.Handler is nil", ErrArgument)
	case w.Queue == "":
		return fmt.Errorf("%w: Worker.Queue is empty", ErrArgument)
	case w.Concurrency < 0 || w.Batch < 0 || w.Batch > 10_000 || w.Fetchers < 0:
		return fmt.Errorf("%w: Concurrency and Fetchers are 0 or more, Batch is 0 to 10000", ErrArgument)
	case w.Lease < 0 || w.Lease%time.Second != 0:
		return fmt.Errorf("%w: Lease %s: whole seconds", ErrArgument, w.Lease)
	case w.Poll < 0 || w.Drain < 0 || w.Timeout < 0:
		return fmt.Errorf("%w: Poll, Drain and Timeout are 0 or more", ErrArgument)
	case w.handler != nil:
		return fmt.Errorf("%w: a Worker runs once", ErrArgument)
	}
	w.Concurrency = cmp.Or(w.Concurrency, 10)
	w.Batch = cmp.Or(w.Batch, min(w.Concurrency, 10_000))
	w.Fetchers = min(cmp.Or(w.Fetchers, 1), w.Concurrency)
	if w.Pooler {
		w.Poll = cmp.Or(w.Poll, time.Second)
	}
	w.Poll = cmp.Or(w.Poll, 5*time.Second)
	w.Drain = cmp.Or(w.Drain, 30*time.Second)
	w.Timeout = cmp.Or(w.Timeout, 30*time.Second)
	if w.ID == "" {
		var b [4]byte
		_, _ = rand.Read(b[:]) // It never fails.
		host, _ := os.Hostname()
		w.ID = host + "-" + hex.EncodeToString(b[:])
	}
	if w.Logger == nil {
		w.Logger = slog.New(slog.DiscardHandler)
	}
	w.Logger = w.Logger.With("queue", w.Queue, "worker", w.ID)
	if w.Extract == nil {
		w.Extract = extractTrace
	}
	w.handler = w.Handler
	for i := len(w.Middleware) - 1; i >= 0; i-- {
		w.handler = w.Middleware[i](w.handler)
	}
	handler := w.handler
	w.handler = func(ctx context.Context, j *Job) error {
		if j.Headers != nil {
			ctx = w.Extract(ctx, j.Headers)
		}
		return handler(ctx, j)
	}
	return nil
}

// Run works until ctx ends, then drains: no job is begun any more, those not begun are released, those
// that run may finish within Drain, and are stopped and released after it. A connection that fails
// is made again. The error is nil after a drain; it is the server's where it refuses the first lease, and
// puddle.ErrClosedPool where Pool was closed before the end and that was noticed, as by a failed attempt.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.prepare(); err != nil {
		return err
	}
	always := context.WithoutCancel(ctx)
	w.jobs, w.stopJobs = context.WithCancelCause(always)
	defer w.stopJobs(ErrDraining)
	w.beats = w.session("heartbeats")
	w.throttles = w.session("throttle")
	w.reports = w.session("reports")
	w.learned = make(chan struct{}, 1)
	w.listener = newListener(w)
	for i := range w.Fetchers {
		w.lanes = append(w.lanes, newLane(w, share(w.Concurrency, w.Fetchers, i), w.Batch))
	}

	fetching, stop := context.WithCancelCause(ctx)
	w.giveUp = stop
	defer stop(nil)
	side, stopSide := context.WithCancel(always)
	w.side = side
	var sides, lanes sync.WaitGroup
	sides.Go(func() { w.listener.run(side) })
	sides.Go(func() { w.beat(side) })
	errs := make([]error, len(w.lanes))
	for i, l := range w.lanes {
		lanes.Go(func() {
			errs[i] = l.run(fetching)
			stop(nil) // One that can't go on ends all, in order.
		})
	}
	<-fetching.Done()
	w.Logger.Info("worker drains")
	late := time.AfterFunc(w.Drain, func() { w.stopJobs(ErrDraining) })
	lanes.Wait()
	late.Stop()
	stopSide()
	sides.Wait()
	w.beats.close()
	w.throttles.close()
	w.reports.close()
	if n := w.abandoned.Load(); n > 0 {
		errs = append(errs, fmt.Errorf("%w: %d", ErrAbandoned, n))
	}
	if why := context.Cause(fetching); errors.Is(why, puddle.ErrClosedPool) {
		errs = append(errs, why)
	}
	return errors.Join(errs...)
}

// share is the i-th of n parts.
func share(total, n, i int) int { return (total*(i+1))/n - (total*i)/n }

func (w *Worker) session(name string) *session {
	cfg := w.Pool.Config()
	pooler := w.Pooler
	switch cfg.ConnConfig.DefaultQueryExecMode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		pooler = true
	}
	if pooler {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	return &session{cfg: cfg, timeout: w.Timeout, pooler: pooler, name: name, turn: make(chan struct{}, 1)}
}

func (w *Worker) leaseSeconds() int { return int(w.Lease / time.Second) }

// leaseLasts is how long a lease lasts: as asked for, or as the server said; 0 while nobody knows.
func (w *Worker) leaseLasts() time.Duration { return cmp.Or(w.Lease, time.Duration(w.known.Load())) }

// learn notes how long the last lease lasts, and tells the heartbeats where that has changed.
func (w *Worker) learn(lasts time.Duration) {
	if was := time.Duration(w.known.Swap(int64(lasts))); (lasts - was).Abs() > lasts/10 {
		select {
		case w.learned <- struct{}{}:
		default:
		}
	}
}

func (w *Worker) observe(j *Job, state string, err error, took time.Duration) {
	if w.Observe != nil {
		w.tellObserver(Event{j, state, err, took})
	}
	level := slog.LevelDebug
	switch {
	case state == "dead":
		level = slog.LevelError
	case state == "lost" || err != nil && state != "released":
		level = slog.LevelWarn
	}
	if !w.Logger.Enabled(w.jobs, level) {
		return
	}
	attrs := []slog.Attr{slog.Int64("job_id", j.ID), slog.Int("attempt", j.Attempt), slog.String("state", state),
		slog.Duration("took", took)}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	w.Logger.LogAttrs(w.jobs, level, "job", attrs...)
}

func (w *Worker) tellObserver(e Event) {
	defer func() {
		if v := recover(); v != nil {
			w.Logger.Error("Observe failed", "job_id", e.Job.ID, "state", e.State, "error", (&panicked{v, debug.Stack()}).Error())
		}
	}()
	w.Observe(e)
}

// A row that another transaction holds is waited for so long and no longer, by a setting of the statement's own: behind a
// pooler a session has none.
const (
	sqlNoWait     = `set_config('lock_timeout', '200', true) soon`
	sqlHeartbeats = `select status from set_config('lock_timeout', $4, true) soon cross join lateral
		oq_heartbeat_many($1::bigint[], $2::bigint[], case when soon is not null then $3::int end)`
)

// beat keeps the leases of all that is held, whether a handler has it or not: each once a third of its
// lease is over. A lease that could not be extended in time counts as lost. How long leases of the queue last may
// change while jobs are held; the server extends them by what holds then. One that failed is soon tried again: it may have
// taken a third of the lease to fail.
func (w *Worker) beat(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed := false
	for ctx.Err() == nil {
		pause := time.Hour
		if lasts := w.leaseLasts(); lasts > 0 {
			for _, l := range w.lanes {
				lasts = l.shortest(lasts)
			}
			pause = lasts / 6
			if failed {
				pause = lasts / 30
			}
		}
		failed = false
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return
		case <-w.learned:
		case <-timer.C:
		}
		var due []*Job
		now := time.Now()
		for _, l := range w.lanes {
			due = l.due(due, now)
		}
		for len(due) > 0 && ctx.Err() == nil {
			n := min(len(due), 1000)
			err := w.beatMany(ctx, due[:n], "200")
			if locked(err) && n > 1 {
				// Open transactions are about to end some of them: the others don't wait for these, however many they are.
				err = w.beatSingly(ctx, due[:n])
			}
			if err != nil {
				failed = true
				if ctx.Err() == nil {
					w.Logger.Warn("heartbeat failed", "jobs", len(due), "error", err)
				}
				break
			}
			due = due[n:]
		}
	}
}

func (w *Worker) beatSingly(ctx context.Context, jobs []*Job) error {
	for i := range jobs {
		if err := w.beatMany(ctx, jobs[i:i+1], "10"); err != nil && !locked(err) {
			return err
		}
	}
	return nil
}

// beatTime is how long a heartbeat may take. One that comes too late is none.
func (w *Worker) beatTime() time.Duration { return w.leaseLasts() / 3 }

// beatMany waits for each row that another transaction holds as many milliseconds as wait says.
func (w *Worker) beatMany(ctx context.Context, jobs []*Job, wait string) error {
	ids, tokens := make([]int64, len(jobs)), make([]int64, len(jobs))
	for i, j := range jobs {
		ids[i], tokens[i] = j.ID, j.Token
	}
	ctx, cancel := context.WithTimeout(ctx, w.beatTime())
	defer cancel()
	sent := time.Now()
	return w.beats.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, sqlHeartbeats, ids, tokens, nullable(w.leaseSeconds()), wait)
		if err != nil {
			return err
		}
		statuses, err := pgx.CollectRows(rows, pgx.RowTo[string])
		for i, status := range statuses { // in the order of the arguments, where a job may be by two leases
			_ = jobs[i].told(status, sent)
		}
		return err
	})
}

// apart makes a handler's call over a session of the worker's own, for the handlers may hold all of the pool. When ctx
// ends it returns, and the call goes on without it: to give it up would cost the connection.
func (w *Worker) apart(ctx context.Context, s *session, most time.Duration,
	call func(ctx context.Context, conn *pgx.Conn) error) error {

	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
		defer cancel()
		defer context.AfterFunc(w.side, cancel)()
		done <- s.do(ctx, call)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
