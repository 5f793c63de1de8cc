package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// B9: what does it cost that jobs are spread over many queues, or that they must keep an order in
// many groups?
//
// The same jobs, clients and calls on both sides, and a database of its own for each. Producers
// name the queues (or groups) in turn; a worker of many queues leases from each in turn as well,
// since no call leases from several, and each client begins at another place in the circle. So
// every call meets a queue that its session has not touched for a thousand calls: its row, its
// mark and its part of the index are as cold as they get. Each queue has more jobs than one
// lease takes, so that leases are as full as on one queue. With groups there is one queue, the
// first job of each group is ready and an ack lets the next one go: that work is in the row, and
// the other side has jobs without a group.
func (b *bench) manyQueues(ctx context.Context) ([]row, error) {
	n := b.size.queues
	one, err := b.fresh(ctx, ours, "b9_one")
	if err != nil {
		return nil, err
	}
	many, err := b.fresh(ctx, ours, "b9_many")
	if err != nil {
		return nil, err
	}
	many.queues = nil
	for i := range n {
		many.queues = append(many.queues, fmt.Sprintf("bench.%d", i))
	}
	rows, err := b.spreadRows(ctx, fmt.Sprintf("%s queues", short(n)), many, one, b.size.bigBacklog)
	if err != nil {
		return nil, err
	}
	if err := b.dropOpen(ctx); err != nil {
		return nil, err
	}

	if one, err = b.fresh(ctx, ours, "b9_plain"); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s groups", short(b.size.groups))
	switch supported, err := one.hasGroups(ctx); {
	case err != nil:
		return nil, err
	case !supported:
		return append(rows, row{id: "B9", work: name, who: "openqueue", unit: "not supported by this schema"}), nil
	}
	grouped := ours
	grouped.enqueue = "select oq_enqueue($1, $2, group_key => $3)"
	grouped.load = fmt.Sprintf("select count(oq_enqueue($1, $2::jsonb, $4::int, group_key => 'g' || i %% %d))"+
		" from generate_series(1, $3::int) i", b.size.groups)
	if many, err = b.fresh(ctx, grouped, "b9_groups"); err != nil {
		return nil, err
	}
	many.groups = b.size.groups
	// A group's jobs are loaded one by one, and 10 of each are enough.
	groups, err := b.spreadRows(ctx, name, many, one, b.size.backlog)
	return append(rows, groups...), err
}

// spreadRows compares many with one: coming in, and going out in B3's and B4's ways.
func (b *bench) spreadRows(ctx context.Context, name string, many, one *target, backlog int64) ([]row, error) {
	var rows []row
	compare := func(work string, turn func(t *target) entrant) error {
		m, o := turn(many), turn(one)
		m.who, o.who = name, "one queue"
		got, err := b.rounds(ctx, "B9", work, b.size.rounds, m, o)
		if err == nil {
			rows = append(rows, got[0].versus(got[1], atLeast(0.9)), got[1])
		}
		return err
	}
	for _, way := range ways {
		err := compare(way.work+", "+name, func(t *target) entrant {
			m := b.window(b.size.window / 2)
			m.jobs = backlog / 2
			return entrant{target: t, m: m, prepare: filled(t, backlog, 1),
				crews: []crew{leaseAck(t, way.clients, way.n, dry)}}
		})
		if err != nil {
			return nil, err
		}
	}
	err := compare("enqueue one a transaction, 8 clients, "+name, func(t *target) entrant {
		return entrant{target: t, m: b.window(b.size.window / 2), prepare: t.settle,
			crews: []crew{{size: 8, role: t.producer, step: enqueueOne, count: true}}}
	})
	return rows, err
}

// hasGroups asks the schema once, and takes no other refusal than "not supported" for an answer.
func (t *target) hasGroups(ctx context.Context) (bool, error) {
	tx, err := t.conn.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	_, err = tx.Exec(ctx, "select oq_enqueue('bench', '{}', group_key => 'g')")
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "0A000" {
		return false, nil
	}
	return err == nil, err
}
