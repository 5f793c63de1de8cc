// Package upgrade migrates up and down, and compares what is there with what should be.
package upgrade

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func exec(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func list(t testing.TB, c *pgx.Conn, sql string, args ...any) []string {
	t.Helper()
	rows, err := c.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return lines
}

func migrate(t testing.TB, db *testdb.DB, schema, api string, to int32) {
	t.Helper()
	if err := testdb.Migrate(t.Context(), db.URL, schema, api, to); err != nil {
		t.Fatalf("migrate %s to %d: %v", schema, to, err)
	}
}

// catalog is everything that a migration makes, one object a line, without oids. Other schemas than
// $1 and $2 are not looked at.
const catalog = `
with ours as (select oid, nspname from pg_namespace where nspname in ($1, $2))
select 'schema ' || n.nspname || ' ' || coalesce(s.nspacl::text, '') || ' ' || coalesce(obj_description(s.oid, 'pg_namespace'), '')
  from ours n join pg_namespace s on s.oid = n.oid
union all
select format('function %s %s %s %s', p.oid::regprocedure, coalesce(p.proacl::text, '-'), pg_get_functiondef(p.oid),
    obj_description(p.oid, 'pg_proc'))
  from pg_proc p join ours n on n.oid = p.pronamespace where p.prokind = 'f'
union all
select format('relation %s.%s %s %s %s %s %s %s', n.nspname, c.relname, c.relkind, c.relacl, c.reloptions, c.relreplident,
    obj_description(c.oid, 'pg_class'), case when c.relkind = 'v' then pg_get_viewdef(c.oid) end)
  from pg_class c join ours n on n.oid = c.relnamespace where c.relkind <> 'i'
union all
select format('column %s.%s %s %s %s %s %s %s', n.nspname, c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
    a.attnotnull, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum))
  from pg_attribute a join pg_class c on c.oid = a.attrelid join ours n on n.oid = c.relnamespace
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'v', 'p', 'c')
union all
select 'index ' || pg_get_indexdef(i.indexrelid) || ' ' || i.indisprimary || i.indisreplident
  from pg_index i join pg_class c on c.oid = i.indexrelid join ours n on n.oid = c.relnamespace
union all
select format('constraint %s %s %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
  from pg_constraint k join ours n on n.oid = k.connamespace
union all
select format('sequence %s.%s %s %s %s %s %s %s', s.schemaname, s.sequencename, s.start_value, s.min_value, s.max_value, s.cycle, s.cache_size, s.last_value)
  from pg_sequences s join ours n on n.nspname = s.schemaname
union all
select format('type %s.%s %s %s', n.nspname, t.typname, t.typtype, obj_description(t.oid, 'pg_type'))
  from pg_type t join ours n on n.oid = t.typnamespace where t.typtype <> 'b' or t.typelem = 0
union all
select format('trigger %s', pg_get_triggerdef(t.oid))
  from pg_trigger t join pg_class c on c.oid = t.tgrelid join ours n on n.oid = c.relnamespace where not t.tgisinternal
union all
select 'default rights ' || d.defaclacl::text from pg_default_acl d join ours n on n.oid = d.defaclnamespace
order by 1`

// compare says what differs, a line an object.
func compare(t *testing.T, got, want []string) {
	t.Helper()
	had := map[string]bool{}
	for _, line := range want {
		had[line] = true
	}
	for _, line := range got {
		if !had[line] {
			t.Errorf("too much, or changed: %.300s", line)
		}
		delete(had, line)
	}
	for line := range had {
		t.Errorf("missing, or changed: %.300s", line)
	}
}

func use(t testing.TB, c *pgx.Conn, api, queue string) {
	t.Helper()
	exec(t, c, fmt.Sprintf(`select %[1]s.oq_enqueue('%[2]s'), %[1]s.oq_enqueue('%[2]s', priority => 3)`, api, queue))
	exec(t, c, fmt.Sprintf(`select %[1]s.oq_ack(job_id, lease_token) from %[1]s.oq_lease('%[2]s')`, api, queue))
	exec(t, c, fmt.Sprintf(`select %[1]s.oq_nack(job_id, lease_token, 'no') from %[1]s.oq_lease('%[2]s')`, api, queue))
	exec(t, c, fmt.Sprintf(`select %[1]s.oq_tick()`, api))
	if broken := list(t, c, fmt.Sprintf("select law from %s.oq_audit() where violations <> 0", api)); len(broken) > 0 {
		t.Errorf("audit of %s: %v", api, broken)
	}
}

func TestUpDownUp(t *testing.T) {
	t.Parallel()
	fresh, db := testdb.Empty(t), testdb.Empty(t)
	migrate(t, fresh, "oq", "public", -1)
	want := list(t, fresh.Conn(t), catalog, "oq", "public")
	if len(want) < 200 {
		t.Fatalf("only %d objects: the comparison sees nothing", len(want))
	}

	c := db.Conn(t)
	everything := `select 'schema ' || nspname from pg_namespace where nspname !~ '^pg_(toast|temp)'
		union all select 'relation ' || oid::regclass from pg_class where relnamespace = 'public'::regnamespace
		union all select 'function ' || oid::regprocedure from pg_proc where pronamespace = 'public'::regnamespace
		union all select 'type ' || oid::regtype from pg_type where typnamespace = 'public'::regnamespace
		order by 1`
	before := list(t, c, everything)
	for range 2 {
		migrate(t, db, "oq", "public", -1)
		compare(t, list(t, c, catalog, "oq", "public"), want)
		// With jobs in every state, and somebody's own function beside ours.
		use(t, c, "public", "q")
		exec(t, c, `create or replace function public.oq_mine() returns int language sql as 'select 1'`)
		migrate(t, db, "oq", "public", 1)
		if left := list(t, c, `select oid::regprocedure::text from pg_proc where proname like 'oq\_%'
			and proname <> 'oq_mine'`); len(left) > 0 {
			t.Errorf("functions are left by the code's down migration: %v", left)
		}
		migrate(t, db, "oq", "public", -1)
		migrate(t, db, "oq", "public", 0)
		exec(t, c, "select oq_mine()")
		exec(t, c, "drop function public.oq_mine()")
		exec(t, c, "drop table public.openqueue_version")
		compare(t, list(t, c, everything), before)
	}
}

// The roles belong to the cluster, so this needs one of its own: they go with the last installation,
// unless somebody is a member.
func TestRolesGoWithTheLastInstallation(t *testing.T) {
	server := testdb.StartServer(t, testdb.ServerOptions{Settings: map[string]string{"fsync": "off"}})
	url := server.URL("postgres")
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	const roles = `select rolname::text from pg_roles where rolname like 'oq\_%' order by 1`
	names := []string{"oq_daemon", "oq_observer", "oq_operator", "oq_producer", "oq_worker"}
	check := func(when string, want ...string) {
		t.Helper()
		if got := list(t, c, roles); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: roles %v, want %v", when, got, want)
		}
	}
	check("installed", names...)
	for _, role := range list(t, c, `select rolname::text from pg_roles where rolname like 'oq\_%' and rolcanlogin`) {
		t.Errorf("%s may log in", role)
	}
	exec(t, c, "create database other")
	other := server.URL("other")
	for _, step := range []struct {
		url string
		to  int32
	}{{other, -1}, {url, 0}} {
		if err := testdb.Migrate(t.Context(), step.url, "oq", "public", step.to); err != nil {
			t.Fatal(err)
		}
	}
	check("one of two gone", names...)
	exec(t, c, "create role somebody; grant oq_worker to somebody")
	if err := testdb.Migrate(t.Context(), other, "oq", "public", 0); err != nil {
		t.Fatal(err)
	}
	check("both gone, somebody is a worker", "oq_worker")
	exec(t, c, "drop role somebody")
	for _, to := range []int32{-1, 0} {
		if err := testdb.Migrate(t.Context(), url, "oq", "public", to); err != nil {
			t.Fatal(err)
		}
	}
	check("all gone")
}

// Two installations in one database know nothing of each other, and what is done to one stays there.
func TestTwoInstallations(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	c := db.Conn(t)
	migrate(t, db, "oq", "public", -1)
	migrate(t, db, "second", "second_api", -1)
	first := list(t, c, catalog, "oq", "public")

	// The same but for the names.
	second := list(t, c, catalog, "second", "second_api")
	if len(second) < 200 || len(first) < len(second) {
		t.Errorf("%d objects, the first installation has %d", len(second), len(first))
	}
	for _, line := range second {
		if strings.Contains(line, "oq.") || strings.Contains(line, "public.oq_") {
			t.Errorf("the second installation names the first: %.300s", line)
		}
	}

	use(t, c, "public", "q")
	use(t, c, "second_api", "q")
	exec(t, c, "select public.oq_enqueue('q')")
	if n := len(list(t, c, "select job_id::text from second_api.oq_lease('q', max_jobs => 10)")); n != 0 {
		t.Errorf("%d jobs of the other installation were leased", n)
	}
	// Locks, notifications and settings are each one's own.
	sleeper := db.Conn(t)
	exec(t, sleeper, "select public.oq_listen('q')")
	exec(t, c, "select second_api.oq_enqueue('q')")
	exec(t, c, "notify \"oq:q\", 'marker'")
	n, err := sleeper.WaitForNotification(t.Context())
	if err != nil || n.Payload != "marker" {
		t.Errorf("the other installation's enqueue woke a sleeper: %v %v", n, err)
	}
	exec(t, c, "begin; select public.oq_enqueue('q'); select pg_sleep(0)")
	other := db.Conn(t)
	exec(t, other, "select second_api.oq_advance()")
	exec(t, other, "select second_api.oq_advance()")
	if open := list(t, other, "select count(*)::text from second.epoch_open"); open[0] != "1" {
		t.Errorf("an open transaction of the first installation keeps %s epochs of the second open", open[0])
	}
	exec(t, c, "commit")
	if led := list(t, c, "select public.oq_lead()::text"); led[0] != "true" {
		t.Error("no leader")
	}
	if led := list(t, other, "select second_api.oq_lead()::text"); led[0] != "true" {
		t.Error("the leader of the first installation leads the second")
	}

	// A third can't have the functions of the first replaced by its own.
	if err := testdb.Migrate(t.Context(), db.URL, "third", "public", -1); err == nil ||
		!strings.Contains(err.Error(), "has the functions of another installation") {
		t.Errorf("a third installation with the first's API schema: %v", err)
	}
	if left := list(t, c, "select nspname::text from pg_namespace where nspname = 'third'"); len(left) != 0 {
		t.Errorf("it left schema %v", left)
	}

	migrate(t, db, "second", "second_api", 0)
	var functions, now []string
	for _, line := range first {
		if strings.HasPrefix(line, "function ") {
			functions = append(functions, line)
		}
	}
	for _, line := range list(t, c, catalog, "oq", "public") {
		if strings.HasPrefix(line, "function ") {
			now = append(now, line)
		}
	}
	compare(t, now, functions)
	use(t, c, "public", "q")
	if left := list(t, c, "select nspname::text from pg_namespace where nspname = 'second'"); len(left) != 0 {
		t.Errorf("schema %v is left", left)
	}
	// And the other way round: the second stays when the first goes.
	migrate(t, db, "second", "second_api", -1)
	migrate(t, db, "oq", "public", 0)
	use(t, c, "second_api", "q")
}

// Until the first release the migration installs what the code is now.
func TestSnapshotIsTheCode(t *testing.T) {
	t.Parallel()
	read := func(dir string) map[string]string {
		files := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			name, _ := filepath.Rel(dir, path)
			files[name] = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	code, snapshot := read("../../sql/code"), read("../../sql/migrations/snapshots/002")
	if len(code) < 40 {
		t.Fatalf("only %d files of code", len(code))
	}
	for name, text := range code {
		if snapshot[name] != text {
			t.Errorf("%s is not what the migration installs: make snapshot", name)
		}
		delete(snapshot, name)
	}
	for name := range snapshot {
		t.Errorf("%s is installed, and is not in the code", name)
	}
}

// Whoever may create functions beside the API's could shadow them. PostgreSQL 14 lets everybody.
func TestPublicMayNotCreateBesideTheAPI(t *testing.T) {
	t.Parallel()
	for _, api := range []string{"public", "api"} {
		db := testdb.Empty(t)
		c := db.Conn(t)
		exec(t, c, "create schema if not exists "+api)
		exec(t, c, fmt.Sprintf("grant create on schema %s to public", api))
		migrate(t, db, "oq", api, -1)
		if left := list(t, c, `select n.nspname || ' ' || a.privilege_type
			from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
			where n.nspname in ('oq', $1) and a.grantee = 0 and (a.privilege_type = 'CREATE' or n.nspname = 'oq')`, api); len(left) > 0 {
			t.Errorf("everybody has %v", left)
		}
		// No function looks anywhere that everybody may write to, temporary tables last.
		for _, f := range list(t, c, `select p.oid::regprocedure::text from pg_proc p
			where p.pronamespace::regnamespace::text in ('oq', $1) and p.prosecdef
			  and not coalesce('search_path=pg_catalog, oq, pg_temp' = any (p.proconfig), false)`, api) {
			t.Errorf("%s has another search_path", f)
		}
		for _, f := range list(t, c, `select p.oid::regprocedure::text from pg_proc p
			where p.proname like 'oq\_%' and not p.prosecdef and not (
				p.proname in ('oq_watch', 'oq_unwatch', 'oq_watch_fire') and p.prosqlbody is not null
				and 'search_path=pg_catalog, oq, pg_temp' = any (p.proconfig))`) {
			t.Errorf("%s runs with its caller's rights", f)
		}
	}
	// Where the installer may not revoke it, the migration refuses.
	db := testdb.Empty(t)
	c := db.Conn(t)
	exec(t, c, "grant create on schema public to public")
	role := fmt.Sprintf("installer_%d", c.PgConn().PID())
	exec(t, c, fmt.Sprintf(`create role %s login; grant create on database %s to %[1]s`, role,
		list(t, c, "select current_database()::text")[0]))
	t.Cleanup(func() {
		_, _ = db.Pool.Exec(context.Background(), "drop owned by "+role+"; drop role "+role)
	})
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("postgres://%s@%s:%d/%s", role, cfg.Host, cfg.Port, cfg.Database)
	if err := testdb.Migrate(t.Context(), url, "oq", "public", 1); err == nil ||
		!strings.Contains(err.Error(), "everybody may create functions") {
		t.Errorf("migration beside a public schema that everybody may write to: %v", err)
	}
}

// A publication FOR ALL TABLES refuses UPDATE and DELETE of tables without a replica identity.
func TestPublicationForAllTables(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	if none := list(t, c, `select c.oid::regclass::text from pg_class c
		where c.relnamespace = 'oq'::regnamespace and c.relkind = 'r' and c.relpersistence = 'p'
		  and c.relreplident = 'd' and not exists (
			select from pg_index i where i.indrelid = c.oid and i.indisprimary)`); len(none) > 0 {
		t.Errorf("no replica identity: %v", none)
	}
	exec(t, c, "create publication everything for all tables")
	use(t, c, "public", "q")
	for _, sql := range []string{
		`select oq_enqueue('q', options => '{"ttl": "1 ms"}'), oq_enqueue('q', options => '{"delay": "1 ms"}')`,
		"select oq_release(job_id, lease_token) from oq_lease('q', max_jobs => 2)",
		"select oq_cancel(oq_enqueue('q')), oq_update(oq_enqueue('q'), '{\"priority\": 5}')",
		"select oq_nack(job_id, lease_token, retry => false) from oq_lease('q', max_jobs => 2)",
		"select oq_redrive('q'), oq_pause('q'), oq_resume('q')",
		"update oq.generation_state set opened_at = opened_at - interval '1 year', closed_at = closed_at - interval '1 year'",
		"select oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate()",
		"update oq.generation_state set opened_at = opened_at - interval '1 year', closed_at = closed_at - interval '1 year'",
		"select oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate(), oq_rotate()",
		"update oq.mark set raised_at = raised_at - interval '1 day'",
		"select oq_tick(), oq_tick(), oq.rewrite('mark'), oq.rewrite('passed'), oq.rewrite('epoch_open')",
		"select oq_purge('q', 'completed'), oq_repair()",
		"select oq_drop_queue('q', true)",
		"select oq_tick()",
	} {
		exec(t, c, sql)
	}
	if broken := list(t, c, "select law from oq_audit() where violations <> 0"); len(broken) > 0 {
		t.Errorf("audit: %v", broken)
	}
}
