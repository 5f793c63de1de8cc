package openqueue

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// session is a connection of the worker's own, made like those of its pool, that is made again when it
// fails. Its hot calls speak to pgconn with binary values: of what a job costs the worker, pgx's
// conversions were the largest part.
type session struct {
	cfg     *pgxpool.Config
	timeout time.Duration
	pooler  bool
	name    string // what its errors speak of

	turn  chan struct{} // taken by a call: one at a time
	conn  *pgx.Conn
	since time.Time         // when the connection was made
	sql   map[string]string // prepared statements: name by text
	wakes func()            // on a notification
}

// open makes the connection where there is none: for a call that nobody may interrupt, as one may that.
func (s *session) open(ctx context.Context) error {
	return s.do(ctx, func(context.Context, *pgx.Conn) error { return nil })
}

// do runs a call, at most timeout long. Whatever fails but by the server's word costs the connection.
func (s *session) do(ctx context.Context, call func(ctx context.Context, conn *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: another call is under way: %w", s.name, ctx.Err())
	}
	if s.conn == nil || s.conn.IsClosed() {
		if err := s.connect(ctx); err != nil {
			return &notAsked{fmt.Errorf("%s: %w", s.name, err)}
		}
	}
	err := call(ctx, s.conn)
	if misled(err) {
		s.drop()
		if !s.pooler {
			return fmt.Errorf("%w (behind a transaction pooler: set Pooler?)", err)
		}
	}
	if err != nil && !refused(err) {
		s.drop()
	}
	return wrap(err)
}

// notAsked is an error of connecting: whatever the server refused, it was the session and not the call.
type notAsked struct{ error }

func (e *notAsked) Unwrap() error { return e.error }

func (s *session) connect(ctx context.Context) error {
	s.drop()
	cfg := s.cfg.ConnConfig.Copy()
	if s.wakes != nil {
		cfg.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { s.wakes() }
	}
	if s.cfg.BeforeConnect != nil {
		if err := s.cfg.BeforeConnect(ctx, cfg); err != nil {
			return err
		}
	}
	eachHost(ctx, cfg)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	s.conn, s.since, s.sql = conn, time.Now(), map[string]string{}
	if s.cfg.AfterConnect != nil {
		if err := s.cfg.AfterConnect(ctx, conn); err != nil {
			s.drop()
			return err
		}
	}
	if s.pooler {
		return nil
	}
	// Above it a lease that is lost is 40001 and no answer, for all that is asked for in the same call.
	// A call that was given up, which waits for a lock, must not lease for nobody when it gets it: the server gives up
	// first. And a lock_timeout of the role's, meant for other calls, must not take an ack away that has to wait for a
	// moment.
	sql := fmt.Sprintf(`set default_transaction_isolation = 'read committed'; set lock_timeout = 0;
		set statement_timeout = %d`, min(max(s.timeout.Milliseconds()*9/10, 1), math.MaxInt32))
	if _, err := conn.Exec(ctx, sql); err != nil {
		s.drop()
		return err
	}
	return nil
}

// eachHost gives each host of several a part of the context's time to connect: one that is mute, as a primary that is
// gone, must not take it from the others.
func eachHost(ctx context.Context, cfg *pgx.ConnConfig) {
	hosts := time.Duration(1)
	for _, f := range cfg.Fallbacks { // the first is there again where TLS is only preferred
		if f.Host != cfg.Host || f.Port != cfg.Port {
			hosts++
		}
	}
	end, _ := ctx.Deadline()
	if part := time.Until(end) / hosts; hosts > 1 && (cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > part) {
		cfg.ConnectTimeout = part
	}
}

// drop closes the connection without waiting for a server that may be mute.
func (s *session) drop() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = s.conn.Close(ctx)
	s.conn = nil
}

func (s *session) close() {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	s.drop()
}

var binaryFormat = []int16{pgx.BinaryFormatCode}

// add appends a statement, prepared where that is possible, to a batch: which is one round trip and,
// as there is one Sync behind it, one transaction.
func (s *session) add(ctx context.Context, b *pgconn.Batch, sql string, params ...[]byte) error {
	if s.pooler {
		b.ExecParams(sql, params, nil, binaryFormat, binaryFormat)
		return nil
	}
	name, ok := s.sql[sql]
	if !ok {
		name = fmt.Sprintf("openqueue_%d", len(s.sql))
		if _, err := s.conn.PgConn().Prepare(ctx, name, sql, nil); err != nil {
			return err
		}
		s.sql[sql] = name
	}
	b.ExecPrepared(name, params, binaryFormat, binaryFormat)
	return nil
}

// Binary values.

func int4(n int) []byte {
	if n == 0 {
		return nil // null: the server's default
	}
	return binary.BigEndian.AppendUint32(nil, uint32(n))
}

func int8(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func int8Array(buf []byte, n int, value func(i int) int64) []byte {
	buf = arrayHeader(buf[:0], 20, n, 0)
	for i := range n {
		buf = binary.BigEndian.AppendUint32(buf, 8)
		buf = binary.BigEndian.AppendUint64(buf, uint64(value(i)))
	}
	return buf
}

func jsonbArray(n int, value func(i int) *string) []byte {
	buf := arrayHeader(nil, 3802, n, 1)
	for i := range n {
		v := value(i)
		if v == nil {
			buf = binary.BigEndian.AppendUint32(buf, 0xFFFFFFFF)
			continue
		}
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(*v)+1))
		buf = append(append(buf, 1), *v...)
	}
	return buf
}

func arrayHeader(buf []byte, oid uint32, n int, nulls uint32) []byte {
	if n == 0 {
		for _, v := range []uint32{0, 0, oid} {
			buf = binary.BigEndian.AppendUint32(buf, v)
		}
		return buf
	}
	for _, v := range []uint32{1, nulls, oid, uint32(n), 1} {
		buf = binary.BigEndian.AppendUint32(buf, v)
	}
	return buf
}

func readInt8(v []byte) int64 { return int64(binary.BigEndian.Uint64(v)) }

func readInt4(v []byte) int { return int(int32(binary.BigEndian.Uint32(v))) }

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func readTime(v []byte) time.Time { return epoch.Add(time.Duration(readInt8(v)) * time.Microsecond) }

// leaseColumns are the columns of a lease that a Job has, and how long the lease lasts.
const leaseColumns = `job_id, lease_token, payload, headers, priority, attempt, max_retries, group_key, created_at,
	lease_expires_at, statement_timestamp()`

// readJob makes a job of a row of leaseColumns, whose bytes are good until the next row.
func readJob(row [][]byte, queue string) (j *Job, lasts time.Duration, err error) {
	if len(row) != 11 || len(row[2]) == 0 || row[2][0] != 1 {
		return nil, 0, fmt.Errorf("openqueue: a lease has %d columns, or a payload of an unknown form", len(row))
	}
	j = &Job{
		ID: readInt8(row[0]), Token: readInt8(row[1]), Queue: queue,
		Payload:  append(make(json.RawMessage, 0, len(row[2])-1), row[2][1:]...),
		Priority: readInt4(row[4]), Attempt: readInt4(row[5]), MaxRetries: readInt4(row[6]),
		GroupKey: string(row[7]), CreatedAt: readTime(row[8]),
	}
	if len(row[3]) > 1 {
		err = json.Unmarshal(row[3][1:], &j.Headers)
	}
	return j, time.Duration(readInt8(row[9])-readInt8(row[10])) * time.Microsecond, err
}

// backoff is how long to wait before the n-th new try: 50 ms, doubling, at most 5 s, with jitter.
func backoff(n int) time.Duration {
	d := min(50*time.Millisecond<<min(n, 8), 5*time.Second)
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
