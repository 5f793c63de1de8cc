package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
)

// A tick older than this makes the process unready: its loop is stuck, or the database away.
const staleAfter = 5 * time.Second

// clock is a running daemon.
type clock struct {
	cfg     Config
	log     zerolog.Logger
	metrics *metrics
	loops   []*loop

	leader  bool      // of the tick loop only
	ledAt   time.Time // when that was last asked
	mu      sync.Mutex
	fatal   error
	stopped context.CancelFunc
}

func newClock(cfg Config, log zerolog.Logger) *clock {
	c := &clock{cfg: cfg, log: log, metrics: newMetrics()}
	for _, d := range []duty{
		{"tick", c.tick},
		{"stats", c.stats},
	} {
		l := &loop{duty: d, connect: c.connect, log: log, failed: c.metrics.failed}
		c.loops = append(c.loops, l)
		c.metrics.watch(l)
	}
	return c
}

func run(ctx context.Context, cfg Config, log zerolog.Logger) error {
	return newClock(cfg, log).run(ctx)
}

func (c *clock) run(ctx context.Context) error {
	cfg, log := c.cfg, c.log
	ctx, c.stopped = context.WithCancel(ctx)
	defer c.stopped()

	var wait sync.WaitGroup
	if cfg.HTTPAddr != "" {
		listener, err := net.Listen("tcp", cfg.HTTPAddr)
		if err != nil {
			return fmt.Errorf("OQ_HTTP_ADDR=%s: %w", cfg.HTTPAddr, err)
		}
		server := &http.Server{Handler: c.handler(), ReadHeaderTimeout: 5 * time.Second}
		wait.Add(1)
		go func() {
			defer wait.Done()
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				c.end(fmt.Errorf("http: %w", err))
			}
		}()
		defer func() {
			closeCtx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			_ = server.Shutdown(closeCtx)
			wait.Wait()
		}()
		log.Info().Stringer("addr", listener.Addr()).Msg("http")
	}
	log.Info().Str("version", Version).Str("schema", cfg.Schema).Msg("started")
	var loops sync.WaitGroup
	for _, l := range c.loops {
		loops.Add(1)
		go func() {
			defer loops.Done()
			if err := l.run(ctx); err != nil {
				c.end(err)
			}
		}()
	}
	loops.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fatal == nil {
		log.Info().Msg("stopped")
	}
	return c.fatal
}

// end stops the whole process for the first reason given.
func (c *clock) end(err error) {
	c.mu.Lock()
	if c.fatal == nil {
		c.fatal = err
	}
	c.mu.Unlock()
	c.stopped()
}

func (c *clock) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pg, err := pgx.ParseConfig(c.cfg.DatabaseURL)
	if err != nil {
		return nil, hideURL(err)
	}
	pg.RuntimeParams["application_name"] = "openqueued"
	pg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			c.metrics.failed("warning")
			c.log.Error().Str("sqlstate", n.Code).Msg(n.Message)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, pg)
	if err != nil {
		return nil, err
	}
	// Whatever a duty does can be done again: its commits need not wait for the disk.
	_, err = conn.Exec(ctx, fmt.Sprintf(`set search_path = %s; set synchronous_commit = off;
		set statement_timeout = '30s'; set idle_in_transaction_session_timeout = '30s'`,
		pgx.Identifier{c.cfg.APISchema}.Sanitize()))
	if err == nil {
		err = checkVersion(ctx, conn)
	}
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

const (
	sqlLead = `select oq_lead()`
	sqlTick = `select duty, done from oq_tick($1)`
)

// tick runs every duty once, if this session leads, and sleeps until the next is due.
func (c *clock) tick(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	if time.Since(c.ledAt) > time.Second || !c.leader {
		was := c.leader
		c.leader = false
		if err := conn.QueryRow(ctx, sqlLead).Scan(&c.leader); err != nil {
			return 0, err
		}
		c.ledAt = time.Now()
		c.metrics.lead(c.leader)
		if was != c.leader {
			c.log.Info().Bool("leader", c.leader).Msg("leadership")
		}
	}
	if !c.leader {
		return time.Second, nil
	}
	began := time.Now()
	rows, err := conn.Query(ctx, sqlTick, c.cfg.TickMaxRows)
	if err != nil {
		return 0, err
	}
	next := time.Second
	var name string
	var done int64
	_, err = pgx.ForEachRow(rows, []any{&name, &done}, func() error {
		if name == "sleep_ms" {
			next = min(max(time.Duration(done)*time.Millisecond, time.Millisecond), time.Second)
			return nil
		}
		c.metrics.done(name, done)
		if done > 0 {
			c.log.Debug().Str("duty", name).Int64("done", done).Msg("tick")
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	c.metrics.ticked(time.Since(began))
	return next, nil
}

const sqlStats = `select queue_name, ready, scheduled, waiting, leased, dead, completed,
	coalesce(oldest_ready_seconds, 0)::float8 from oq_stats()`

// stats refreshes the gauges of the queues. It counts rows, so it is not done at every scrape.
func (c *clock) stats(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	rows, err := conn.Query(ctx, sqlStats)
	if err != nil {
		return 0, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[queueStats])
	if err != nil {
		return 0, err
	}
	c.metrics.queues(all)
	return c.cfg.StatsEvery, nil
}

type queueStats struct {
	Queue                                              string
	Ready, Scheduled, Waiting, Leased, Dead, Completed int64
	Oldest                                             float64
}
