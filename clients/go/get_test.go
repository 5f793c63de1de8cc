package openqueue

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestGetAndResult(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol} {
		pool := poolWith(t, db, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode })
		if row, err := Get(ctx, pool, 1<<60); row != nil || err != nil {
			t.Errorf("%s: a job that is none: %v %v", mode, row, err)
		}
		if r, err := Result(ctx, pool, 1<<60); r != nil || err != nil {
			t.Errorf("%s: the result of a job that is none: %v %v", mode, r, err)
		}
		at := time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC)
		queue := "q" + mode.String()[:3]
		id, err := Enqueue(ctx, pool, queue, mail{"a@b"}, &Options{Priority: 3, RunAt: at, MaxRetries: Retries(7),
			ExpiresAt: at.Add(time.Hour), Tags: []string{"x", "y"}, Headers: Headers{"n": 1.0}, UniqueKey: "u", GroupKey: "g"})
		if err != nil {
			t.Fatal(err)
		}
		row, err := Get(ctx, pool, id)
		if err != nil || !row.RunAt.Equal(at) || !row.ExpiresAt.Equal(at.Add(time.Hour)) || time.Since(row.CreatedAt).Abs() > time.Minute {
			t.Fatalf("%s: %+v %v", mode, row, err)
		}
		row.RunAt, row.ExpiresAt, row.CreatedAt = time.Time{}, time.Time{}, time.Time{}
		if want := (&JobRow{ID: id, Queue: queue, State: "scheduled", Priority: 3, MaxRetries: 7, GroupKey: "g", UniqueKey: "u",
			Payload: []byte(`{"to": "a@b"}`), Headers: Headers{"n": 1.0}, Tags: []string{"x", "y"}}); !reflect.DeepEqual(row, want) {
			t.Errorf("%s: %+v\nwant %+v", mode, row, want)
		}
		if r, err := Result(ctx, pool, id); err != nil || r.State != "scheduled" || r.Result != nil || r.Error != "" {
			t.Errorf("%s: %+v %v", mode, r, err)
		}

		odd := get[int64](t, db.Pool, `select oq_enqueue('odd', run_at => '-infinity')`)
		if row, err := Get(ctx, pool, odd); err != nil || row.State != "ready" || !row.RunAt.IsZero() || !row.ExpiresAt.IsZero() {
			t.Errorf("%s: %+v %v", mode, row, err)
		}

		// Leased, failed, dead; and done.
		fails, err := Enqueue(ctx, pool, "work"+queue, 1, &Options{MaxRetries: Retries(0)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = WorkOne(ctx, pool, "work"+queue, "me", func(ctx context.Context, j *Job) error {
			if err := j.Progress(ctx, "half"); err != nil {
				return err
			}
			row, err := Get(ctx, pool, j.ID)
			if err != nil || row.State != "leased" || row.WorkerID != "me" || string(row.Progress) != `"half"` || row.LeasedAt.IsZero() ||
				!row.LeaseExpiresAt.After(row.LeasedAt) || !row.FinishedAt.IsZero() {
				t.Errorf("%s: %+v %v", mode, row, err)
			}
			return errors.New("no luck")
		})
		if err != nil {
			t.Fatal(err)
		}
		row, err = Get(ctx, pool, fails)
		if err != nil || row.State != "dead" || row.Attempt != 1 || row.Failures != 1 || row.LostLeases != 0 || row.Error != "no luck" ||
			row.Reason != "retries_exhausted" || row.FinishedAt.IsZero() {
			t.Errorf("%s: %+v %v", mode, row, err)
		}
		if r, err := Result(ctx, pool, fails); err != nil || r.State != "dead" || r.Error != "no luck" {
			t.Errorf("%s: %+v %v", mode, r, err)
		}
		done, err := Enqueue(ctx, pool, "work"+queue, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := WorkOne(ctx, pool, "work"+queue, "", func(_ context.Context, j *Job) error { return j.SetResult(mail{"c"}) }); err != nil {
			t.Fatal(err)
		}
		var m mail
		r, err := Result(ctx, pool, done)
		if err != nil || r.State != "completed" || r.Decode(&m) != nil || m.To != "c" {
			t.Errorf("%s: %+v %v", mode, r, err)
		}
		if row, err = Get(ctx, pool, done); err != nil || string(row.Result) != `{"to": "c"}` {
			t.Errorf("%s: %+v %v", mode, row, err)
		}
	}
}
