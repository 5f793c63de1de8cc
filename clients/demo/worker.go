package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	sqlLease    = `select job_id, lease_token, attempt, payload from oq_lease($1, $2, max_jobs => $3)`
	sqlAckMany  = `select count(*) from oq_ack_many($1, $2, $3)`
	sqlNack     = `select oq_nack($1, $2, $3)`
	sqlListen   = `select oq_listen($1)`
	sqlUnlisten = `select oq_unlisten($1)`
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

type leased struct {
	Job, Token int64
	Attempt    int
	Payload    []byte
}

// worker leases, works and acks in batches until its context ends; what it holds then it finishes.
func worker(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("worker", flag.ContinueOnError)
	queue := flags.String("queue", "", "queue to work on")
	name := flags.String("name", "", "worker id")
	batch := flags.Int("batch", 20, "jobs a lease")
	slow := flags.Duration("slow", 0, "pause in each job")
	if err := flags.Parse(args); err != nil {
		return err
	}
	always := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer conn.Close(always)

	lease := func() ([]leased, error) {
		rows, err := conn.Query(always, sqlLease, *queue, *name, *batch)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowToStructByPos[leased])
	}
	listening := false
	for ctx.Err() == nil {
		jobs, err := lease()
		if err != nil {
			return err
		}
		if len(jobs) == 0 && !listening {
			if _, err := conn.Exec(always, sqlListen, *queue); err != nil {
				return err
			}
			listening = true
			continue // Once more: something may have come in between.
		}
		if len(jobs) == 0 {
			wait, cancel := context.WithTimeout(ctx, time.Second)
			_, err := conn.WaitForNotification(wait)
			cancel()
			if err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				return err
			}
			continue
		}
		if listening {
			if _, err := conn.Exec(always, sqlUnlisten, *queue); err != nil {
				return err
			}
			listening = false
		}
		if err := work(always, conn, jobs, *slow); err != nil {
			return err
		}
	}
	return nil
}

func work(ctx context.Context, conn *pgx.Conn, jobs []leased, slow time.Duration) error {
	var ids, tokens []int64
	var results []string
	for _, j := range jobs {
		var t task
		err := json.Unmarshal(j.Payload, &t)
		var a answer
		switch {
		case err != nil:
		case t.Fail == "always" || t.Fail == "once" && j.Attempt == 1:
			err = errors.New("failed on purpose")
		default:
			a, err = sum(t.Path)
		}
		time.Sleep(slow)
		if err != nil {
			if _, err := conn.Exec(ctx, sqlNack, j.Job, j.Token, err.Error()); err != nil {
				return err
			}
			continue
		}
		raw, err := json.Marshal(a)
		if err != nil {
			return err
		}
		ids, tokens, results = append(ids, j.Job), append(tokens, j.Token), append(results, string(raw))
	}
	if len(ids) == 0 {
		return nil
	}
	var acked int
	return conn.QueryRow(ctx, sqlAckMany, ids, tokens, results).Scan(&acked)
}
