package upgrade

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/daemon"
	"github.com/openqueue/openqueue/tests/testdb"
)

// installations are schema and API schema of each.
var installations = [][2]string{{"oq", "public"}, {"t1", "t1_api"}, {"t2", "t2_api"}, {"t3", "t3_api"}}

func TestInstallations(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	for _, i := range installations {
		migrate(t, db, i[0], i[1], -1)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testdb.DB, *pgx.Conn)
	}{
		{"touch nothing of each other", touchNothing}, {"have lock keys of their own", lockKeysDiffer},
		{"share channels", shareChannels}, {"work side by side", workSideBySide}, {"watch one table", watchOneTable},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, db, db.Conn(t)) })
	}
}

// everything calls most of an installation's functions, in one transaction.
const everything = `
create temporary table ids on commit drop as
select %[1]s.oq_enqueue('q', '{"a": 1}', unique_key => 'k') as a, %[1]s.oq_enqueue('q', priority => 3) as b,
    %[1]s.oq_enqueue('q', group_key => 'g', options => '{"ttl": "1 hour", "tags": ["x"]}') as c,
    %[1]s.oq_enqueue('later', options => '{"delay": "1 hour"}') as d;
select %[1]s.oq_enqueue('q', unique_key => 'k', options => '{"unique_mode": "replace"}'),
    %[1]s.oq_enqueue('q', options => jsonb_build_object('depends_on', jsonb_build_array(a))) from ids;
select %[1]s.oq_enqueue_bulk('q', array['1', '2']::jsonb[]);
select %[1]s.oq_enqueue_many('[{"queue_name": "q", "ref": "x"}, {"queue_name": "q", "depends_on_refs": ["x"]}]');
select %[1]s.oq_batch_seal(%[1]s.oq_batch('{"on_complete": {"queue_name": "q"}}'));
select %[1]s.oq_subscribe('a.#', 'q'), %[1]s.oq_publish('a.b');
select %[1]s.oq_schedule('s', '* * * * *', 'q'), %[1]s.oq_run_schedules();
select %[1]s.oq_watch('touched', 'changes');
insert into touched values (1);
select %[1]s.oq_create_queue('q', '{"max_retries": 5}'), %[1]s.oq_limit('q', 'g', max_running => 2),
    %[1]s.oq_throttle('later', now() + interval '1 hour');
select %[1]s.oq_heartbeat(job_id, lease_token, progress => '1'), %[1]s.oq_nack(job_id, lease_token, 'no', retry => false)
  from %[1]s.oq_lease('q', 'w', max_jobs => 2);
select %[1]s.oq_ack(job_id, lease_token, '{}') from %[1]s.oq_lease('q');
select %[1]s.oq_next('q', max_jobs => 2), %[1]s.oq_listen('q');
select %[1]s.oq_update(d, '{"priority": 2}'), %[1]s.oq_cancel(d), %[1]s.oq_redrive('q', max_jobs => 1) from ids;
select count(*) from %[1]s.oq_tick();
select count(*) from %[1]s.oq_stats();
select count(*) from %[1]s.oq_explain((select a from ids));
select count(*) from %[1]s.oq_attempts((select a from ids));
select count(*) from %[1]s.oq_result((select a from ids));
select (select count(*) from %[1]s.oq_queues), (select count(*) from %[1]s.oq_jobs), (select count(*) from %[1]s.oq_dead),
    (select count(*) from %[1]s.oq_workers), (select count(*) from %[1]s.oq_schedules),
    (select count(*) from %[1]s.oq_watches), (select count(*) from %[1]s.oq_subscriptions);
select %[1]s.oq_purge('q', 'ready', max_jobs => 1), %[1]s.oq_pause('later'), %[1]s.oq_drop_queue('later', force => true)`

// What a call touches it locks: so the locks of a transaction that has called everything say what it touched.
func touchNothing(t *testing.T, db *testdb.DB, c *pgx.Conn) {
	exec(t, c, "create table touched (id int)")
	for _, i := range installations {
		exec(t, c, "begin; "+fmt.Sprintf(everything, i[1]))
		schemas := list(t, c, `select n.nspname::text || ' ' || count(*) from pg_locks l
			join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
			where l.locktype = 'relation' and l.pid = pg_backend_pid() and l.database <> 0
			  and n.nspname !~ '^(pg_|information_schema)' and c.relname not like 'touched%'
			group by n.nspname order by 1`)
		var own bool
		for _, s := range schemas {
			name, n, _ := strings.Cut(s, " ")
			own = own || name == i[0] && len(n) > 1
			if name != i[0] && name != i[1] {
				t.Errorf("%s touches %s relations of %s", i[0], n, name)
			}
		}
		if !own {
			t.Errorf("%s touched next to nothing: %v", i[0], schemas)
		}
		exec(t, c, "rollback; select pg_advisory_unlock_all(); unlisten *")
	}
	if keys := list(t, c, `select conname::text from pg_constraint where contype = 'f'
		and connamespace::regnamespace::text ~ '^(oq|public|t\d)'`); len(keys) > 0 {
		t.Errorf("foreign keys %v", keys)
	}
}

// Advisory locks have no schema: the first half of their keys is a hash of the installation's and the kind's name.
func lockKeysDiffer(t *testing.T, db *testdb.DB, c *pgx.Conn) {
	kinds := list(t, c, `select distinct k[1] || '|' || hashtext(k[1])
		from pg_proc p, regexp_matches(p.prosrc, $$hashtext\('([a-z0-9_]+:[a-z]+)'\)$$, 'g') k`)
	hashes, of := map[string]string{}, map[string]int{}
	for _, line := range kinds {
		name, hash, _ := strings.Cut(line, "|")
		if other, taken := hashes[hash]; taken {
			t.Errorf("%s and %s have the same key", name, other)
		}
		hashes[hash] = name
		of[strings.Split(name, ":")[0]]++
	}
	for _, i := range installations {
		if of[i[0]] < 10 || of[i[0]] != of["oq"] {
			t.Errorf("%s has %d kinds of locks, oq has %d", i[0], of[i[0]], of["oq"])
		}
	}
	if len(of) != len(installations) {
		t.Errorf("locks of %v", of)
	}
	if bare := list(t, c, `select p.oid::regprocedure::text from pg_proc p
		where p.pronamespace::regnamespace::text ~ '^(oq|t\d)$' and p.prosrc ~ 'advisory\w*\(\s*(\d|[a-z_]+\s*[,)])'`); len(bare) > 0 {
		t.Errorf("lock keys without the installation's name: %v", bare)
	}
}

// Each makes its own jobs of one table, and one that goes takes nothing of the others with it.
func watchOneTable(t *testing.T, db *testdb.DB, c *pgx.Conn) {
	exec(t, c, "create table watched (id int)")
	jobs := func() (all []string) {
		for _, i := range installations {
			all = append(all, list(t, c, fmt.Sprintf(`select count(*)::text from %s.oq_jobs where queue_name = 'changes'`, i[1]))...)
		}
		return all
	}
	for _, i := range installations {
		exec(t, c, fmt.Sprintf(`select %s.oq_watch('watched', 'changes', 'insert,delete')`, i[1]))
	}
	exec(t, c, "insert into watched values (1), (2); delete from watched")
	if got := strings.Join(jobs(), " "); got != "4 4 4 4" {
		t.Errorf("jobs of each installation: %s, want 4", got)
	}
	exec(t, c, "select t1_api.oq_unwatch('watched', 'changes')")
	migrate(t, db, "t2", "t2_api", 0)
	if left := list(t, c, `select regexp_replace(tgname, '_\d+_', '_') from pg_trigger
		where tgrelid = 'watched'::regclass order by 1`); strings.Join(left, " ") !=
		"oq_watch_delete oq_watch_insert t3_watch_delete t3_watch_insert" {
		t.Errorf("triggers left: %v", left)
	}
	migrate(t, db, "t2", "t2_api", -1)
	exec(t, c, "insert into watched values (3)")
	if got := strings.Join(jobs(), " "); got != "5 4 0 5" {
		t.Errorf("jobs of each installation: %s", got)
	}
}

// Channels have no schema, either: a wake-up reaches the sleepers of a queue of the same name, who find nothing.
func shareChannels(t *testing.T, db *testdb.DB, c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var sleepers []*pgx.Conn
	for _, i := range installations[:2] {
		s := db.Conn(t)
		exec(t, s, fmt.Sprintf("select %s.oq_listen('sleepy')", i[1]))
		sleepers = append(sleepers, s)
	}
	exec(t, c, "select t1_api.oq_enqueue('sleepy')")
	for n, s := range sleepers {
		if _, err := s.WaitForNotification(ctx); err != nil {
			t.Fatalf("sleeper %d: %v", n, err)
		}
		if got := len(list(t, s, fmt.Sprintf("select job_id::text from %s.oq_lease('sleepy')", installations[n][1]))); got != n {
			t.Errorf("sleeper %d leased %d jobs", n, got)
		}
	}
	// Nobody sleeps in t2: its enqueue tells nobody.
	exec(t, c, "select t2_api.oq_enqueue('sleepy')")
	exec(t, c, `notify "oq:sleepy", 'marker'`)
	if n, err := sleepers[0].WaitForNotification(ctx); err != nil || n.Payload != "marker" {
		t.Errorf("woken by an installation without sleepers: %v %v", n, err)
	}
}

// All at once, with the same names and the daemon's duties beside them.
func workSideBySide(t *testing.T, db *testdb.DB, c *pgx.Conn) {
	const jobs = 100
	errs := make(chan error, len(installations))
	for _, i := range installations {
		c := db.Conn(t)
		go func() {
			call := func(sql string) error {
				_, err := c.Exec(t.Context(), fmt.Sprintf(sql, i[1]))
				return err
			}
			for n := range jobs {
				for _, sql := range []string{
					fmt.Sprintf("select %%[1]s.oq_enqueue('busy', '%d', group_key => 'g%d', unique_key => 'k%d')", n, n%3, n),
					"select %[1]s.oq_ack(job_id, lease_token) from %[1]s.oq_lease('busy', max_jobs => 5)",
					"select count(*) from %[1]s.oq_tick()",
				} {
					if err := call(sql); err != nil {
						errs <- fmt.Errorf("%s: %s: %w", i[0], sql, err)
						return
					}
				}
			}
			errs <- nil
		}()
	}
	for range installations {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, i := range installations {
		if got := list(t, c, fmt.Sprintf(`select state || ' ' || count(*) from %s.oq_jobs where queue_name = 'busy' group by state`, i[1])); len(got) != 1 ||
			got[0] != fmt.Sprintf("completed %d", jobs) {
			t.Errorf("%s: %v", i[0], got)
		}
		if broken := list(t, c, fmt.Sprintf("select law from %s.oq_audit() where violations <> 0", i[1])); len(broken) > 0 {
			t.Errorf("%s: audit: %v", i[0], broken)
		}
	}
}

// With a wrong API schema the way down takes all that is its own, and nothing of who is there.
func TestDownWithAnotherAPISchema(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	c := db.Conn(t)
	migrate(t, db, "oq", "public", -1)
	migrate(t, db, "second", "second_api", -1)
	for _, wrong := range []string{"public", "nowhere"} {
		migrate(t, db, "second", wrong, 0)
		if left := list(t, c, `select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'second_api'::regnamespace
			union all select oid::regclass::text from pg_class where relnamespace = 'second_api'::regnamespace`); len(left) > 0 {
			t.Errorf("down with API schema %s left %v", wrong, left)
		}
		use(t, c, "public", "q")
		exec(t, c, "set role oq_observer; select count(*) from public.oq_jobs; reset role")
		migrate(t, db, "second", "second_api", -1)
	}
}

// What others built on the queue goes with it: the way down names each, and nothing of its own.
func TestDownNamesWhatGoesWithIt(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	c := db.Conn(t)
	migrate(t, db, "oq", "public", -1)
	migrate(t, db, "second", "second_api", -1)
	exec(t, c, `create table rows (id int default oq_enqueue('q'), version text);
		create trigger rows_trigger after insert on rows for each row execute function oq_enqueue_row('q');
		create view open_jobs as select * from oq_jobs where state <> 'completed';
		create materialized view counted as select count(*) from open_jobs;
		create function leased() returns setof oq.leased_job language sql begin atomic select * from oq_lease('q'); end;
		create view untouched as select * from second_api.oq_jobs`)
	var out strings.Builder
	cfg := daemon.Config{DatabaseURL: db.URL, Schema: "oq", APISchema: "public"}
	if err := daemon.Migrate(t.Context(), cfg, 0, &out); err != nil {
		t.Fatal(err)
	}
	want := []string{"default value for public.rows.id", "function public.leased()", "materialized view public.counted",
		"trigger rows_trigger on public.rows", "view public.open_jobs"}
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if name, ok := strings.CutPrefix(line, "drops with it: "); ok {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
	if n := strings.Count(out.String(), "\n"); n != len(want)+1 {
		t.Errorf("%d lines: %s", n, out.String())
	}
}
