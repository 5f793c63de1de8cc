package openqueue

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// What the server refuses, by SQLSTATE, for errors.Is. The *pgconn.PgError with message, detail and
// hint is in the chain, for errors.As.
var (
	ErrArgument     = errors.New("argument that makes no sense") // OQ001
	ErrLeaseLost    = errors.New("lease lost")                   // OQ002, and why a job's context ended
	ErrNoQueue      = errors.New("no such queue")                // OQ003
	ErrDuplicate    = errors.New("duplicate key")                // OQ005
	ErrQueueFull    = errors.New("queue full")                   // OQ006
	ErrNotPermitted = errors.New("not permitted")                // 42501
	ErrTryAgain     = errors.New("try the transaction again")    // 40001, 40P01
)

// Why a job's context ended, by context.Cause, beside ErrLeaseLost.
var (
	ErrCancelled = errors.New("job cancelled")
	ErrDraining  = errors.New("worker is ending")
)

var byState = map[string]error{
	"OQ001": ErrArgument,
	"OQ002": ErrLeaseLost,
	"OQ003": ErrNoQueue,
	"OQ005": ErrDuplicate,
	"OQ006": ErrQueueFull,
	"42501": ErrNotPermitted,
	"40001": ErrTryAgain,
	"40P01": ErrTryAgain,
}

// serverError is an error with a refusal of the server in its chain, which is also one of the errors above.
type serverError struct {
	err  error
	pg   *pgconn.PgError
	kind error
}

func (e *serverError) Error() string {
	text := e.err.Error()
	if e.err == e.pg {
		text = fmt.Sprintf("%s (SQLSTATE %s)", e.pg.Message, e.pg.Code)
	}
	if e.pg.Hint != "" {
		text += ": " + e.pg.Hint
	}
	return text
}

func (e *serverError) Unwrap() []error { return []error{e.kind, e.err} }

func wrap(err error) error {
	var pg *pgconn.PgError
	if err == nil || !errors.As(err, &pg) {
		return err
	}
	kind, known := byState[pg.Code]
	if !known || errors.Is(err, kind) {
		return err
	}
	return &serverError{err, pg, kind}
}

// refused says whether the server answered; else the connection failed, and the call may be repeated.
// Class 57 is the server going away, 08 a pooler that lost it, 53 a server without room, 25006 a standby, or what
// was the primary: another connection may lead to the one that is.
func refused(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "57", "08", "53", "40":
		return false
	}
	return pg.Code != "25006"
}

// judged says whether it was the call that the server refused: not the session, nor a statement that is not where it was
// prepared, nor a lock that another transaction will give back.
func judged(err error) bool {
	var session *notAsked
	var pool *pgconn.ConnectError
	return refused(err) && !locked(err) && !misled(err) && !errors.As(err, &session) && !errors.As(err, &pool)
}

// unfit says whether an ack was refused for what it has itself, as by its result, or by what hangs on its job. Whatever else
// the server refuses acks for, as it may be broken or not ours to write to, is no failure of a job that was done.
func unfit(err error) bool {
	var pg *pgconn.PgError
	if !judged(err) || !errors.As(err, &pg) {
		return false
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "OQ", "22", "23", "54":
		return true
	}
	return false
}

// misled says whether the call came to another session than the one before it, behind a pooler.
func misled(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "26000" || pg.Code == "42P05")
}

// locked says whether the call found a row that another transaction holds, and did not wait for it any longer.
func locked(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

// verdict is what a handler returns when it wants something else than an ordinary retry.
type verdict struct {
	err     error
	release bool
	discard bool
	after   time.Duration
}

func (v *verdict) Error() string {
	if v.err != nil {
		return v.err.Error()
	}
	return "snoozed for " + v.after.String()
}

func (v *verdict) Unwrap() error { return v.err }

// Snooze gives the job back for a while, of ten years at most; 0 or less is at once. No attempt is counted. A longer pause
// fails the attempt.
func Snooze(pause time.Duration) error { return &verdict{release: true, after: max(pause, 0)} }

// Discard fails the job for good: it is dead, with err, whatever retries it has left.
func Discard(err error) error { return &verdict{err: known(err), discard: true} }

// RetryAfter fails the attempt, with err; the next one comes after pause, not after the backoff: of ten years at most, and
// 0 or less is at once. After a longer one it comes after the backoff.
func RetryAfter(pause time.Duration, err error) error {
	return &verdict{err: known(err), after: max(pause, time.Microsecond)}
}

func known(err error) error {
	if err == nil {
		return errors.New("no reason given")
	}
	return err
}
