package openqueue

import (
	"context"
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Of acks that come after their lease's end by the worker's clock, those that the server does not take are told as
// lost; with a result those of any.
func TestAckOfALostLease(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, c := range map[string]struct {
		late, result, fetch bool
	}{
		"late":           {late: true, fetch: true},
		"late, drained":  {late: true},
		"with a result":  {result: true, fetch: true},
		"result drained": {result: true},
		"drained":        {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := testdb.New(t)
			told := map[int64]string{}
			w := &Worker{Pool: db.Pool, Queue: "q", ID: "me", Timeout: time.Minute, jobs: ctx,
				Logger:  slog.New(slog.DiscardHandler),
				Observe: func(e Event) { told[e.Job.ID*1_000_000+e.Job.Token%1_000_000] = e.State }}
			w.listener = newListener(w)
			l := newLane(w, 10, 10)
			defer l.s.close()
			ids, err := EnqueueBulk(ctx, db.Pool, "q", []int{0, 1, 2}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.turn(ctx, true); err != nil || len(l.queue) != 3 {
				t.Fatal(len(l.queue), err)
			}
			first, second, third := l.queue[0], l.queue[1], l.queue[2]
			l.queue, l.head = nil, 0
			// The first is somebody else's. The third comes back, and the worker has both of its leases.
			for _, j := range []*Job{first, third} {
				if _, err := db.Pool.Exec(ctx, "select oq_release($1, $2)", j.ID, j.Token); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := db.Pool.Exec(ctx, "select oq_lease('q', 'other')"); err != nil {
				t.Fatal(err)
			}
			again, _, _, err := l.exchange(ctx, nil, false, 10)
			if err != nil || len(again) != 1 || again[0].ID != third.ID {
				t.Fatal(again, err)
			}
			if _, err := Enqueue(ctx, db.Pool, "q", 4, nil); err != nil {
				t.Fatal(err)
			}
			for _, j := range []*Job{first, second, third, again[0]} {
				j.hold.over, j.hold.since = true, time.Now()
				if c.late {
					j.hold.since = time.Now().Add(-time.Minute)
				}
				if c.result {
					_ = j.SetResult(j.ID)
				}
				l.pushAck(j, time.Now())
			}
			if err := l.turn(ctx, c.fetch); err != nil {
				t.Fatal(err)
			}
			key := func(j *Job) int64 { return j.ID*1_000_000 + j.Token%1_000_000 }
			want := map[int64]string{key(first): "lost", key(second): "acked", key(third): "lost", key(again[0]): "acked"}
			if !maps.Equal(told, want) {
				t.Errorf("told %v, want %v", told, want)
			}
			if got := get[int](t, db.Pool, "select count(*)::int from oq_jobs where state = 'completed' and job_id > $1", ids[0]); got != 2 {
				t.Errorf("%d are completed", got)
			}
			if (len(l.queue) == 1) != c.fetch {
				t.Errorf("%d were leased", len(l.queue))
			}
		})
	}
}

// A lease is committed without waiting for the disk or for a standby: a server that crashed, or another that took over, may
// not know it. So over a connection that is younger than the lease the server says which acks it takes.
func TestAckOverAnotherConnection(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	told := map[int64]string{}
	w := &Worker{Pool: db.Pool, Queue: "q", ID: "me", Timeout: time.Minute, jobs: ctx, Logger: slog.New(slog.DiscardHandler),
		Observe: func(e Event) { told[e.Job.ID] = e.State }}
	w.listener = newListener(w)
	l := newLane(w, 10, 10)
	defer l.s.close()
	if _, err := EnqueueBulk(ctx, db.Pool, "q", []int{0, 1}, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.turn(ctx, true); err != nil || len(l.queue) != 2 {
		t.Fatal(len(l.queue), err)
	}
	forgotten, kept := l.queue[0], l.queue[1]
	l.queue, l.head = nil, 0
	if _, err := db.Pool.Exec(ctx, "select oq_release($1, $2, '1 hour')", forgotten.ID, forgotten.Token); err != nil {
		t.Fatal(err)
	}
	l.s.drop()
	for _, j := range []*Job{forgotten, kept} {
		l.pushAck(j, time.Now())
	}
	if err := l.turn(ctx, true); err != nil {
		t.Fatal(err)
	}
	if want := map[int64]string{forgotten.ID: "lost", kept.ID: "acked"}; !maps.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

// A job that was cancelled and redriven may be held by both of its leases: a heartbeat says of each what holds of it.
func TestHeartbeatOfTwoLeases(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	w := &Worker{Pool: db.Pool, Queue: "q", Lease: 30 * time.Second, Timeout: time.Minute, jobs: ctx,
		Logger: slog.New(slog.DiscardHandler)}
	w.listener, w.beats = newListener(w), w.session("heartbeats")
	defer w.beats.close()
	l := newLane(w, 10, 10)
	defer l.s.close()
	id, err := Enqueue(ctx, db.Pool, "q", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.turn(ctx, true); err != nil {
		t.Fatal(err)
	}
	if ok, err := Cancel(ctx, db.Pool, id, ""); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := db.Pool.Exec(ctx, `select oq_redrive('q', '{"state": "cancelled"}')`); err != nil {
		t.Fatal(err)
	}
	if err := l.turn(ctx, true); err != nil || len(l.held) != 2 {
		t.Fatal(len(l.held), err)
	}
	if err := w.beatMany(ctx, l.held, "200"); err != nil {
		t.Fatal(err)
	}
	if before, now := l.held[0].hold.gone, l.held[1].hold.gone; before == nil || now != nil {
		t.Errorf("the cancelled lease: %v, the one that holds: %v", before, now)
	}
}
