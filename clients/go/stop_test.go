package openqueue

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A host that accepts and says nothing, as a primary that hangs, keeps no worker from the next one of its URL.
func TestMuteHost(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	both := &testdb.DB{URL: strings.Replace(db.URL, "@", "@"+mute.Addr().String()+",", 1)}
	pool := poolWith(t, both, func(*pgxpool.Config) {})
	id, err := Enqueue(context.Background(), db.Pool, "q", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	start(t, &Worker{Pool: pool, Queue: "q", Timeout: 3 * time.Second, Lease: 9 * time.Second,
		Handler: func(ctx context.Context, j *Job) error { return j.Progress(ctx, 1) }}) // over the heartbeats' session as well
	until(t, "it is done", func() bool {
		return get[string](t, db.Pool, "select state from oq_get($1)", id) == "completed"
	})
}

// A worker that has nothing to lose ends at once while it connects to a server that is mute.
func TestStopWhileConnecting(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	asked := make(chan struct{}, 100)
	pool, err := pgxpool.New(context.Background(), "postgres://nobody@"+mute.Addr().String()+"/nowhere?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	go func() {
		for {
			conn, err := mute.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			asked <- struct{}{}
		}
	}()
	stop := start(t, &Worker{Pool: pool, Queue: "q", Handler: func(context.Context, *Job) error { return nil }})
	<-asked
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
