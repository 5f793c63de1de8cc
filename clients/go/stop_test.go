package openqueue

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

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
