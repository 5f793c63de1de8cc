// Package openqueuetest helps to test producers and handlers, on a pool or inside a transaction that the
// test rolls back.
package openqueuetest

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	openqueue "github.com/openqueue/openqueue/clients/go"
)

// DrainLimit is how many jobs Drain does at most: a handler that enqueues into its own queue for ever
// fails the test.
const DrainLimit = 10_000

// Drain does the jobs of a queue that are ready, with those that they make ready, and says what became
// of each. A job that is retried later or snoozed is done once. Where db is a transaction, each handler runs in a savepoint of
// it: SQL of the handler that fails there is undone with all that the handler did before, and is the job's failure and
// not the transaction's.
func Drain(t testing.TB, db openqueue.DB, queue string, h openqueue.Handler) []openqueue.Done {
	t.Helper()
	if tx, ok := db.(pgx.Tx); ok {
		h = inSavepoint(tx, h)
	}
	var all []openqueue.Done
	for range DrainLimit {
		d, err := openqueue.WorkOne(context.Background(), db, queue, "openqueuetest", h)
		if err != nil {
			t.Fatalf("draining %s: %v", queue, err)
		}
		if d == nil {
			return all
		}
		all = append(all, *d)
	}
	t.Fatalf("draining %s: still not empty after %d jobs", queue, DrainLimit)
	return nil
}

// inSavepoint is a handler after which the transaction goes on, whatever became of its SQL.
func inSavepoint(tx pgx.Tx, h openqueue.Handler) openqueue.Handler {
	return func(ctx context.Context, job *openqueue.Job) (err error) {
		point, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { // after a panic as well
			end := point.Commit
			if tx.Conn().PgConn().TxStatus() == 'E' {
				end = point.Rollback
			}
			// The handler's context may have ended, as by a Timeout.
			if failed := end(context.WithoutCancel(ctx)); failed != nil {
				err = errors.Join(err, failed)
			}
		}()
		return h(ctx, job)
	}
}

// Job is an unfinished job of a queue.
type Job struct {
	ID       int64
	State    string
	Priority int
	Payload  json.RawMessage
}

const sqlJobs = `select job_id, state, priority, payload::text from oq_jobs
	where queue_name = $1::text and state in ('ready', 'scheduled', 'waiting', 'leased') order by job_id`

// Jobs are the unfinished jobs of a queue, in the order in which they were enqueued.
func Jobs(t testing.TB, db openqueue.DB, queue string) []Job {
	t.Helper()
	rows, err := db.Query(context.Background(), sqlJobs, queue)
	if err != nil {
		t.Fatalf("jobs of %s: %v", queue, err)
	}
	jobs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (j Job, err error) {
		var payload string
		err = row.Scan(&j.ID, &j.State, &j.Priority, &payload)
		j.Payload = json.RawMessage(payload)
		return j, err
	})
	if err != nil {
		t.Fatalf("jobs of %s: %v", queue, err)
	}
	return jobs
}
