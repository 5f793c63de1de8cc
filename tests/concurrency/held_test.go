package concurrency

import (
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// What one transaction keeps for long may not stand before what nobody keeps: each duty looks at a bounded number.

// More jobs with a time to live than a call looks at are in a lease that has not committed.
func TestHeldTimersKeepNoneFromExpiring(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, holder := db.Conn(t), db.Conn(t)
	exec(t, c, "select count(oq_enqueue('held', options => '{\"ttl\": \"200 ms\"}')) from generate_series(1, 30)")
	exec(t, holder, "begin")
	if n := len(lease(t, holder, "held", 30)); n != 30 {
		t.Fatalf("leased %d, want 30", n)
	}
	free := get[int64](t, c, "select oq_enqueue('free', options => '{\"ttl\": \"300 ms\"}')")
	until(t, c, "the other queue's job expires", "select oq_expire(10) >= 0 and (select state from oq_get($1)) = 'expired'", free)
	audit(t, c)
	exec(t, holder, "rollback")
	until(t, c, "the others expire",
		"select oq_expire(10) >= 0 and not exists (select from oq_jobs where state <> 'expired')")
	if n := get[int](t, c, "select count(*)::int from oq.ttl"); n != 0 {
		t.Errorf("%d timers are left", n)
	}
	audit(t, c)
}
