package openqueue

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A server that is gone while a worker drains takes no time from the handlers that run.
func TestDrainWithoutServer(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	server := testdb.StartServer(t, testdb.ServerOptions{})
	pool := poolWith(t, &testdb.DB{URL: server.URL("postgres")}, func(*pgxpool.Config) {})
	if _, err := EnqueueBulk(ctx, pool, "q", []string{"ends", "goes on"}, &Options{MaxRetries: Retries(0)}); err != nil {
		t.Fatal(err)
	}
	begun, down := make(chan struct{}, 2), make(chan struct{})
	lost, ended := make(chan struct{}), make(chan error, 1)
	w := &Worker{Pool: pool, Queue: "q", Concurrency: 2, Drain: time.Minute, Lease: time.Minute,
		Observe: func(e Event) {
			if string(e.Job.Payload) == `"ends"` && e.State == "lost" {
				close(lost)
			}
		},
		Handler: Handle(func(ctx context.Context, _ *Job, what string) error {
			begun <- struct{}{}
			<-down
			if what == "goes on" {
				select {
				case <-lost:
				case <-ctx.Done():
				}
				sleep(ctx, time.Second)
				ended <- context.Cause(ctx)
			}
			return nil
		})}
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	<-begun
	<-begun
	if err := server.Stop(context.Background(), "immediate"); err != nil {
		t.Fatal(err)
	}
	cancel()
	close(down)
	select {
	case err := <-done:
		t.Fatalf("Run has ended while a handler ran: %v", err)
	case err := <-ended:
		if err != nil {
			t.Errorf("the handler was stopped: %v", err)
		}
	case <-time.After(2 * patience):
		t.Fatal("the ack is not given up")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
