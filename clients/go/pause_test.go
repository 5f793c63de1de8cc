package openqueue

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A pause that has passed is none, and one that the server does not take fails the attempt: neither leaves a job
// leased.
func TestPausesThatAreNone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	const century = 100 * 366 * 24 * time.Hour
	for _, c := range []struct {
		queue       string
		err         error
		state, want string
		says        string
	}{
		{"snooze-past", Snooze(-time.Second), "released", "ready 0", ""},
		{"snooze-long", Snooze(century), "dead", "dead 1", "between 0 and 10 years"},
		{"retry-past", RetryAfter(-time.Hour, errors.New("greylisted")), "dead", "dead 1", "greylisted"},
		{"retry-long", RetryAfter(century, errors.New("greylisted")), "dead", "dead 1", "greylisted"},
	} {
		handler := func(context.Context, *Job) error { return c.err }
		one, err := Enqueue(ctx, db.Pool, c.queue, 1, &Options{MaxRetries: Retries(0)})
		if err != nil {
			t.Fatal(err)
		}
		check := func(id int64, state string) {
			t.Helper()
			got := get[string](t, db.Pool, "select concat_ws(' ', state, attempt) from oq_get($1)", id)
			says := get[string](t, db.Pool, "select coalesce(error, '') from oq_get($1)", id)
			if state != c.state || got != c.want || !strings.Contains(says, c.says) {
				t.Errorf("%s: told %s, is %s: %s", c.queue, state, got, says)
			}
		}
		d, err := WorkOne(ctx, db.Pool, c.queue, "", handler)
		if err != nil {
			t.Fatalf("%s: %v", c.queue, err)
		}
		check(one, d.State)
		if _, err := db.Pool.Exec(ctx, "select oq_cancel($1)", one); err != nil {
			t.Fatal(err)
		}
		two, err := Enqueue(ctx, db.Pool, c.queue, 1, &Options{MaxRetries: Retries(0)})
		if err != nil {
			t.Fatal(err)
		}
		seen := make(chan Event, 100)
		wctx, stop := context.WithCancel(ctx)
		w := &Worker{Pool: db.Pool, Queue: c.queue, Concurrency: 1, Handler: handler,
			Observe: func(e Event) { stop(); seen <- e }}
		if err := w.Run(wctx); err != nil {
			t.Error(err)
		}
		e := <-seen
		check(two, e.State)
	}
}
