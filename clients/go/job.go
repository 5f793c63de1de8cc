package openqueue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	sqlAckTx    = `select oq_ack($1::bigint, $2::bigint, $3::jsonb, true)`
	sqlAck      = `select oq_ack($1::bigint, $2::bigint, $3::jsonb)`
	sqlNack     = `select oq_nack($1::bigint, $2::bigint, $3::text, $4::boolean, $5::interval)`
	sqlRelease  = `select oq_release($1::bigint, $2::bigint, $3::interval)`
	sqlProgress = `select oq_heartbeat($1::bigint, $2::bigint, $3::int, $4::jsonb)`
	sqlThrottle = `select oq_throttle($1::text, $2::timestamptz, $3::text)`
)

// Job is a leased job in the hands of its handler.
type Job struct {
	ID         int64
	Token      int64 // rises with each lease of the job: pass it on to what must not be done twice
	Queue      string
	Payload    json.RawMessage
	Headers    Headers
	Priority   int
	Attempt    int // counts from 1
	MaxRetries int
	GroupKey   string
	CreatedAt  time.Time

	hold   hold
	result *string
	inTx   bool // acked by AckTx, so that a heartbeat would wait for the transaction; guarded as hold is
	db     DB   // where there is no worker
	lane   *lane
	took   time.Duration
}

// hold is what the worker knows of the lease. The lane's lock guards it.
type hold struct {
	since  time.Time // of the lease, or the last heartbeat, by our clock
	lasts  time.Duration
	over   bool // finished and the server told, or nobody's any more
	cancel context.CancelCauseFunc
	gone   error // ErrLeaseLost or ErrCancelled, when the server said so
}

// late says whether the lease is over by the worker's clock. Under the lane's lock.
func (j *Job) late() bool { return time.Since(j.hold.since) > j.hold.lasts }

// hopeless says whether an ack need not be tried any more: it is accepted after the lease's end too, while nobody has the
// job. Under the lane's lock.
func (j *Job) hopeless() bool { return time.Since(j.hold.since) > j.hold.lasts+time.Minute }

// Handler does a job. What it returns is what happens: nil acks it; an error fails the attempt, unless
// it is a Snooze, Discard or RetryAfter; a panic is an error. Its context ends, with a cause, when
// the lease is lost (ErrLeaseLost), the job is cancelled (ErrCancelled), or the worker's time to
// drain is over (ErrDraining: an error then gives the job back, and no attempt is counted).
type Handler func(ctx context.Context, job *Job) error

// Middleware wraps a handler.
type Middleware func(Handler) Handler

// Timeout is a middleware that ends a job's context after so long.
func Timeout(d time.Duration) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, job *Job) error {
			ctx, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			return next(ctx, job)
		}
	}
}

// Handle is a handler of payloads of type T. A payload that is none fails the attempt.
func Handle[T any](do func(ctx context.Context, job *Job, payload T) error) Handler {
	return func(ctx context.Context, job *Job) error {
		var payload T
		if err := json.Unmarshal(job.Payload, &payload); err != nil {
			return fmt.Errorf("payload: %w", err)
		}
		return do(ctx, job, payload)
	}
}

// Handler is Handle for the queue's type.
func (q Queue[T]) Handler(do func(ctx context.Context, job *Job, payload T) error) Handler {
	return Handle(do)
}

// SetResult is what the job's ack says: JSON of at most 1 MB, for Result and Get during the queue's retention.
func (j *Job) SetResult(v any) error {
	body, err := encode(v)
	if err != nil {
		return err
	}
	j.result = &body
	return nil
}

// Progress shows v in oq_jobs, as JSON of at most 64 kB, and is a heartbeat: ErrLeaseLost or ErrCancelled say to stop, and
// end the handler's context as well. In a worker it goes over the connection of the heartbeats, so that handlers may hold
// the whole pool, and takes no longer than a third of the lease; any other error says that v may not be shown. It waits
// for nobody: where another transaction is about to end the job, or AckTx has acked it, v is left out without an error.
func (j *Job) Progress(ctx context.Context, v any) error {
	body, err := encode(v)
	if err != nil {
		return err
	}
	if j.lane == nil {
		if j.inTx {
			return nil
		}
		var status string
		if err := j.db.QueryRow(ctx, sqlProgress, j.ID, j.Token, nil, body).Scan(&status); err != nil {
			return wrap(err)
		}
		return j.told(status, time.Now())
	}
	w := j.lane.w
	if inTx, gone := j.lane.standing(j); inTx || gone != nil {
		return gone
	}
	var gone error
	err = w.apart(ctx, w.beats, w.beatTime(), func(ctx context.Context, conn *pgx.Conn) error {
		var status string
		sent := time.Now()
		// No longer: the heartbeats of all other jobs wait for it.
		err := conn.QueryRow(ctx, sqlProgress+" from set_config('lock_timeout', '10', true)", j.ID, j.Token, nullable(w.leaseSeconds()), body).Scan(&status)
		if err == nil {
			gone = j.told(status, sent)
		}
		return err
	})
	switch {
	case locked(err):
		return nil
	case err != nil:
		return err
	}
	return gone
}

// told takes the answer of a heartbeat.
func (j *Job) told(status string, sent time.Time) error {
	var gone error
	switch status {
	case "ok":
	case "cancelled":
		gone = ErrCancelled
	default:
		gone = ErrLeaseLost
	}
	if j.lane != nil {
		if gone == nil {
			j.lane.extended(j, sent)
		} else {
			j.lane.lose(j, gone)
		}
	}
	return gone
}

// Throttle keeps the job's queue, or its group where it has one, from everybody until a time; one that has passed lifts
// it. In a worker it goes over a connection of its own, made by the first call, and takes Worker.Timeout at most.
func (j *Job) Throttle(ctx context.Context, until time.Time) error {
	call := func(ctx context.Context, db DB) error {
		_, err := db.Exec(ctx, sqlThrottle, j.Queue, until, nullable(j.GroupKey))
		return wrap(err)
	}
	if j.lane == nil {
		return call(ctx, j.db)
	}
	w := j.lane.w
	return w.apart(ctx, w.throttles, w.Timeout, func(ctx context.Context, conn *pgx.Conn) error { return call(ctx, conn) })
}

// AckTx acks the job in the caller's transaction, so that what it did there takes effect once, with the
// ack, or not at all: ErrLeaseLost fails the transaction, and ends the handler's context. The caller commits. A handler
// that called it without an error returns the commit's: nil says that the job is acked. After an error of AckTx nil acks
// it as without a transaction.
func (j *Job) AckTx(ctx context.Context, tx DB) error {
	var acked bool
	twice := j.setInTx(true)
	err := wrap(tx.QueryRow(ctx, sqlAckTx, j.ID, j.Token, j.result).Scan(&acked))
	if err != nil {
		j.setInTx(false)
	}
	if j.lane != nil && !twice && errors.Is(err, ErrLeaseLost) {
		j.lane.lose(j, ErrLeaseLost)
	}
	return err
}

func (j *Job) setInTx(yes bool) (was bool) {
	if j.lane != nil {
		j.lane.mu.Lock()
		defer j.lane.mu.Unlock()
	}
	was, j.inTx = j.inTx, yes
	return was
}

// Beginner begins transactions: a pool or a connection.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Transact runs do and the ack in one transaction, again (up to five times) where a stricter isolation
// level asks for it. Its error is do's, the ack's or the commit's; then all is rolled back, and what the handler returns is
// what happens: nil acks the job.
func (j *Job) Transact(ctx context.Context, db Beginner, do func(ctx context.Context, tx pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := wrap(pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if err := do(ctx, tx); err != nil {
				return err
			}
			return j.AckTx(ctx, tx)
		}))
		if err != nil {
			j.setInTx(false)
		}
		if try == 5 || !errors.Is(err, ErrTryAgain) {
			return err
		}
	}
}

// panicked is a panic as the job's error, with where it came from.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v\n%s", p.value, p.stack) }

// call runs the handler.
func (j *Job) call(ctx context.Context, h Handler) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicked{v, debug.Stack()}
		}
	}()
	if err = h(ctx, j); err != nil {
		_ = err.Error() // What panics in it, as in that of a nil *E, is the job's failure and not the process's.
	}
	return err
}

// fail reports what the handler returned, if it was an error, and says what became of the job. An
// empty state: the lease was lost.
func (j *Job) fail(ctx context.Context, db DB, err error) (state string, refusal error) {
	var v *verdict
	if !errors.As(err, &v) {
		v = &verdict{err: err}
	}
	state, refusal = j.tell(ctx, db, v, err)
	if v.after > 0 && errors.Is(refusal, ErrArgument) {
		// A pause that the server does not take.
		failed := errors.New(err.Error() + ": " + refusal.Error())
		if state, err := j.tell(ctx, db, &verdict{err: failed}, failed); err == nil {
			return state, nil
		}
	}
	return state, refusal
}

// tell is one try of fail.
func (j *Job) tell(ctx context.Context, db DB, v *verdict, err error) (state string, refusal error) {
	from := ""
	if j.lane != nil { // Else it may be the caller's transaction, whose setting it would be.
		from = " from " + sqlNoWait
	}
	if v.release {
		var given bool
		err := db.QueryRow(ctx, sqlRelease+from, j.ID, j.Token, nullable(interval(v.after))).Scan(&given)
		if given {
			state = "released"
		}
		return state, wrap(err)
	}
	var after any
	if v.after > 0 {
		after = interval(v.after)
	}
	var to *string
	err = db.QueryRow(ctx, sqlNack+from, j.ID, j.Token, legible(err.Error()), !v.discard, after).Scan(&to)
	if to != nil {
		state = *to
	}
	return state, wrap(err)
}

// legible is text that PostgreSQL takes.
func legible(s string) string {
	if len(s) > 20_000 {
		s = s[:20_000]
	}
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if r := []rune(s); len(r) > 10_000 {
		s = string(r[:10_000])
	}
	return s
}

const sqlLeaseOne = `select job_id, lease_token, queue_name, payload::text, headers, priority, attempt, max_retries,
	coalesce(group_key, ''), created_at from oq_lease($1::text, $2::text, $3::int, 1)`

// Done is what became of a job.
type Done struct {
	*Job
	Err   error  // what the handler returned
	State string // completed, scheduled, ready, dead, expired, released, or empty: the lease was lost
}

// WorkOne leases one job, does it and reports it, all on db and without a heartbeat: for a test, or a
// program that runs now and then. Nil where there is no job.
func WorkOne(ctx context.Context, db DB, queue, workerID string, h Handler) (*Done, error) {
	j := &Job{db: db}
	var payload string
	err := db.QueryRow(ctx, sqlLeaseOne, queue, nullable(workerID), nil).Scan(&j.ID, &j.Token, &j.Queue, &payload,
		&j.Headers, &j.Priority, &j.Attempt, &j.MaxRetries, &j.GroupKey, &j.CreatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(err)
	}
	j.Payload = json.RawMessage(payload)
	d := &Done{Job: j}
	if d.Err = j.call(extractTrace(ctx, j.Headers), h); d.Err != nil {
		if d.State, err = j.fail(ctx, db, d.Err); err != nil {
			err = fmt.Errorf("%w, after the handler's error: %w", err, d.Err)
		}
		return d, err
	}
	acked := j.inTx
	if !acked {
		err = db.QueryRow(ctx, sqlAck, j.ID, j.Token, j.result).Scan(&acked)
	}
	if acked {
		d.State = "completed"
	}
	return d, wrap(err)
}
