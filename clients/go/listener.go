package openqueue

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	sqlListen   = `select oq_listen($1::text)`
	sqlUnlisten = `select oq_unlisten($1::text)`
	// probeEvery is how often a listening session is tried: one that died without a word is made again.
	probeEvery = 15 * time.Second
)

// listener is the session that listens while a lane sleeps. Whoever wants wake-ups says so and goes to
// sleep: it is woken once when listening has begun, for what came in between, and then by notifications.
// Where listening fails there is polling.
type listener struct {
	w *Worker
	s *session

	mu     sync.Mutex
	users  int
	on     bool
	change chan struct{} // users changed
}

func newListener(w *Worker) *listener {
	l := &listener{w: w, s: w.session("listener"), change: make(chan struct{}, 1)}
	l.s.wakes = l.wake
	return l
}

func (l *listener) wake() {
	for _, lane := range l.w.lanes {
		lane.nudge()
	}
}

func (l *listener) use(n int) {
	l.mu.Lock()
	l.users += n
	l.mu.Unlock()
	select {
	case l.change <- struct{}{}:
	default:
	}
}

func (l *listener) state() (wanted, on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.users > 0, l.on
}

func (l *listener) set(on bool) {
	l.mu.Lock()
	l.on = on
	l.mu.Unlock()
}

// listening says whether a wake-up can be trusted to come.
func (l *listener) listening() bool { _, on := l.state(); return on }

func (l *listener) run(ctx context.Context) {
	defer l.s.close()
	if l.w.Pooler {
		return
	}
	failures := 0
	var asked time.Time
	for ctx.Err() == nil {
		wanted, on := l.state()
		var err error
		switch {
		case wanted && (!on || time.Since(asked) >= probeEvery):
			err = l.call(ctx, sqlListen)
			asked = time.Now()
			if err == nil && !on {
				l.set(true)
				l.wake()
			}
		case wanted:
			err = l.wait(ctx, probeEvery-time.Since(asked))
		case on:
			l.set(false)
			err = l.call(ctx, sqlUnlisten)
		default:
			select {
			case <-ctx.Done():
			case <-l.change:
			}
		}
		if err == nil {
			failures = 0
			continue
		}
		l.set(false)
		if ctx.Err() == nil {
			failures++
			l.w.Logger.Warn("listening failed, polling goes on", "error", err)
			sleep(ctx, backoff(failures))
		}
	}
}

func (l *listener) call(ctx context.Context, sql string) error {
	return l.s.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, l.w.Queue)
		return err
	})
}

// wait reads notifications until it is time to probe, or somebody came or went.
func (l *listener) wait(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-l.change:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-watched }()
	conn := l.s.conn
	if conn == nil {
		return nil
	}
	for {
		if err := conn.PgConn().WaitForNotification(ctx); err != nil {
			if ctx.Err() != nil && !conn.IsClosed() {
				return nil
			}
			l.s.close()
			return err
		}
		// OnNotification has woken the lanes.
	}
}
