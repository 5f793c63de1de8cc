package catalog

import (
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }
