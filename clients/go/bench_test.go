package openqueue

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

const (
	benchBatch   = 100
	benchClients = 4
)

// BenchmarkBesideBareCalls works b.N jobs off by the worker and by the same calls without a library, in
// turns, and reports the rates and the median of their ratio:
//
//	go test ./clients/go -run - -bench BesideBareCalls -benchtime 100000x
func BenchmarkBesideBareCalls(b *testing.B) {
	s := testdb.StartServer(b, testdb.ServerOptions{Settings: map[string]string{"max_wal_size": "4GB"}})
	ctx := context.Background()
	load := func() {
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close(ctx)
		for n := b.N; n > 0; n -= 10_000 {
			if _, err := conn.Exec(ctx, `select count(*) from oq_enqueue_bulk('bench',
				array_fill('{"task": "send_mail", "to": "someone@example.com", "n": 12345}'::jsonb, array[$1::int]))`,
				min(n, 10_000)); err != nil {
				b.Fatal(err)
			}
		}
		for _, sql := range []string{"vacuum analyze", "checkpoint"} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				b.Fatal(err)
			}
		}
	}
	var rates [2][]float64
	var ratios []float64
	const rounds = 5
	for range rounds {
		for i, work := range []func(testing.TB, string, int) time.Duration{bareCalls, workerCalls} {
			load()
			took := work(b, s.URL("postgres"), b.N)
			rates[i] = append(rates[i], float64(b.N)/took.Seconds())
		}
		ratios = append(ratios, rates[1][len(ratios)]/rates[0][len(ratios)])
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates[0]), "bare_jobs/s")
	b.ReportMetric(median(rates[1]), "worker_jobs/s")
	b.ReportMetric(median(ratios), "worker/bare")
}

// bareCalls leases and acks by the hundred over four connections, with nothing between.
func bareCalls(t testing.TB, url string, jobs int) time.Duration {
	ctx := context.Background()
	var done atomic.Int64
	conns := make([]*pgconn.PgConn, benchClients)
	for i := range conns {
		var err error
		if conns[i], err = pgconn.Connect(ctx, url); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close(ctx)
		for name, sql := range map[string]string{
			"lease": "select job_id, lease_token, payload, attempt from oq_lease($1::text, $2::text, $3::int, $4::int)",
			"ack":   sqlAckMany,
		} {
			if _, err := conns[i].Prepare(ctx, name, sql, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, conn := range conns {
		wg.Go(func() {
			var idBuf, tokenBuf []byte
			for done.Load() < int64(jobs) {
				var ids, tokens []int64
				rows := conn.ExecPrepared(ctx, "lease", [][]byte{[]byte("bench"), []byte("bench"), int4(600), int4(benchBatch)},
					binaryFormat, binaryFormat)
				for rows.NextRow() {
					ids, tokens = append(ids, readInt8(rows.Values()[0])), append(tokens, readInt8(rows.Values()[1]))
				}
				if _, err := rows.Close(); err != nil {
					t.Error(err)
					return
				}
				idBuf = int8Array(idBuf, len(ids), func(i int) int64 { return ids[i] })
				tokenBuf = int8Array(tokenBuf, len(ids), func(i int) int64 { return tokens[i] })
				if r := conn.ExecPrepared(ctx, "ack", [][]byte{idBuf, tokenBuf}, binaryFormat, binaryFormat).Read(); r.Err != nil {
					t.Error(r.Err)
					return
				}
				done.Add(int64(len(ids)))
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// workerCalls is a worker with a handler that does nothing.
func workerCalls(t testing.TB, url string, jobs int) time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	began := time.Now()
	var done atomic.Int64
	var took time.Duration
	w := &Worker{Pool: pool, Queue: "bench", Concurrency: 4 * benchClients, Batch: benchBatch, Fetchers: benchClients,
		Lease:   10 * time.Minute,
		Handler: func(context.Context, *Job) error { return nil },
		Observe: func(Event) {
			if done.Add(1) == int64(jobs) {
				took = time.Since(began)
				cancel()
			}
		}}
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return took
}
