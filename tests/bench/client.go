package main

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// client is one connection of a load generator. It shares two cores with the server that it
// measures, so it speaks the extended protocol through pgconn with binary values and buffers that
// it keeps, instead of pgx's conversions: half the client's time per call.
type client struct {
	conn     *pgconn.PgConn
	ctx      context.Context
	sql      map[string]string // statement name by text
	notified bool
}

var binaryFormat = []int16{1}

// dial connects and takes a role, as a producer's or a worker's login would have it.
func dial(ctx context.Context, url, role string) (*client, error) {
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	// A context that can end costs a registration in every call. What ends a run is a flag that
	// its loops look at; nothing here waits longer than one statement.
	c := &client{ctx: context.WithoutCancel(ctx), sql: map[string]string{}}
	cfg.RuntimeParams["application_name"] = "openqueue bench"
	cfg.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { c.notified = true }
	if c.conn, err = pgconn.ConnectConfig(ctx, cfg); err != nil {
		return nil, err
	}
	if role != "" {
		if _, err := c.conn.Exec(ctx, "set role "+role).ReadAll(); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

func (c *client) close() { c.conn.Close(c.ctx) }

// query runs a statement, prepared at its first use, and hands each row to each (which may be nil).
// A row is only good until the next one.
func (c *client) query(sql string, each func(row [][]byte), params ...[]byte) error {
	name, ok := c.sql[sql]
	if !ok {
		name = fmt.Sprintf("s%d", len(c.sql))
		if _, err := c.conn.Prepare(c.ctx, name, sql, nil); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		c.sql[sql] = name
	}
	result := c.conn.ExecPrepared(c.ctx, name, params, binaryFormat, binaryFormat)
	for result.NextRow() {
		if each != nil {
			each(result.Values())
		}
	}
	if _, err := result.Close(); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

const (
	oidInt8  = 20
	oidJSONB = 3802
)

func int4(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

func int8(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func readInt8(value []byte) int64 { return int64(binary.BigEndian.Uint64(value)) }

func readInt4(value []byte) int { return int(int32(binary.BigEndian.Uint32(value))) }

func jsonb(text string) []byte { return append([]byte{1}, text...) }

// int8Array appends the binary form of a bigint[] to buf[:0].
func int8Array(buf []byte, values []int64) []byte {
	buf = arrayHeader(buf[:0], oidInt8, len(values))
	for _, v := range values {
		buf = binary.BigEndian.AppendUint32(buf, 8)
		buf = binary.BigEndian.AppendUint64(buf, uint64(v))
	}
	return buf
}

// jsonbArray is the binary form of a jsonb[] that holds one value n times.
func jsonbArray(value []byte, n int) []byte {
	buf := arrayHeader(nil, oidJSONB, n)
	for range n {
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(value)))
		buf = append(buf, value...)
	}
	return buf
}

func arrayHeader(buf []byte, oid uint32, n int) []byte {
	dimensions := uint32(1)
	if n == 0 {
		dimensions = 0
	}
	buf = binary.BigEndian.AppendUint32(buf, dimensions)
	buf = binary.BigEndian.AppendUint32(buf, 0) // no nulls
	buf = binary.BigEndian.AppendUint32(buf, oid)
	if n > 0 {
		buf = binary.BigEndian.AppendUint32(buf, uint32(n))
		buf = binary.BigEndian.AppendUint32(buf, 1) // lower bound
	}
	return buf
}
