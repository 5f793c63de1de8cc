// Package schedules holds cron expressions against robfig/cron, against a walk through every second of
// the clock, and shows that a run comes once whoever fires it.
package schedules

import (
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }
