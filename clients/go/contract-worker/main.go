// Command contract-worker does with the Go library what the harness of the contract says: see
// clients/README.md.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	openqueue "github.com/openqueue/openqueue/clients/go"
)

type command struct {
	Do          string
	Jobs        []newJob
	Times       int
	Many        bool
	Transaction string

	Queue          string
	WorkerID       string  `json:"worker_id"`
	Concurrency    int     `json:"concurrency"`
	Batch          int     `json:"batch"`
	Fetchers       int     `json:"fetchers"`
	Count          int     `json:"count"`
	LeaseSeconds   int     `json:"lease_seconds"`
	PollSeconds    float64 `json:"poll_seconds"`
	DrainSeconds   float64 `json:"drain_seconds"`
	TimeoutSeconds float64 `json:"timeout_seconds"`
}

type newJob struct {
	QueueName  string `json:"queue_name"`
	Payload    json.RawMessage
	TextBytes  int `json:"text_bytes"`
	Priority   int
	MaxRetries *int `json:"max_retries"`
	Headers    openqueue.Headers
	Options    struct {
		Tags  []string
		Retry *struct{ Kind, Base string }
	}
}

func main() {
	if err := run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "contract-worker:", err)
		os.Exit(1)
	}
}

var output sync.Mutex

func say(event map[string]any) {
	line, err := json.Marshal(event)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func run(in io.Reader) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	pooler := os.Getenv("CONTRACT_POOLER") == "transaction"
	if pooler {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer pool.Close()

	lines := make(chan []byte)
	go func() {
		r := bufio.NewReader(in)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				stop() // The end of input is that of the work.
				return
			}
			lines <- line
		}
	}()
	worked := make(chan error, 1)
	working := false
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case line := <-lines:
			var c command
			if err := json.Unmarshal(line, &c); err != nil {
				return err
			}
			switch c.Do {
			case "enqueue":
				enqueue(ctx, pool, c)
				continue
			case "bench":
				if err := bench(ctx, pool, c); err != nil {
					return err
				}
				continue
			}
			w := worker(pool, pooler, c)
			working = true
			go func() { worked <- w.Run(ctx) }()
			say(map[string]any{"event": "working"})
		case err := <-worked:
			return fmt.Errorf("the worker ended: %w", err)
		}
	}
	if working {
		if err := <-worked; err != nil {
			return err
		}
	}
	say(map[string]any{"event": "stopped"})
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func sqlstate(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

func enqueue(ctx context.Context, pool *pgxpool.Pool, c command) {
	var ids []string
	var err error
	if c.Transaction == "" {
		ids, err = enqueueOn(ctx, pool, c)
	} else {
		var tx pgx.Tx
		if tx, err = pool.Begin(ctx); err == nil {
			if ids, err = enqueueOn(ctx, tx, c); err == nil && c.Transaction == "commit" {
				err = tx.Commit(ctx)
			}
			_ = tx.Rollback(ctx)
		}
	}
	if err != nil {
		say(map[string]any{"event": "error", "sqlstate": sqlstate(err), "message": err.Error()})
		return
	}
	say(map[string]any{"event": "enqueued", "job_ids": ids})
}

func enqueueOn(ctx context.Context, db openqueue.DB, c command) ([]string, error) {
	var jobs []openqueue.NewJob
	for range max(c.Times, 1) {
		for _, j := range c.Jobs {
			n := openqueue.NewJob{Queue: j.QueueName, Payload: j.Payload, Options: openqueue.Options{
				Priority: j.Priority, MaxRetries: j.MaxRetries, Headers: j.Headers, Tags: j.Options.Tags}}
			if j.TextBytes > 0 {
				var payload map[string]any
				if err := json.Unmarshal(j.Payload, &payload); err != nil {
					return nil, err
				}
				payload["text"] = strings.Repeat("x", j.TextBytes)
				n.Payload = payload
			}
			if r := j.Options.Retry; r != nil {
				n.Options.Retry = &openqueue.Retry{Kind: r.Kind}
				if r.Base != "" {
					var err error
					if n.Options.Retry.Base, err = time.ParseDuration(strings.ReplaceAll(r.Base, " ", "")); err != nil {
						return nil, err
					}
				}
			}
			jobs = append(jobs, n)
		}
	}
	var ids []string
	if c.Many {
		made, err := openqueue.EnqueueMany(ctx, db, jobs)
		for _, m := range made {
			ids = append(ids, strconv.FormatInt(m.ID, 10))
		}
		return ids, err
	}
	for _, j := range jobs {
		id, err := openqueue.Enqueue(ctx, db, j.Queue, j.Payload, &j.Options)
		if err != nil {
			return nil, err
		}
		ids = append(ids, strconv.FormatInt(id, 10))
	}
	return ids, nil
}

// bench counts the jobs of a worker whose handler does nothing.
func bench(ctx context.Context, pool *pgxpool.Pool, c command) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var done, first, last atomic.Int64
	w := &openqueue.Worker{
		Pool: pool, Queue: c.Queue, ID: c.WorkerID, Concurrency: c.Concurrency, Batch: c.Batch, Fetchers: c.Fetchers,
		Lease: time.Duration(c.LeaseSeconds) * time.Second,
		Handler: func(context.Context, *openqueue.Job) error {
			first.CompareAndSwap(0, time.Now().UnixNano())
			return nil
		},
		Observe: func(openqueue.Event) {
			if n := done.Add(1); n == int64(c.Count) {
				last.Store(time.Now().UnixNano())
				stop()
			}
		},
	}
	if err := w.Run(ctx); err != nil {
		return err
	}
	took := time.Duration(last.Load() - first.Load()).Seconds()
	say(map[string]any{"event": "benched", "jobs": c.Count, "seconds": took})
	return nil
}

type payload struct {
	Do       string
	Result   json.RawMessage
	Text     string
	Error    string
	Times    int
	MS       int
	Progress json.RawMessage
	Seconds  int
	Queue    string
}

func worker(pool *pgxpool.Pool, pooler bool, c command) *openqueue.Worker {
	return &openqueue.Worker{
		Pool: pool, Queue: c.Queue, ID: c.WorkerID, Pooler: pooler,
		Concurrency: c.Concurrency, Batch: c.Batch, Lease: time.Duration(c.LeaseSeconds) * time.Second,
		Poll: seconds(c.PollSeconds), Drain: seconds(c.DrainSeconds), Timeout: seconds(c.TimeoutSeconds),
		Logger:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Handler:    openqueue.Handle(func(ctx context.Context, j *openqueue.Job, p payload) error { return do(ctx, pool, j, p) }),
		Middleware: []openqueue.Middleware{report},
	}
}

// report prints the events of every job.
func report(next openqueue.Handler) openqueue.Handler {
	return func(ctx context.Context, j *openqueue.Job) error {
		say(map[string]any{"event": "started", "job_id": strconv.FormatInt(j.ID, 10),
			"lease_token": strconv.FormatInt(j.Token, 10), "attempt": j.Attempt})
		ended := map[string]any{"event": "ended", "job_id": strconv.FormatInt(j.ID, 10), "attempt": j.Attempt}
		defer func() {
			if v := recover(); v != nil {
				ended["how"] = "failed"
				say(ended)
				panic(v)
			}
		}()
		err := next(ctx, j)
		switch {
		case err == nil:
			ended["how"] = "done"
		case errors.Is(err, openqueue.ErrLeaseLost) && sqlstate(err) == "", errors.Is(err, openqueue.ErrCancelled),
			errors.Is(err, openqueue.ErrDraining):
			ended["how"] = "stopped"
			ended["why"] = map[error]string{openqueue.ErrLeaseLost: "lost", openqueue.ErrCancelled: "cancelled",
				openqueue.ErrDraining: "drain"}[err]
		default:
			ended["how"] = "failed"
			if code := sqlstate(err); code != "" {
				ended["sqlstate"] = code
			}
		}
		say(ended)
		return err
	}
}

func do(ctx context.Context, pool *pgxpool.Pool, j *openqueue.Job, p payload) error {
	ms := time.Duration(p.MS) * time.Millisecond
	stopped := func(d <-chan time.Time) error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d:
			return nil
		}
	}
	switch p.Do {
	case "return":
		if p.Result != nil {
			return j.SetResult(p.Result)
		}
		return nil
	case "echo":
		sum := sha256.Sum256([]byte(p.Text))
		n := utf8.RuneCountInString(p.Text)
		result := map[string]any{"text": p.Text, "sha256": hex.EncodeToString(sum[:]), "characters": n, "headers": j.Headers}
		if n > 1000 {
			result["text"] = nil
		}
		return j.SetResult(result)
	case "fail":
		if j.Attempt <= p.Times {
			return errors.New(p.Error)
		}
		return nil
	case "panic":
		panic(p.Error)
	case "sleep":
		return stopped(time.After(ms))
	case "stubborn":
		time.Sleep(ms)
		return nil
	case "hold":
		if p.Progress != nil {
			if err := j.Progress(ctx, p.Progress); err != nil {
				return err
			}
		}
		return stopped(nil)
	case "die":
		os.Exit(9)
	case "snooze":
		return openqueue.Snooze(time.Duration(p.Seconds) * time.Second)
	case "discard":
		return openqueue.Discard(errors.New(p.Error))
	case "retry_after":
		return openqueue.RetryAfter(time.Duration(p.Seconds)*time.Second, errors.New(p.Error))
	case "transact":
		// Not the job's context: that the ack is refused is what is to be seen.
		return j.Transact(context.WithoutCancel(ctx), pool, func(ctx context.Context, tx pgx.Tx) error {
			_, err := openqueue.Enqueue(ctx, tx, cmp.Or(p.Queue, j.Queue), map[string]int64{"by": j.ID}, nil)
			time.Sleep(ms)
			return err
		})
	}
	return fmt.Errorf("no such word: %q", p.Do)
}
