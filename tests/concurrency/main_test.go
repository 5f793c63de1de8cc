package concurrency

import (
	"flag"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// These tests wait for each other's sessions and for the clock much more than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil {
		_ = f.Value.Set("6")
	}
	testdb.Main(m)
}
