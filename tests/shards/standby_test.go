package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

func connect(t *testing.T, s *testdb.Server) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// leased is a job and its token.
type leased struct{ ID, Token int64 }

// take leases, as the Go worker does: if the commit of a lease alone is lost, the job is done again.
func take(ctx context.Context, pool *pgxpool.Pool, jobs int) ([]leased, error) {
	rows, err := pool.Query(ctx, `select job_id, lease_token from set_config('synchronous_commit', 'off', true) c,
		oq_lease('q', 'w', 1, $1)`, jobs)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[leased])
}

// A server with a synchronous standby crashes, and the standby goes on: nothing that was committed is lost, no
// token comes again, and nobody has to say oq_adopt.
func TestSynchronousStandbyTakesOver(t *testing.T) {
	t.Parallel()
	// What the standby replays waits for the queries there, and ends none.
	primary := testdb.StartServer(t, testdb.ServerOptions{Settings: map[string]string{
		"shared_buffers": "16MB", "max_connections": "30", "fsync": "off", "max_standby_streaming_delay": "-1"}})
	standby := primary.Standby(t)
	before := connect(t, primary)
	for _, sql := range []string{`alter system set synchronous_standby_names = '*'`, `select pg_reload_conf()`} {
		if _, err := before.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the standby is synchronous", func() bool {
		return get[bool](t, before, `select exists (select from pg_stat_replication where sync_state = 'sync')`)
	})

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	made, acked, tokens := map[int64]bool{}, map[int64]bool{}, map[int64]int64{}
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for n := 0; ; n++ {
				if i < 2 {
					var id int64
					if err := before.QueryRow(ctx, `select oq_enqueue('q', group_key => $1)`, fmt.Sprint(n%50)).Scan(&id); err != nil {
						return
					}
					mu.Lock()
					made[id] = true
					mu.Unlock()
					time.Sleep(3 * time.Millisecond)
					continue
				}
				jobs, err := take(ctx, before, 2)
				if err != nil {
					return
				}
				for _, j := range jobs {
					mu.Lock()
					tokens[j.ID] = j.Token
					mu.Unlock()
					if j.ID%5 == 0 {
						continue // Its lease is open when the server dies, or expires.
					}
					var ok bool
					if err := before.QueryRow(ctx, `select oq_ack($1, $2)`, j.ID, j.Token).Scan(&ok); err != nil {
						return
					}
					mu.Lock()
					acked[j.ID] = acked[j.ID] || ok
					mu.Unlock()
				}
			}
		})
	}
	until(t, "300 jobs are made and 100 acked", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(made) >= 300 && len(acked) >= 100
	})
	after := connect(t, standby)
	var refused *pgconn.PgError
	if _, err := take(ctx, after, 1); !errors.As(err, &refused) || refused.Code != "25006" {
		t.Errorf("a lease on the standby: %v, want 25006", err)
	}
	if n := get[int](t, after, `select count(*)::int from oq_queues where queue_name = 'q'`); n != 1 {
		t.Errorf("the standby shows %d queues", n)
	}
	if err := primary.Stop(ctx, "immediate"); err != nil {
		t.Fatal(err)
	}
	clients.Wait()
	began := time.Now()
	get[bool](t, after, `select pg_promote(wait => false)`)
	until(t, "it is promoted", func() bool { return !get[bool](t, after, `select pg_is_in_recovery()`) })

	var all, done []int64
	for id := range made {
		all = append(all, id)
	}
	for id := range acked {
		done = append(done, id)
	}
	if n := get[int](t, after, `select count(*)::int from oq_jobs where job_id = any ($1)`, all); n != len(all) {
		t.Errorf("%d of %d committed jobs are there", n, len(all))
	}
	if n := get[int](t, after, `select count(*)::int from oq_jobs where state = 'completed' and job_id = any ($1)`, done); n != len(done) {
		t.Errorf("%d of %d acked jobs are completed", n, len(done))
	}
	if id := get[int64](t, after, `select oq_enqueue('q')`); id <= slices.Max(all) {
		t.Errorf("job id %d after %d", id, slices.Max(all))
	}
	first := true
	until(t, "all jobs are done", func() bool {
		get[int](t, after, `select count(*)::int from oq_tick()`)
		jobs, err := take(t.Context(), after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			if first {
				t.Logf("first lease %s after the promotion began", time.Since(began))
				first = false
			}
			if j.Token <= tokens[j.ID] {
				t.Errorf("job %d: token %d after %d", j.ID, j.Token, tokens[j.ID])
			}
			if slices.Contains(done, j.ID) {
				t.Errorf("job %d was leased after its ack", j.ID)
			}
			if !get[bool](t, after, `select oq_ack($1, $2)`, j.ID, j.Token) {
				t.Errorf("job %d: not acked", j.ID)
			}
		}
		return get[int](t, after, `select count(*)::int from oq_jobs where state <> 'completed'`) == 0
	})
	if broken := get[string](t, after, `select coalesce(string_agg(law || ': ' || coalesce(sample, ''), ', '), '')
		from oq_audit() where violations <> 0`); broken != "" {
		t.Errorf("audit: %s", broken)
	}
	t.Logf("%d jobs made and %d acked before the crash", len(made), len(acked))
}
