package daemon

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
)

// A duty is something to do again and again on a session of its own. It says when to come back.
type duty struct {
	name string
	run  func(ctx context.Context, conn *pgx.Conn) (time.Duration, error)
}

const (
	backoffMin = 100 * time.Millisecond
	backoffMax = 10 * time.Second

	// A standby may be promoted at any moment, and to ask it costs it little.
	standbyPause = time.Second

	connectTimeout = 10 * time.Second

	// Longer than the sessions' statement_timeout: it is for a server that does not answer at all.
	dutyTimeout = 35 * time.Second
)

// loop runs a duty for ever: it connects, again with backoff when the session is lost, and ends with
// its context or, unless it is to stay, when the schema does not fit.
type loop struct {
	duty    duty
	connect func(ctx context.Context) (*pgx.Conn, error)
	log     zerolog.Logger
	failed  func(duty string)
	limit   time.Duration // of one run of the duty
	stay    bool
	beat    atomic.Pointer[time.Time] // when the duty last succeeded, by a clock that nobody sets
	unfit   atomic.Pointer[string]    // why the schema does not fit, while it does not
	trouble atomic.Pointer[string]    // what keeps the duty from being done, while something does
}

func (l *loop) run(ctx context.Context) error {
	pause := backoffMin
	for ctx.Err() == nil {
		conn, err := l.connect(ctx)
		what := "cannot begin a session"
		if err == nil {
			what = "lost the session"
			var worked bool
			worked, err = l.serve(ctx, conn)
			// The server ends the session, and gives its locks back, without our waiting for it.
			closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			_ = conn.Close(closeCtx)
			cancel()
			if worked {
				pause = backoffMin
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		switch sqlstate(err) {
		case "25006":
			what = "the server is a standby, or read-only"
			pause = min(pause, standbyPause)
		case "42501":
			what = "the login lacks a right: is it a member of oq_daemon?"
		}
		l.trouble.Store(&what)
		event := l.log.Warn()
		l.unfit.Store(nil)
		if errors.Is(err, errSchema) {
			if !l.stay {
				return err
			}
			why := err.Error()
			l.unfit.Store(&why)
			event = l.log.Error()
		}
		l.failed(l.duty.name)
		event.Err(err).Str("duty", l.duty.name).Dur("again_in", pause).Msg(what)
		sleep(ctx, pause/2+rand.N(pause/2+1))
		pause = min(2*pause, backoffMax)
	}
	return nil
}

// serve runs the duty on one session until that is lost.
func (l *loop) serve(ctx context.Context, conn *pgx.Conn) (worked bool, err error) {
	pause := backoffMin
	for {
		next, err := l.once(ctx, conn)
		if err == nil {
			l.unfit.Store(nil)
			l.trouble.Store(nil)
			now := time.Now()
			l.beat.Store(&now)
			worked, pause = true, backoffMin
			if !sleep(ctx, next) {
				return worked, nil
			}
			continue
		}
		if ctx.Err() != nil || conn.IsClosed() || errors.Is(err, errSchema) || gone(err) {
			return worked, err
		}
		l.failed(l.duty.name)
		event := l.log.Error()
		if transient(err) {
			event = l.log.Warn()
		}
		what := "duty failed"
		l.trouble.Store(&what)
		event.Err(err).Str("duty", l.duty.name).Dur("again_in", pause).Msg(what)
		if !sleep(ctx, pause) {
			return worked, nil
		}
		pause = min(2*pause, backoffMax)
	}
}

func (l *loop) once(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	return l.duty.run(ctx, conn)
}

// sqlstate is the code of the server's answer; empty: there was none.
func sqlstate(err error) string {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Code
}

// gone is the answer of a database where the queue, or a part of it, was removed or made anew under this session: the
// next one looks at the version again. Or of a standby, or of what was the primary: another connection may lead to the one that is.
func gone(err error) bool {
	switch sqlstate(err) {
	case "3F000", "42883", "42P01", "42704", "XX000", // schema, function, table, type; a cached oid
		"25006": // read-only
		return true
	}
	return false
}

// transient errors go away by themselves.
func transient(err error) bool {
	code := sqlstate(err)
	switch code {
	case "", "40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03":
		return true
	}
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53")
}

// sleep is false when the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
