// Command river runs one measurement of River's own client for the benchmark beside it, which builds
// and starts it when BENCH_PEERS names river. It is a module of its own, so that nobody else needs
// River. It prints {"rate": jobs a second, "cpu": cores that this process used}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// mail is the benchmark's payload as River's clients write one.
type mail struct {
	Task string `json:"task"`
	To   string `json:"to"`
	N    int    `json:"n"`
}

func (mail) Kind() string { return "send_mail" }

var job = mail{"send_mail", "someone@example.com", 12345}

type mailer struct{ river.WorkerDefaults[mail] }

func (*mailer) Work(context.Context, *river.Job[mail]) error { return nil }

type bench struct {
	pool    *pgxpool.Pool
	warmup  time.Duration
	window  time.Duration
	counted atomic.Int64
	waiting atomic.Int64 // enqueued less completed
}

func main() {
	url := flag.String("url", "", "database, made ready at first use")
	kind := flag.String("kind", "", "enqueue, bulk, one, batch or steady")
	backlog := flag.Int64("backlog", 0, "jobs to begin with")
	var b bench
	flag.DurationVar(&b.warmup, "warmup", 0, "not counted")
	flag.DurationVar(&b.window, "window", time.Second, "counted")
	flag.Parse()
	if err := b.run(context.Background(), *url, *kind, *backlog); err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, url, kind string, backlog int64) error {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	cfg.MaxConns = 16
	if b.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return err
	}
	defer b.pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(b.pool), nil)
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	if err := b.prepare(ctx, backlog); err != nil {
		return err
	}
	switch kind {
	case "enqueue":
		return b.measure(ctx, 8, 0, b.insert)
	case "bulk":
		return b.measure(ctx, 2, 0, b.insertMany)
	case "one":
		return b.measure(ctx, 0, 8, nil)
	case "batch":
		return b.measure(ctx, 0, 400, nil) // 4 clients with 100 jobs each
	case "steady":
		return b.measure(ctx, 4, 40, b.insertBounded)
	}
	return fmt.Errorf("-kind %s: want enqueue, bulk, one, batch or steady", kind)
}

// prepare fills the backlog up and leaves space, statistics and log as between two bursts.
func (b *bench) prepare(ctx context.Context, backlog int64) error {
	client, err := river.NewClient(riverpgxv5.New(b.pool), &river.Config{Logger: silent()})
	if err != nil {
		return err
	}
	// What a stopped client of an earlier round left running would wait for a rescue.
	_, err = b.pool.Exec(ctx, "update river_job set state = 'available' where state = 'running'")
	if err != nil {
		return err
	}
	var have int64
	if err := b.pool.QueryRow(ctx, "select count(*) from river_job where state = 'available'").Scan(&have); err != nil {
		return err
	}
	for left := backlog - have; left > 0; left -= 5_000 {
		if _, err := client.InsertManyFast(ctx, many(int(min(left, 5_000)))); err != nil {
			return err
		}
	}
	b.waiting.Store(max(have, backlog))
	for _, sql := range []string{"vacuum analyze", "checkpoint"} {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// measure counts what producers insert or, where there are workers, what River has completed.
func (b *bench) measure(ctx context.Context, producers, workers int,
	produce func(context.Context, *river.Client[pgx.Tx]) error) error {

	config := &river.Config{Logger: silent()}
	if workers > 0 {
		config.Workers = river.NewWorkers()
		river.AddWorker(config.Workers, &mailer{})
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}
		config.FetchCooldown, config.FetchPollInterval = time.Millisecond, 2*time.Millisecond // the least it takes
	}
	client, err := river.NewClient(riverpgxv5.New(b.pool), config)
	if err != nil {
		return err
	}
	if workers > 0 {
		events, cancel := client.SubscribeConfig(&river.SubscribeConfig{
			ChanSize: 1_000_000, Kinds: []river.EventKind{river.EventKindJobCompleted}})
		defer cancel()
		go func() {
			for range events {
				b.counted.Add(1)
				b.waiting.Add(-1)
			}
		}()
		if err := client.Start(ctx); err != nil {
			return err
		}
	}
	produceCtx, stop := context.WithCancel(ctx)
	errs := make([]error, producers)
	var wg sync.WaitGroup
	for i := range producers {
		wg.Go(func() {
			for produceCtx.Err() == nil && errs[i] == nil {
				errs[i] = produce(ctx, client)
			}
		})
	}
	time.Sleep(b.warmup)
	from, cpu, start := b.counted.Load(), used(), time.Now()
	time.Sleep(b.window)
	jobs, seconds, cores := b.counted.Load()-from, time.Since(start).Seconds(), used()-cpu
	stop()
	wg.Wait()
	if workers > 0 {
		stopCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		errs = append(errs, client.StopAndCancel(stopCtx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"rate": float64(jobs) / seconds, "cpu": cores.Seconds() / seconds})
}

func (b *bench) insert(ctx context.Context, client *river.Client[pgx.Tx]) error {
	_, err := client.Insert(ctx, job, nil)
	b.counted.Add(1)
	return err
}

func (b *bench) insertMany(ctx context.Context, client *river.Client[pgx.Tx]) error {
	n, err := client.InsertManyFast(ctx, many(1000))
	b.counted.Add(int64(n))
	return err
}

// insertBounded waits while a thousand jobs are ready, as the other producers do.
func (b *bench) insertBounded(ctx context.Context, client *river.Client[pgx.Tx]) error {
	if b.waiting.Load() >= 1000 {
		time.Sleep(time.Millisecond)
		return nil
	}
	b.waiting.Add(1)
	_, err := client.Insert(ctx, job, nil)
	return err
}

func many(n int) []river.InsertManyParams {
	params := make([]river.InsertManyParams, n)
	for i := range params {
		params[i].Args = job
	}
	return params
}

func silent() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
