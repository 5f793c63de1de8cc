package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Who can keep VACUUM from removing dead rows, and what it looks like from inside:
//
//	reader    an analyst or pg_dump: a REPEATABLE READ snapshot, idle in transaction
//	writer    a transaction that has written (it has a transaction id) and forgot to commit
//	prepared  the same, prepared: no session holds it and none can be ended
//	standby   a replica with hot_standby_feedback that went away: its physical slot keeps an xmin
//	slot      a logical replication slot that nobody reads: it keeps only a catalog_xmin, which
//	          holds back VACUUM in the catalogs and the write-ahead log, not in users' tables
//
// What each really does is tried out at the start of each run and told below the table.
var holderNames = map[string]string{
	"reader": "a held snapshot", "writer": "an open writer", "prepared": "a prepared transaction",
	"standby": "a standby's slot", "slot": "a logical slot",
}

// hold begins to hold in t's database. release ends it and must be called.
func (b *bench) hold(ctx context.Context, t *target) (release func() error, err error) {
	name := fmt.Sprintf("%s_holder", b.prefix)
	run := func(sql string) error {
		_, err := t.conn.Exec(context.WithoutCancel(ctx), sql)
		return err
	}
	switch b.holder {
	case "reader":
		release, err = t.holdSession(ctx, "begin isolation level repeatable read; select count(*) from pg_class")
	case "writer":
		if err = run("create table if not exists public.oq_bench_writer (n int)"); err == nil {
			release, err = t.holdSession(ctx, "begin; insert into public.oq_bench_writer values (1)")
		}
	case "prepared":
		if err = b.needs(ctx, "max_prepared_transactions", "0", "more than 0"); err == nil {
			err = run("create table if not exists public.oq_bench_writer (n int)")
		}
		if err == nil {
			_, err = t.conn.PgConn().Exec(ctx, "begin; insert into public.oq_bench_writer values (1); "+
				"prepare transaction '"+name+"'").ReadAll()
			release = func() error { return run("rollback prepared '" + name + "'") }
		}
	case "standby":
		release = func() error { return run("select pg_drop_replication_slot('" + name + "')") }
		if err = t.holdStandby(ctx, name); err != nil {
			release()
		}
	case "slot":
		if err = b.needs(ctx, "wal_level", "replica", "logical"); err == nil {
			err = run("select pg_create_logical_replication_slot('" + name + "', 'pgoutput')")
			release = func() error { return run("select pg_drop_replication_slot('" + name + "')") }
		}
	}
	if err != nil {
		return nil, fmt.Errorf("BENCH_HOLDER=%s: %w", b.holder, err)
	}
	held, err := t.vacuumIsHeld(ctx)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	verdict := "holds back VACUUM in users' tables"
	if !held {
		verdict = "does not hold back VACUUM in users' tables: the run shows what it costs besides"
	}
	b.note(fmt.Sprintf("B6: %s %s.", holderNames[b.holder], verdict))
	return release, nil
}

// needs says what a server must be set to, where the benchmark did not start it itself.
func (b *bench) needs(ctx context.Context, setting, wrong, right string) error {
	var value string
	if err := b.admin.QueryRow(ctx, "select current_setting($1)", setting).Scan(&value); err != nil {
		return err
	}
	if value == wrong || setting == "wal_level" && value != "logical" {
		return fmt.Errorf("the server has %s = %s, want %s", setting, value, right)
	}
	return nil
}

// holdSession leaves a transaction open.
func (t *target) holdSession(ctx context.Context, sql string) (release func() error, err error) {
	c, err := dial(ctx, t.url, "")
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Exec(ctx, sql).ReadAll(); err != nil {
		c.close()
		return nil, err
	}
	return func() error {
		defer c.close()
		_, err := c.conn.Exec(c.ctx, "select count(*) from pg_class; commit").ReadAll()
		return err
	}, nil
}

// holdStandby does what a standby with feedback does: it streams from a slot of its own, says which
// transactions its queries still need, and then goes away. The slot remembers.
func (t *target) holdStandby(ctx context.Context, slot string) error {
	var lsn string
	var xmin int64
	// The slot reserves what it streams from, or a checkpoint may take it away first.
	err := t.conn.QueryRow(ctx, `select lsn::text, pg_snapshot_xmin(pg_current_snapshot())::text::bigint
		from pg_create_physical_replication_slot($1, true)`, slot).Scan(&lsn, &xmin)
	if err != nil {
		return err
	}
	cfg, err := pgconn.ParseConfig(t.url)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["replication"] = "true"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	reading, stop := context.WithCancel(ctx)
	defer stop()
	front := conn.Frontend()
	front.Send(&pgproto3.Query{String: fmt.Sprintf("START_REPLICATION SLOT %s PHYSICAL %s", slot, lsn)})
	if err := front.Flush(); err != nil {
		return err
	}
	for streaming := false; !streaming; {
		msg, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyBothResponse:
			streaming = true
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(msg)
		}
	}
	feedback := []byte{'h'}
	feedback = binary.BigEndian.AppendUint64(feedback, 0)                // the standby's clock: nobody looks
	feedback = binary.BigEndian.AppendUint32(feedback, uint32(xmin))     // xmin and its epoch
	feedback = binary.BigEndian.AppendUint32(feedback, uint32(xmin>>32)) //
	feedback = append(feedback, make([]byte, 8)...)                      // no catalog_xmin
	front.Send(&pgproto3.CopyData{Data: feedback})
	if err := front.Flush(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { // the stream is read, or the server waits for us
		for {
			switch msg, err := conn.ReceiveMessage(reading); msg := msg.(type) {
			case nil:
				ended <- err
				return
			case *pgproto3.ErrorResponse:
				ended <- pgconn.ErrorResponseToPgError(msg)
				return
			}
		}
	}()
	defer func() { stop(); <-ended }()
	for deadline := time.Now().Add(10 * time.Second); ; sleep(ctx, 10*time.Millisecond) {
		var set bool
		err := t.conn.QueryRow(ctx, "select xmin is not null from pg_replication_slots where slot_name = $1", slot).Scan(&set)
		if err != nil || set {
			return err
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("the stream ended: %w", err)
		default:
		}
		if time.Now().After(deadline) {
			return errors.New("the slot took no xmin")
		}
	}
}

// vacuumIsHeld tries it: does a row that was just deleted survive VACUUM? Somebody who happens to look
// at the database, as an analyze does, holds it back for a moment only.
func (t *target) vacuumIsHeld(ctx context.Context) (held bool, err error) {
	run := func(sql string) {
		if err == nil {
			_, err = t.conn.Exec(ctx, sql)
		}
	}
	run("create table public.oq_bench_probe (n int)")
	run("insert into public.oq_bench_probe values (1)")
	run("delete from public.oq_bench_probe")
	held = true
	for try := 0; try < 10 && held && err == nil; try++ {
		if try > 0 {
			sleep(ctx, 50*time.Millisecond)
		}
		run("vacuum (truncate) public.oq_bench_probe")
		if err == nil {
			err = t.conn.QueryRow(ctx, "select pg_relation_size('public.oq_bench_probe') > 0").Scan(&held)
		}
	}
	run("drop table public.oq_bench_probe")
	return held, err
}
