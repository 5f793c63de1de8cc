package openqueue

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// A number in a header is a float64 where that is the same number, else its text.
func TestNumbersInHeaders(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db := testdb.New(t)
	huge := "1" + strings.Repeat("0", 400)
	sent := `{"small": -12, "half": 1.50, "tenth": 0.1, "tiny": 0.00001, "round": 100000000000000000000, "zero": 0, "zeros": 10.0,
		"id": 9007199254740993, "exact": 0.1234567890123456789, "huge": ` + huge + `, "text": "9007199254740993", "no": null,
		"in": {"it": [true, 9007199254740993, 3]}}`
	want := Headers{"small": -12.0, "half": 1.5, "tenth": 0.1, "tiny": 0.00001, "round": 1e20, "zero": 0.0, "zeros": 10.0,
		"id": json.Number("9007199254740993"), "exact": json.Number("0.1234567890123456789"), "huge": json.Number(huge),
		"text": "9007199254740993", "no": nil,
		"in": map[string]any{"it": []any{true, json.Number("9007199254740993"), 3.0}}}
	if _, err := db.Pool.Exec(ctx, `select oq_enqueue('q', headers => $1), oq_enqueue('q', headers => $1)`, sent); err != nil {
		t.Fatal(err)
	}
	check := func(got Headers) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("headers: %v", got)
		}
	}
	d, err := WorkOne(ctx, db.Pool, "q", "", func(_ context.Context, j *Job) error { return j.SetResult(j.Headers) })
	if err != nil {
		t.Fatal(err)
	}
	check(d.Headers)
	if !get[bool](t, db.Pool, "select result = $2::jsonb from oq_get($1)", d.ID, sent) {
		t.Error("sent on they are others")
	}
	var own Headers
	if err := json.Unmarshal([]byte(`{"e": 1.50e5}`), &own); err != nil || own["e"] != 150000.0 {
		t.Errorf("%v %v", own, err)
	}
	seen := make(chan Headers, 1)
	start(t, &Worker{Pool: db.Pool, Queue: "q", Handler: func(_ context.Context, j *Job) error { seen <- j.Headers; return nil }})
	check(<-seen)
}
