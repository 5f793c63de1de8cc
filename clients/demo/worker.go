package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	sqlLease     = `select job_id, lease_token, attempt, payload from oq_lease($1, $2, $3, $4)`
	sqlAckMany   = `select count(*) from oq_ack_many($1, $2, $3)`
	sqlNack      = `select oq_nack($1, $2, $3)`
	sqlHeartbeat = `select job_id from oq_heartbeat_many($1, $2, $3) where status <> 'ok'`
	sqlListen    = `select oq_listen($1)`
	sqlUnlisten  = `select oq_unlisten($1)`
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
func do(j leased) (string, error) {
	var t task
	if err := json.Unmarshal(j.Payload, &t); err != nil {
		return "", err
	}
	if t.Fail == "always" || t.Fail == "once" && j.Attempt == 1 {
		return "", errors.New(onPurpose)
	}
	a, err := sum(t.Path)
	if err != nil {
		return "", err
	}
	raw, err := json.Marshal(a)
	return string(raw), err
}

const onPurpose = "failed on purpose"

type leased struct {
	Job, Token int64
	Attempt    int
	Payload    []byte
}

type goWorker struct {
	conn               *pgx.Conn
	queue, name        string
	seconds, batch     int
	pause, idle, third time.Duration
}

// worker leases, works and acks in batches until its context ends, finishing then what it holds, or
// until there was nothing to do for long: nobody may be left to end it.
func worker(ctx context.Context, args []string) error {
	var w goWorker
	flags := flag.NewFlagSet("worker", flag.ContinueOnError)
	flags.StringVar(&w.queue, "queue", "", "queue to work on")
	flags.StringVar(&w.name, "name", "", "worker id")
	flags.IntVar(&w.seconds, "lease", 3, "seconds a lease lasts")
	flags.IntVar(&w.batch, "batch", 20, "jobs a lease")
	flags.DurationVar(&w.pause, "pause", 0, "in each job")
	flags.DurationVar(&w.idle, "idle", 30*time.Second, "end after this long without a job")
	if err := flags.Parse(args); err != nil {
		return err
	}
	w.third = time.Duration(w.seconds) * time.Second / 3
	always := context.WithoutCancel(ctx)
	var err error
	if w.conn, err = pgx.Connect(ctx, os.Getenv("DATABASE_URL")); err != nil {
		return err
	}
	defer w.conn.Close(always)

	listening := false
	busy := time.Now()
	for ctx.Err() == nil && time.Since(busy) < w.idle {
		leasedAt := time.Now()
		jobs, err := w.lease(always)
		if err != nil {
			return err
		}
		if len(jobs) == 0 && !listening {
			if _, err := w.conn.Exec(always, sqlListen, w.queue); err != nil {
				return err
			}
			listening = true
			continue // Once more: something may have come in between.
		}
		if len(jobs) == 0 {
			wait, cancel := context.WithTimeout(ctx, time.Second)
			_, err := w.conn.WaitForNotification(wait)
			cancel()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				return err
			}
			continue
		}
		if listening {
			if _, err := w.conn.Exec(always, sqlUnlisten, w.queue); err != nil {
				return err
			}
			listening = false
		}
		if err := w.work(always, jobs, leasedAt); err != nil {
			return err
		}
		busy = time.Now()
	}
	return nil
}

func (w *goWorker) lease(ctx context.Context) ([]leased, error) {
	rows, err := w.conn.Query(ctx, sqlLease, w.queue, w.name, w.seconds, w.batch)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[leased])
}

// work does the jobs of one lease. A job takes far less than a third of the lease, so the heartbeat's
// place is between two of them.
func (w *goWorker) work(ctx context.Context, jobs []leased, beat time.Time) error {
	var all, tokens, done, doneTokens []int64
	var results []string
	for _, j := range jobs {
		all, tokens = append(all, j.Job), append(tokens, j.Token)
	}
	gone := map[int64]bool{}
	for _, j := range jobs {
		if time.Since(beat) > w.third {
			beat = time.Now()
			rows, err := w.conn.Query(ctx, sqlHeartbeat, all, tokens, w.seconds)
			if err != nil {
				return err
			}
			lost, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			if err != nil {
				return err
			}
			for _, id := range lost {
				gone[id] = true
			}
		}
		if gone[j.Job] {
			continue
		}
		result, err := do(j)
		time.Sleep(w.pause)
		if err != nil {
			if _, err := w.conn.Exec(ctx, sqlNack, j.Job, j.Token, err.Error()); err != nil {
				return err
			}
			continue
		}
		done, doneTokens, results = append(done, j.Job), append(doneTokens, j.Token), append(results, result)
	}
	if len(done) == 0 {
		return nil
	}
	var acked int
	if err := w.conn.QueryRow(ctx, sqlAckMany, done, doneTokens, results).Scan(&acked); err != nil {
		return err
	}
	if acked < len(done) {
		fmt.Fprintf(os.Stderr, "%s: %d leases lost\n", w.name, len(done)-acked)
	}
	return nil
}
