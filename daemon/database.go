package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// A tick older than this makes the process unready: its loop is stuck, or the database away.
const staleAfter = 5 * time.Second

// database is one of those that a daemon serves. They share nothing but the process: each has its own
// loops, sessions and metrics, so none waits for another.
type database struct {
	source
	cfg     Config
	log     zerolog.Logger
	metrics *metrics
	loops   []*loop

	leader bool      // of the tick loop only
	ledAt  time.Time // when that was last asked
	tickAt time.Time // when the next tick is due, if nothing else is before
}

// newDatabase has the loops of a database; with others beside it, no error of its own ends the process.
func newDatabase(cfg Config, s source, others bool, log zerolog.Logger, registry *prometheus.Registry) *database {
	d := &database{source: s, cfg: cfg, log: log.With().Str("database", s.label).Logger()}
	d.metrics = newMetrics(prometheus.WrapRegistererWith(prometheus.Labels{"database": s.label}, registry))
	for _, each := range []duty{
		{"tick", d.tick},
		{"stats", d.stats},
	} {
		l := &loop{duty: each, connect: d.connect, log: d.log, failed: d.failed, limit: dutyTimeout, stay: others}
		d.loops = append(d.loops, l)
		d.metrics.watch(l)
	}
	d.metrics.ready(func() bool { return d.unready() == "" })
	return d
}

// failed counts it, and leadership is asked for anew: a database that is away has no leader here.
func (d *database) failed(loop string) {
	d.metrics.failed(loop)
	if loop == "tick" {
		d.leader = false
		d.metrics.lead(false)
	}
}

// unready says which loop is stuck; a standby's tick loop beats as well.
func (d *database) unready() string {
	var stuck []string
	for _, l := range d.loops {
		if why := l.unfit.Load(); why != nil {
			return *why
		}
		limit := staleAfter
		if l.duty.name == "stats" {
			limit += 2 * d.cfg.StatsEvery
		}
		how := " has not run yet"
		if beat := l.beat.Load(); beat != nil {
			age := time.Since(*beat)
			if age <= limit {
				continue
			}
			how = fmt.Sprintf(" last ran %s ago", age.Round(time.Second))
		}
		if why := l.trouble.Load(); why != nil {
			how += " (" + *why + ")"
		}
		stuck = append(stuck, l.duty.name+how)
	}
	return strings.Join(stuck, "; ")
}

func (d *database) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pg, err := parseURL(d.url)
	if err != nil {
		return nil, err
	}
	pg.RuntimeParams["application_name"] = "openqueued"
	pg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" {
			d.metrics.failed("warning")
			d.log.Error().Str("sqlstate", n.Code).Msg(n.Message)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, pg)
	if err != nil {
		return nil, err
	}
	// Whatever a duty does can be done again: its commits need not wait for the disk. A tick needs READ COMMITTED,
	// whatever the default of the role or the database is; and a duty that fails says so in a warning.
	_, err = conn.Exec(ctx, fmt.Sprintf(`set search_path = %s; set synchronous_commit = off;
		set client_min_messages = 'warning';
		set default_transaction_isolation = 'read committed';
		set statement_timeout = '30s'; set idle_in_transaction_session_timeout = '30s'`,
		pgx.Identifier{d.cfg.APISchema}.Sanitize()))
	if err == nil {
		err = checkVersion(ctx, conn, d.cfg.APISchema)
	}
	if err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// parseURL gives each host of several a part of connectTimeout: one that is mute, as a primary that is gone, must not
// take it from the others.
func parseURL(url string) (*pgx.ConnConfig, error) {
	pg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, hideURL(err)
	}
	hosts := time.Duration(1)
	for _, f := range pg.Fallbacks { // the first is there again where TLS is only preferred
		if f.Host != pg.Host || f.Port != pg.Port {
			hosts++
		}
	}
	if part := connectTimeout / hosts; hosts > 1 && (pg.ConnectTimeout == 0 || pg.ConnectTimeout > part) {
		pg.ConnectTimeout = part
	}
	return pg, nil
}

const (
	sqlLead = `select oq_lead()`
	sqlTick = `select duty, done from oq_tick($1)`
	sqlIdle = `select oq_idle()`

	// idleEvery is how long the first pause after a tick is, before oq_idle says.
	idleEvery = 50 * time.Millisecond
)

// tick runs every duty once, if this session leads, and sleeps until the next is due.
func (d *database) tick(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	if time.Since(d.ledAt) > time.Second || !d.leader {
		was := d.leader
		d.leader = false
		if err := conn.QueryRow(ctx, sqlLead).Scan(&d.leader); err != nil {
			return 0, err
		}
		d.ledAt = time.Now()
		d.metrics.lead(d.leader)
		if was != d.leader {
			d.log.Info().Bool("leader", d.leader).Msg("leadership")
		}
	}
	if !d.leader {
		return time.Second, nil
	}
	if left := time.Until(d.tickAt); left > time.Millisecond {
		var ms int64
		if err := conn.QueryRow(ctx, sqlIdle).Scan(&ms); err != nil {
			return 0, err
		}
		if ms > 0 {
			return min(left, time.Duration(ms)*time.Millisecond), nil
		}
	}
	began := time.Now()
	rows, err := conn.Query(ctx, sqlTick, d.cfg.TickMaxRows)
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
		d.metrics.done(name, done)
		if done > 0 {
			d.log.Debug().Str("duty", name).Int64("done", done).Msg("tick")
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	d.metrics.ticked(time.Since(began))
	d.tickAt = time.Now().Add(next)
	return min(next, idleEvery), nil
}

const sqlStats = `select queue_name, ready, scheduled, waiting, leased, dead, completed,
	coalesce(oldest_ready_seconds, 0)::float8 from oq_stats()`

// stats refreshes the gauges of the queues. It counts rows, so it is not done at every scrape.
func (d *database) stats(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	rows, err := conn.Query(ctx, sqlStats)
	if err != nil {
		return 0, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[queueStats])
	if err != nil {
		return 0, err
	}
	d.metrics.queues(all)
	return d.cfg.StatsEvery, nil
}

type queueStats struct {
	Queue                                              string
	Ready, Scheduled, Waiting, Leased, Dead, Completed int64
	Oldest                                             float64
}
