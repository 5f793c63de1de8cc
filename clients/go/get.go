package openqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Texts and times, so that every query mode of pgx can use them, and none is null but what has a nil.
const (
	sqlGet = `select job_id, queue_name, state, coalesce(priority, 0), attempt, coalesce(max_retries, 0), coalesce(failures, 0),
		coalesce(lost_leases, 0), nullif(run_at, '-infinity'), created_at, expires_at, coalesce(worker_id, ''), leased_at, lease_expires_at, finished_at,
		coalesce(reason, ''), coalesce(group_key, ''), coalesce(unique_key, ''), payload::text, headers::text, tags, progress::text,
		result::text, coalesce(error, '')
		from oq_get($1::bigint)`
	sqlResult = `select state, result::text, coalesce(error, '') from oq_result($1::bigint)`
)

// JobRow is a job as oq_jobs shows it. What does not hold of it, or not any more, is the zero value: a job that is over may
// have lost what its producer said (Priority, Payload, Headers, Tags, keys) before its outcome.
type JobRow struct {
	ID             int64
	Queue          string
	State          string // scheduled, waiting, ready, leased, completed, dead, cancelled or expired
	Priority       int    // higher first
	Attempt        int    // how many were begun
	MaxRetries     int    // its own, or the queue's
	Failures       int    // attempts that failed, since the last redrive; 0 of a job that is over but for a dead one
	LostLeases     int    // since the last redrive
	RunAt          time.Time
	CreatedAt      time.Time
	ExpiresAt      time.Time // the end of its time to live
	WorkerID       string    // who has it, or had it last
	LeasedAt       time.Time
	LeaseExpiresAt time.Time
	FinishedAt     time.Time // when it ended or died
	Reason         string    // why it is dead: retries_exhausted, no_retry or lost_lease
	GroupKey       string
	UniqueKey      string
	Payload        json.RawMessage
	Headers        Headers
	Tags           []string
	Progress       json.RawMessage // what Job.Progress said last, while it is leased
	Result         json.RawMessage // what Job.SetResult said, once it is completed
	Error          string          // the last attempt's, or why it ended
}

// Get is a job in any state, or nil where it is unknown, gone after its queue's retention, or not for the caller to
// see: that takes the role oq_observer.
func Get(ctx context.Context, db DB, jobID int64) (*JobRow, error) {
	var r JobRow
	var runAt, createdAt, expiresAt, leasedAt, leaseExpiresAt, finishedAt *time.Time
	var payload, headers, progress, result *string
	err := db.QueryRow(ctx, sqlGet, jobID).Scan(&r.ID, &r.Queue, &r.State, &r.Priority, &r.Attempt, &r.MaxRetries, &r.Failures,
		&r.LostLeases, &runAt, &createdAt, &expiresAt, &r.WorkerID, &leasedAt, &leaseExpiresAt, &finishedAt,
		&r.Reason, &r.GroupKey, &r.UniqueKey, &payload, &headers, &r.Tags, &progress, &result, &r.Error)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err == nil && headers != nil {
		err = json.Unmarshal([]byte(*headers), &r.Headers)
	}
	if err != nil {
		return nil, wrap(err)
	}
	r.RunAt, r.CreatedAt, r.ExpiresAt = orZero(runAt), orZero(createdAt), orZero(expiresAt)
	r.LeasedAt, r.LeaseExpiresAt, r.FinishedAt = orZero(leasedAt), orZero(leaseExpiresAt), orZero(finishedAt)
	r.Payload, r.Progress, r.Result = raw(payload), raw(progress), raw(result)
	return &r, nil
}

// JobResult is what became of a job.
type JobResult struct {
	State  string          // as in JobRow
	Result json.RawMessage // what Job.SetResult said, once it is completed; nil without one
	Error  string          // the last attempt's, or why it ended
}

// Decode reads the result into what v points to. Where there is none that is an error.
func (r *JobResult) Decode(v any) error {
	if r.Result == nil {
		return fmt.Errorf("no result: the job is %s", r.State)
	}
	return json.Unmarshal(r.Result, v)
}

// Result is a job's state with its result or error, or nil as with Get.
func Result(ctx context.Context, db DB, jobID int64) (*JobResult, error) {
	var r JobResult
	var result *string
	err := db.QueryRow(ctx, sqlResult, jobID).Scan(&r.State, &result, &r.Error)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(err)
	}
	r.Result = raw(result)
	return &r, nil
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

func raw(text *string) json.RawMessage {
	if text == nil {
		return nil
	}
	return json.RawMessage(*text)
}
