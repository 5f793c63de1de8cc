package faults

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/openqueue/openqueue/tests/testdb"
)

// Two daemons, of which one is killed and started again at any point of its work, and somebody who ticks by
// hand as fast as he can: each instant of each schedule has one job, and none is left out.
func TestSchedulesOfTwoDaemons(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	bin := daemon(t)
	run(t, c, `select oq_schedule('s' || i, '* * * * * *', 'q', timezone => 'Europe/Berlin', options => '{"missed": "all"}')
		from generate_series(1, 10) i`)
	run(t, c, "select oq_schedule('every', 'every 2 seconds', 'q', options => '{\"missed\": \"all\"}')")
	startDaemon(t, bin, db.URL)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	byHand := db.Conn(t)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if _, err := try[int64](byHand, "select oq_run_schedules()"); err != nil {
				stopped <- err
				return
			}
		}
	}()
	random := rand.New(rand.NewPCG(3, 4))
	for range 6 {
		d := startDaemon(t, bin, db.URL)
		time.Sleep(time.Duration(500+random.IntN(700)) * time.Millisecond) // any point of its work
		d.kill()
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	until(t, c, "all has run", "select min(next_run_at) > clock_timestamp() from oq_schedules")
	run(t, c, "update oq.schedule set due_at = null") // The daemon has nothing more to do.
	for _, wrong := range list[string](t, c, `
		select headers ->> 'schedule' || ' at ' || (headers ->> 'scheduled_at') || ': ' || count(*)
		  from oq_jobs group by headers ->> 'schedule', headers ->> 'scheduled_at' having count(*) <> 1`) {
		t.Error("twice: " + wrong)
	}
	for _, wrong := range list[string](t, c, `
		select s || ': ' || count(*) || ' runs from ' || min(at) || ' to ' || max(at)
		  from (select headers ->> 'schedule' as s, (headers ->> 'scheduled_at')::timestamptz as at from oq_jobs) j
		 group by s
		having extract(epoch from max(at) - min(at)) / case s when 'every' then 2 else 1 end + 1 <> count(*)`) {
		t.Error("a gap: " + wrong)
	}
	jobs := get[int](t, c, "select count(*)::int from oq_jobs")
	if jobs < 40 || jobs != get[int](t, c, "select sum(runs)::int from oq_schedules") {
		t.Errorf("%d jobs, the schedules count %d runs", jobs, get[int](t, c, "select sum(runs)::int from oq_schedules"))
	}
	t.Logf("%d runs", jobs)
	audit(t, c)
}
