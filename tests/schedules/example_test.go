package schedules

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// The nightly report of the reference, as it stands there, with a night between its statements.
func TestNightlyReport(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../sql/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(raw), "\n## Schedules\n")
	_, page, _ = strings.Cut(page, "```sql\n")
	block, _, found := strings.Cut(page, "```")
	if !found {
		t.Fatal("sql/README.md has no example of a schedule")
	}
	db := testdb.New(t)
	c := db.Conn(t)
	ctx := context.Background()
	do := func(sql string) {
		t.Helper()
		if _, err := c.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	check := func(what, sql string) {
		t.Helper()
		var yes bool
		if err := c.QueryRow(ctx, sql).Scan(&yes); err != nil || !yes {
			t.Errorf("%s: %v, %v", what, yes, err)
		}
	}
	create, rest, _ := strings.Cut(block, ";\n")
	do(create)
	check("next at three in Berlin", `select extract(hour from next_run_at at time zone 'Europe/Berlin') = 3
		and next_run_at = (select min(r) from oq_next_runs('0 3 * * *', 'Europe/Berlin') r) from oq_schedules`)
	do("create temp table night as select date_trunc('hour', now()) as due_at")
	do("update oq.schedule set due_at = (select due_at from night)")
	do("select oq_tick()")
	check("one job that says which run it is", `select queue_name = 'reports' and payload = '{"report": "sales"}'
		and max_retries = 5 and expires_at > now() + interval '11 hours' and headers ->> 'schedule' = 'nightly report'
		and (headers ->> 'scheduled_at')::timestamptz = (select due_at from night) from oq_jobs`)
	do(rest)
	check("ended", "select count(*) = 0 from oq_schedules")
}
