package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) {
	// The demo starts its Go workers by running itself: here that is the test binary.
	if isWorker() {
		main()
		return
	}
	testdb.Main(m)
}

func TestDemo(t *testing.T) {
	db := testdb.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	// Twice: what the first leaves behind must not disturb the second.
	for range 2 {
		var out bytes.Buffer
		if err := demo(ctx, db.URL, 400, &out); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		if !strings.Contains(out.String(), "400 of 400") {
			t.Fatal(out.String())
		}
	}
}
