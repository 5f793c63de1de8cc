// Package contract holds the client libraries to clients/contract.json: it drives the contract worker
// of each language against one server. clients/README.md describes program and steps.
package contract

import (
	"flag"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Scenarios wait far more than they work.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	testdb.Main(m)
}
