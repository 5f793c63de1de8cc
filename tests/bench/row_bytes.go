package main

import (
	"context"
	"fmt"
	"time"
)

// B10: how many bytes does a finished job cost, of write-ahead log and of tables?
//
// Each turn has a database of its own and nobody else on the server: jobs are enqueued, leased and
// acked, then everything is vacuumed. Three passes make the free space that a queue in use has (an
// index page that a VACUUM empties is there to be used only after the next one), the fourth one counts,
// between two checkpoints. The log reaches to the end of the VACUUM, because
// what a queue leaves to VACUUM is part of its price and autovacuum may do any of it earlier; the
// daemon's writes count too. With full_page_writes every page that the pass touches first is in the
// log as a whole, once: so is the space that either side uses again, as it is in production once a
// checkpoint. That all jobs are enqueued before the first is leased is the worst case for narrow
// tables, which reuse a few pages when consumers keep up. Tables count with indexes and TOAST, by
// what they have grown: openqueue's history stays until its generation is truncated, the textbook's
// for ever.
func (b *bench) bytesPerJob(ctx context.Context) ([]row, error) {
	type use struct {
		work    string
		jobs    int64
		produce func(t *target) crew
		n       int // jobs a lease
	}
	type method struct {
		who string
		c   contender
		by  func(t *target, clients, n int, empty step) crew
	}
	methods := []method{{"openqueue", ours, leaseAck}, {"textbook", textbook, leaseAck}, {"oq_next", ours, leaseByNext}}
	var rows []row
	for _, u := range []use{
		{short(b.size.written) + " jobs one by one", b.size.written, func(t *target) crew {
			return crew{size: 4, role: t.producer, step: enqueueOne, count: true}
		}, 1},
		{short(10*b.size.written) + " jobs, bulk by 1000, lease + ack by 100", 10 * b.size.written, func(t *target) crew {
			return crew{size: 2, role: t.producer, step: enqueueBulk(1000), count: true}
		}, 100},
	} {
		var wal, tables [3]row
		for round := range b.size.rounds {
			for i, m := range methods {
				log, grown, err := b.bytesOf(ctx, m.who, m.c, u.jobs, u.produce, func(t *target) crew {
					return m.by(t, 4, u.n, dry)
				})
				if err != nil {
					return nil, fmt.Errorf("%s: %w", m.who, err)
				}
				b.progress("B10 %s: round %d, %s: %.0f bytes of log, %.0f of tables a job", u.work, round+1, m.who, log, grown)
				wal[i] = row{id: "B10", work: "write-ahead log, " + u.work, who: m.who, unit: "bytes/job",
					values: append(wal[i].values, log)}
				tables[i] = row{id: "B10", work: "tables, " + u.work, who: m.who, unit: "bytes/job",
					values: append(tables[i].values, grown)}
			}
		}
		for _, r := range [][3]row{wal, tables} {
			rows = append(rows, r[0].versus(r[1], atMost(1)), r[2].versus(r[1], atMost(1)), r[1])
		}
	}
	return rows, nil
}

func (b *bench) bytesOf(ctx context.Context, who string, c contender, jobs int64,
	produce, consume func(*target) crew) (wal, tables float64, err error) {

	t, err := b.fresh(ctx, c, "b10_"+who)
	if err != nil {
		return 0, 0, err
	}
	var before, after footprint
	var finished int64
	for range 4 {
		if before, err = t.footprint(ctx); err != nil {
			return 0, 0, err
		}
		finished = t.finished
		m := measurement{slice: time.Second, slices: 1000, jobs: jobs} // by jobs, not by time
		for _, c := range []crew{produce(t), consume(t)} {
			if _, err := t.measure(ctx, m, c); err != nil {
				return 0, 0, err
			}
		}
		if err := t.rest(ctx); err != nil { // ends with VACUUM and a checkpoint
			return 0, 0, err
		}
		if after, err = t.footprint(ctx); err != nil {
			return 0, 0, err
		}
	}
	if err := t.verify(ctx); err != nil {
		return 0, 0, err
	}
	done := float64(t.finished - finished)
	return float64(after.wal-before.wal) / done, float64(after.tables-before.tables) / done, b.drop(ctx, t)
}

type footprint struct{ wal, tables int64 }

// footprint is where the log stands and how large all tables are.
func (t *target) footprint(ctx context.Context) (f footprint, err error) {
	err = t.conn.QueryRow(ctx, `
		select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
		       (select sum(pg_total_relation_size(c.oid))
		          from pg_class c join pg_namespace n on n.oid = c.relnamespace
		         where c.relkind = 'r' and n.nspname not like 'pg\_%' and n.nspname <> 'information_schema')::bigint`,
	).Scan(&f.wal, &f.tables)
	return f, err
}
