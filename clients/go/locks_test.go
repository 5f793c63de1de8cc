package openqueue

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

// poolWith is a pool on db with another configuration.
func poolWith(t testing.TB, db *testdb.DB, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	change(cfg)
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Where the role or the database has a lock_timeout, a transaction that holds the job's row for a while is no
// judgment on the job: neither on its ack nor on the report of its failure.
func TestLockTimeoutOfTheRole(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pooler bool
		err    error
		want   string
	}{
		"ack":                {false, nil, "completed 1 0"},
		"ack behind pooler":  {true, nil, "completed 1 0"},
		"fail":               {false, errors.New("no luck"), "dead 1 0"},
		"fail behind pooler": {true, errors.New("no luck"), "dead 1 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			db := testdb.New(t)
			pool := poolWith(t, db, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["lock_timeout"] = "100ms" })
			if _, err := Enqueue(ctx, db.Pool, "q", 1, &Options{MaxRetries: Retries(0)}); err != nil {
				t.Fatal(err)
			}
			var begun atomic.Int64
			start(t, &Worker{Pool: pool, Queue: "q", Pooler: c.pooler, Handler: func(ctx context.Context, j *Job) error {
				begun.Add(1)
				tx, err := db.Pool.Begin(context.Background())
				if err != nil {
					return err
				}
				if ok, err := Cancel(ctx, tx, j.ID, ""); !ok || err != nil {
					t.Error(ok, err)
				}
				time.AfterFunc(time.Second, func() { _ = tx.Rollback(context.Background()) })
				return c.err
			}})
			until(t, "it is over", func() bool {
				return get[bool](t, db.Pool, "select state not in ('leased', 'ready') from oq_jobs")
			})
			got := get[string](t, db.Pool, "select concat_ws(' ', state, attempt, lost_leases) from oq_jobs")
			if got != c.want || begun.Load() != 1 {
				t.Errorf("begun %d times, %s, want %s", begun.Load(), got, c.want)
			}
		})
	}
}
