package openqueue

import (
	"context"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// EnqueueMany carries the context's trace, and EnqueueBulk, which has no headers, does not: as their comments say.
func TestTraceOfMany(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx := ContextWithTrace(context.Background(), Trace{Parent: "00-trace", State: "a=b"})
	if _, err := mails.EnqueueBulk(ctx, db.Pool, []mail{{"bulk"}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := EnqueueMany(ctx, db.Pool, []NewJob{mails.New(mail{"many"}, Options{})}); err != nil {
		t.Fatal(err)
	}
	got := get[string](t, db.Pool, "select string_agg(concat_ws(' ', payload->>'to', headers), ', ' order by job_id) from oq_jobs")
	if want := `bulk, many {"tracestate": "a=b", "traceparent": "00-trace"}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
