package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	openqueue "github.com/openqueue/openqueue/clients/go"
)

type task struct {
	Path string `json:"path"`
	Fail string `json:"fail,omitempty"` // once, always
}

type answer struct {
	SHA256 string `json:"sha256"`
	Lines  int    `json:"lines"`
}

// sum is the work: what sha256sum and wc -l say of a file.
func sum(path string) (answer, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return answer{}, err
	}
	h := sha256.Sum256(raw)
	return answer{hex.EncodeToString(h[:]), bytes.Count(raw, []byte("\n"))}, nil
}

// do is what a worker makes of a job; those that are meant to fail do.
func do(_ context.Context, j *openqueue.Job, t task) error {
	if t.Fail == "always" || t.Fail == "once" && j.Attempt == 1 {
		return errors.New(onPurpose)
	}
	a, err := sum(t.Path)
	if err != nil {
		return err
	}
	return j.SetResult(a)
}

const onPurpose = "failed on purpose"

// worker works until its context ends, finishing then what it runs, or until there was nothing to do
// for long: nobody may be left to end it.
func worker(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("worker", flag.ContinueOnError)
	queue := flags.String("queue", "", "queue to work on")
	name := flags.String("name", "", "worker id")
	lease := flags.Duration("lease", 3*time.Second, "how long a lease lasts")
	batch := flags.Int("batch", 20, "jobs a lease")
	pause := flags.Duration("pause", 0, "in each job")
	idle := flags.Duration("idle", 30*time.Second, "end after this long without a job")
	if err := flags.Parse(args); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	busy := time.AfterFunc(*idle, stop)
	defer busy.Stop()
	w := &openqueue.Worker{
		Pool: pool, Queue: *queue, ID: *name, Lease: *lease, Batch: *batch, Concurrency: 1,
		Handler: openqueue.Handle(do),
		Middleware: []openqueue.Middleware{func(next openqueue.Handler) openqueue.Handler {
			return func(ctx context.Context, j *openqueue.Job) error {
				busy.Stop()
				defer busy.Reset(*idle)
				err := next(ctx, j)
				time.Sleep(*pause)
				return err
			}
		}},
		Observe: func(e openqueue.Event) {
			if e.State == "lost" {
				fmt.Fprintf(os.Stderr, "%s: the lease of job %d was lost\n", *name, e.Job.ID)
			}
		},
	}
	return w.Run(ctx)
}
