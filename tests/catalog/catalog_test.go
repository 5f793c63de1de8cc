// Package catalog holds what is installed against what is promised: the contract's signatures, the
// reference, rights, pinned paths and comments.
package catalog

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/jackc/pgx/v5"

	"github.com/openqueue/openqueue/tests/testdb"
)

const root = "../.."

func list(t *testing.T, db *testdb.DB, sql string) []string {
	t.Helper()
	rows, err := db.Pool.Query(context.Background(), sql)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// none fails with what a query finds wrong.
func none(t *testing.T, db *testdb.DB, what, sql string) {
	t.Helper()
	for _, v := range list(t, db, sql) {
		t.Errorf("%s: %s", what, v)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// ours are all functions of the installation.
const ours = `pg_proc p join pg_namespace n on n.oid = p.pronamespace
	where (n.nspname = 'oq' or n.nspname = 'public' and p.proname like 'oq\_%')`

func TestRights(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	none(t, db, "PUBLIC may execute", `
		select p.oid::regprocedure::text from `+ours+`
		and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)`)
	none(t, db, "PUBLIC may read", `
		select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		 where (n.nspname = 'oq' or n.nspname = 'public' and c.relname like 'oq\_%') and c.relkind in ('r', 'p', 'v', 'S')
		   and exists (select from aclexplode(coalesce(c.relacl,
			acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) a where a.grantee = 0)`)
	none(t, db, "an API function that nobody may execute", `
		select p.proname::text from `+ours+` and n.nspname = 'public'
		and not exists (select from aclexplode(p.proacl) a where a.grantee <> p.proowner)`)
	none(t, db, "a table that a role may touch", `
		select c.oid::regclass::text from pg_class c where c.relnamespace = 'oq'::regnamespace and c.relkind in ('r', 'p', 'S')
		   and exists (select from aclexplode(c.relacl) a where a.grantee <> c.relowner)`)
	none(t, db, "everybody may create in the schema of", `
		select n.nspname::text from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
		 where n.nspname in ('oq', 'public') and a.grantee = 0 and a.privilege_type = 'CREATE'`)
}

func TestFunctionsArePinned(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	none(t, db, "an API function without its owner's rights or with an open path", `
		select p.oid::regprocedure::text from `+ours+` and n.nspname = 'public'
		and (not p.prosecdef and p.proname <> all (array['oq_watch', 'oq_unwatch', 'oq_watch_fire'])
			or not coalesce('search_path=pg_catalog, oq, pg_temp' = any (p.proconfig), false))`)
	// Watches belong to the tables' owners, so these run with their caller's rights: their bodies were bound
	// when they were made, and what they call nobody can name.
	none(t, db, "an exception that is a definer, or that is bound when it is called", `
		select p.oid::regprocedure::text from `+ours+` and n.nspname = 'public'
		and p.proname = any (array['oq_watch', 'oq_unwatch', 'oq_watch_fire']) and (p.prosecdef or p.prosqlbody is null)`)
	none(t, db, "a private function that somebody may execute", `
		select p.oid::regprocedure::text from `+ours+` and n.nspname = 'oq'
		and p.proname <> all (array['may', 'watch_allowed', 'watch_plan', 'watch_build', 'watch_end', 'watch_drop', 'watch_put'])
		and exists (select from aclexplode(p.proacl) a where a.grantee <> p.proowner)`)
	none(t, db, "usage of the private schema", `
		select a.grantee::regrole::text from pg_namespace n, aclexplode(n.nspacl) a
		 where n.nspname = 'oq' and a.grantee <> n.nspowner`)
	none(t, db, "a definer without a pinned path", `
		select p.oid::regprocedure::text from `+ours+`
		and p.prosecdef and not coalesce('search_path=pg_catalog, oq, pg_temp' = any (p.proconfig), false)`)
	none(t, db, "two functions of one name, so that calls are ambiguous", `
		select p.proname::text from `+ours+` and n.nspname = 'public' group by p.proname having count(*) > 1`)
}

// In a Turkish database upper('insert') is no INSERT: names that are ours are compared as ASCII has them.
func TestNamesAreNotTheLocales(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	none(t, db, "lower or upper by the database's locale", `
		select p.oid::regprocedure::text from `+ours+`
		and (select count(*) from regexp_matches(p.prosrc, '\y(lower|upper|initcap)\(', 'g'))
			<> (select count(*) from regexp_matches(p.prosrc, '[^a-z_]{1,1}?(lower|upper|initcap)\([^;=]*? collate "C"\)', 'g'))`)
	none(t, db, "an index that a new version of the C library may break", `
		select distinct a.attrelid::regclass::text
		  from pg_attribute a join pg_index i on i.indexrelid = a.attrelid join pg_class c on c.oid = i.indrelid
		 where c.relnamespace = 'oq'::regnamespace and a.attcollation not in (0, 'pg_catalog."C"'::regcollation)`)
}

func TestComments(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	none(t, db, "no comment, or a first sentence over 72 characters, on", `
		with o as (
			select p.oid::regprocedure::text as name, obj_description(p.oid, 'pg_proc') as comment from `+ours+`
			union all
			select c.oid::regclass::text, obj_description(c.oid, 'pg_class')
			  from pg_class c join pg_namespace n on n.oid = c.relnamespace
			 where (n.nspname = 'oq' or n.nspname = 'public' and c.relname like 'oq\_%')
			   and c.relkind in ('r', 'p', 'v', 'S')
			   and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i' and c.relkind = 'S')
			union all
			select 'type ' || y.typname, obj_description(y.oid, 'pg_type') from pg_type y
			 where y.typnamespace = 'oq'::regnamespace and (y.typtype = 'e' or y.typtype = 'c' and exists (
				select from pg_class c where c.oid = y.typrelid and c.relkind = 'c')))
		select name from o
		 where comment is null or length(split_part(split_part(comment, E'\n', 1), '. ', 1)) > 73`)
}

func TestTablesCanBePublished(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	none(t, db, "no primary key or replica identity, which a publication for all tables needs", `
		select c.oid::regclass::text from pg_class c
		 where c.relnamespace = 'oq'::regnamespace and c.relkind = 'r' and c.relpersistence = 'p' and not exists (
			select from pg_index i where i.indrelid = c.oid and (i.indisprimary or i.indisreplident))`)
	none(t, db, "a foreign key, which locks rows", `
		select conname::text from pg_constraint where connamespace = 'oq'::regnamespace and contype = 'f'`)
}

// The contract, word for word; results of composite types are compared by their columns below.
func TestSignatures(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	lease := "job_id bigint, lease_token bigint, queue_name text, payload jsonb, headers jsonb, priority integer, " +
		"attempt integer, max_retries integer, group_key text, created_at timestamp with time zone, " +
		"lease_expires_at timestamp with time zone"
	for _, want := range []string{
		"oq_enqueue(queue_name text, payload jsonb, priority integer, run_at timestamp with time zone, max_retries integer, unique_key text, group_key text, headers jsonb, options jsonb) bigint",
		"oq_enqueue_bulk(queue_name text, payloads jsonb[], priority integer, run_at timestamp with time zone, max_retries integer) SETOF bigint",
		"oq_enqueue_many(jobs jsonb) TABLE(idx integer, job_id bigint, inserted boolean)",
		"oq_update(job_id bigint, patch jsonb) boolean",
		"oq_cancel(job_id bigint, reason text) boolean",
		"oq_batch(options jsonb) bigint",
		"oq_batch_seal(batch_id bigint) boolean",
		"oq_schedule(schedule_name text, cron text, queue_name text, payload jsonb, timezone text, options jsonb) timestamp with time zone",
		"oq_unschedule(schedule_name text) boolean",
		"oq_next_runs(cron text, timezone text, count integer, after timestamp with time zone) SETOF timestamp with time zone",
		"oq_run_schedules() bigint",
		"oq_publish(topic text, payload jsonb, headers jsonb) integer",
		"oq_subscribe(topic_pattern text, queue_name text) void",
		"oq_unsubscribe(topic_pattern text, queue_name text) boolean",
		"oq_watch(table_name regclass, queue_name text, events text, columns text[], condition text, options jsonb) text",
		"oq_unwatch(table_name regclass, queue_name text) boolean",
		"oq_enqueue_row() trigger",
		"oq_lease(queue_name text, worker_id text, lease_seconds integer, max_jobs integer) " + lease,
		"oq_next(queue_name text, worker_id text, lease_seconds integer, max_jobs integer, acked_job_ids bigint[], acked_tokens bigint[]) " + lease,
		"oq_ack(job_id bigint, lease_token bigint, result jsonb, strict boolean) boolean",
		"oq_ack_many(job_ids bigint[], lease_tokens bigint[], results jsonb[]) SETOF bigint",
		"oq_nack(job_id bigint, lease_token bigint, error text, retry boolean, retry_after interval) text",
		"oq_release(job_id bigint, lease_token bigint, delay interval) boolean",
		"oq_heartbeat(job_id bigint, lease_token bigint, lease_seconds integer, progress jsonb) text",
		"oq_heartbeat_many(job_ids bigint[], lease_tokens bigint[], lease_seconds integer) TABLE(job_id bigint, status text)",
		"oq_listen(queue_name text) void",
		"oq_throttle(queue_name text, until timestamp with time zone, group_key text) void",
		"oq_limit(queue_name text, group_key text, max_running integer, rate numeric, per interval) void",
		"oq_unlisten(queue_name text) void",
		"oq_get(job_id bigint) SETOF oq_jobs",
		"oq_list(queue_name text, state text, max_jobs integer, before bigint) SETOF oq_jobs",
		"oq_attempts(job_id bigint) TABLE(attempt integer, worker_id text, leased_at timestamp with time zone, ended_at timestamp with time zone, outcome text, error text)",
		"oq_result(job_id bigint) TABLE(state text, result jsonb, error text)",
		"oq_parents(job_id bigint) TABLE(parent_id bigint, state text, result jsonb, error text)",
		"oq_redrive(queue_name text, filter jsonb, patch jsonb, per_second numeric, max_jobs integer, dry_run boolean) SETOF bigint",
		"oq_purge(queue_name text, state text, older_than interval, max_jobs integer) bigint",
		"oq_stats(queue_name text) queue_name text, paused boolean, ready bigint, scheduled bigint, waiting bigint, leased bigint, dead bigint, completed bigint, oldest_ready_seconds numeric, enqueued_per_second numeric, completed_per_second numeric",
		"oq_audit() TABLE(law text, violations bigint, sample text)",
		"oq_create_queue(queue_name text, options jsonb) boolean",
		"oq_drop_queue(queue_name text, force boolean) boolean",
		"oq_pause(queue_name text) void",
		"oq_resume(queue_name text) void",
		"oq_grant(queue_name text, role_name regrole, privileges text[]) void",
		"oq_revoke(queue_name text, role_name regrole, privileges text[]) void",
		"oq_tick(max_rows integer) TABLE(duty text, done bigint)",
		"oq_promote(max_rows integer) bigint",
		"oq_reap(max_rows integer) bigint",
		"oq_wake() bigint",
		"oq_advance() bigint",
		"oq_rotate(max_rows integer) bigint",
		"oq_compact() bigint",
		"oq_version() text",
	} {
		name := want[:strings.Index(want, "(")]
		got := list(t, db, `
			select p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ') ' || coalesce((
				select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
				  from pg_type y join pg_attribute a on a.attrelid = y.typrelid
				 where y.oid = p.prorettype and y.typnamespace = 'oq'::regnamespace and a.attnum > 0),
				pg_get_function_result(p.oid))
			from `+ours+` and p.proname = '`+name+`'`)
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s\n got %q\nwant %q", name, got, want)
		}
	}
}

// The arguments with their defaults, as the contract writes them.
func TestDefaults(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	words := strings.NewReplacer("timestamp with time zone", "timestamptz", "integer", "int", " DEFAULT ", " = ",
		"NULL", "null", "'00:00:00'", "'0'", "'00:00:01'", "'1 second'")
	cast := regexp.MustCompile(`::[a-z ]+(\[\])?`)
	for _, want := range []string{
		"oq_enqueue(queue_name text, payload jsonb = '{}', priority int = 0, run_at timestamptz = null, max_retries int = null, " +
			"unique_key text = null, group_key text = null, headers jsonb = null, options jsonb = null)",
		"oq_enqueue_bulk(queue_name text, payloads jsonb[], priority int = 0, run_at timestamptz = null, max_retries int = null)",
		"oq_enqueue_many(jobs jsonb)",
		"oq_update(job_id bigint, patch jsonb)",
		"oq_cancel(job_id bigint, reason text = null)",
		"oq_batch(options jsonb = '{}')",
		"oq_batch_seal(batch_id bigint)",
		"oq_schedule(schedule_name text, cron text, queue_name text, payload jsonb = '{}', timezone text = 'UTC', " +
			"options jsonb = null)",
		"oq_unschedule(schedule_name text)",
		"oq_next_runs(cron text, timezone text = 'UTC', count int = 5, after timestamptz = now())",
		"oq_run_schedules()",
		"oq_publish(topic text, payload jsonb = '{}', headers jsonb = null)",
		"oq_subscribe(topic_pattern text, queue_name text)",
		"oq_unsubscribe(topic_pattern text, queue_name text)",
		"oq_watch(table_name regclass, queue_name text, events text = 'insert', columns text[] = null, condition text = null, " +
			"options jsonb = null)",
		"oq_unwatch(table_name regclass, queue_name text)",
		"oq_lease(queue_name text, worker_id text = null, lease_seconds int = null, max_jobs int = 1)",
		"oq_ack(job_id bigint, lease_token bigint, result jsonb = null, strict boolean = false)",
		"oq_ack_many(job_ids bigint[], lease_tokens bigint[], results jsonb[] = null)",
		"oq_next(queue_name text, worker_id text = null, lease_seconds int = null, max_jobs int = 1, " +
			"acked_job_ids bigint[] = null, acked_tokens bigint[] = null)",
		"oq_nack(job_id bigint, lease_token bigint, error text = null, retry boolean = true, retry_after interval = null)",
		"oq_release(job_id bigint, lease_token bigint, delay interval = null)",
		"oq_heartbeat(job_id bigint, lease_token bigint, lease_seconds int = null, progress jsonb = null)",
		"oq_heartbeat_many(job_ids bigint[], lease_tokens bigint[], lease_seconds int = null)",
		"oq_throttle(queue_name text, until timestamptz, group_key text = null)",
		"oq_limit(queue_name text, group_key text = null, max_running int = null, rate numeric = null, per interval = '1 second')",
		"oq_listen(queue_name text)",
		"oq_unlisten(queue_name text)",
		"oq_get(job_id bigint)",
		"oq_list(queue_name text = null, state text = null, max_jobs int = 100, before bigint = null)",
		"oq_attempts(job_id bigint)",
		"oq_result(job_id bigint)",
		"oq_parents(job_id bigint)",
		"oq_redrive(queue_name text, filter jsonb = '{}', patch jsonb = '{}', per_second numeric = null, max_jobs int = null, " +
			"dry_run boolean = false)",
		"oq_purge(queue_name text, state text, older_than interval = '0', max_jobs int = null)",
		"oq_stats(queue_name text = null)",
		"oq_audit()",
		"oq_create_queue(queue_name text, options jsonb = '{}')",
		"oq_drop_queue(queue_name text, force boolean = false)",
		"oq_pause(queue_name text)",
		"oq_resume(queue_name text)",
		"oq_grant(queue_name text, role_name regrole, privileges text[])",
		"oq_revoke(queue_name text, role_name regrole, privileges text[])",
		"oq_tick(max_rows int = 1000)",
		"oq_promote(max_rows int = 1000)",
		"oq_reap(max_rows int = 1000)",
		"oq_wake()",
		"oq_advance()",
		"oq_compact()",
		"oq_version()",
	} {
		name := want[:strings.Index(want, "(")]
		got := list(t, db, `
			select p.proname || '(' || pg_get_function_arguments(p.oid) || ')' from `+ours+` and p.proname = '`+name+`'`)
		if len(got) != 1 || words.Replace(cast.ReplaceAllString(got[0], "")) != want {
			t.Errorf("%s\n got %q\nwant %q", name, got, want)
		}
	}
}

// The views have at least the columns of the contract, and nothing of a template is left in the code.
func TestViewsAndTemplates(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	none(t, db, "oq_jobs lacks", `
		select c from unnest('{job_id,queue_name,state,priority,attempt,max_retries,lost_leases,run_at,created_at,worker_id,
			lease_expires_at,finished_at,group_key,unique_key,payload,headers,result,error}'::text[]) c
		 where not exists (
			select from pg_attribute a where a.attrelid = 'public.oq_jobs'::regclass and a.attname = c)`)
	none(t, db, "no view", `
		select v from unnest('{oq_queues,oq_jobs,oq_dead,oq_workers,oq_schedules,oq_watches,oq_subscriptions}'::text[]) v where to_regclass('public.' || v) is null`)
	none(t, db, "part of a template in", `
		select p.oid::regprocedure::text from `+ours+` and (p.prosrc like '%{{%' or p.prosrc like '%}}%')
		union all
		select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
		 where c.relkind = 'v' and n.nspname in ('oq', 'public') and pg_get_viewdef(c.oid) like '%{{%'`)
	none(t, db, "a view that rights can be probed through", `
		select c.oid::regclass::text from pg_class c
		 where c.relkind = 'v' and c.relnamespace = 'public'::regnamespace and c.relname like 'oq\_%'
		   and not coalesce('security_barrier=true' = any (c.reloptions), false)`)
}

var heading = regexp.MustCompile("(?m)^### (oq_[a-z_]+)$")

// The reference names every function and view with its arguments, defaults, columns and comment.
func TestReference(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	page := read(t, "sql/README.md")
	words := strings.NewReplacer("timestamp with time zone", "timestamptz", "integer", "int", " DEFAULT ", " default ")
	cast := regexp.MustCompile(`::[a-z ]+(\[\])?`)
	var documented []string
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		documented = append(documented, m[1])
	}
	slices.Sort(documented)
	installed := list(t, db, `
		select name from (
			select p.proname::text as name from `+ours+` and n.nspname = 'public'
			union select c.relname::text from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'v'
			 and c.relname like 'oq\_%') x order by name collate "C"`)
	if !slices.Equal(documented, installed) {
		t.Errorf("sql/README.md describes %v\ninstalled are %v", documented, installed)
	}
	for _, line := range list(t, db, `
		select p.proname || '(' || pg_get_function_arguments(p.oid) || ')' from `+ours+` and n.nspname = 'public'`) {
		if want := words.Replace(cast.ReplaceAllString(line, "")); !strings.Contains(page, want) {
			t.Errorf("sql/README.md does not have %s", want)
		}
	}
	for _, comment := range list(t, db, `
		select obj_description(p.oid, 'pg_proc') from `+ours+` and n.nspname = 'public'
		union all
		select obj_description(c.oid, 'pg_class') from pg_class c
		 where c.relnamespace = 'public'::regnamespace and c.relkind = 'v' and c.relname like 'oq\_%'`) {
		if !strings.Contains(page, comment) {
			t.Errorf("sql/README.md does not have the comment %q", comment)
		}
	}
	for _, column := range list(t, db, `
		select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
		  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
		 where c.relnamespace = 'public'::regnamespace and c.relkind = 'v' and c.relname like 'oq\_%'
		 group by c.oid`) {
		if want := "Columns: " + words.Replace(column) + "."; !strings.Contains(page, want) {
			t.Errorf("sql/README.md does not have %s", want)
		}
	}
	for _, code := range []string{"OQ001", "OQ002", "OQ003", "OQ006", "25001", "40001", "42501", "55000", "55P03"} {
		if !strings.Contains(page, "| "+code+" |") {
			t.Errorf("sql/README.md does not explain %s", code)
		}
	}
}

func TestPlpgsqlCheck(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	ctx := context.Background()
	if _, err := db.Pool.Exec(ctx, `create extension plpgsql_check`); err != nil {
		// Only Debian's servers have it as a package; CI runs on one.
		if os.Getenv("OQ_TEST_PG_MAJOR") == "" && os.Getenv("OQ_TEST_DATABASE_URL") == "" && os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skipf("this server has no plpgsql_check: %v", err)
	}
	none(t, db, "plpgsql_check", `
		select p.proname || ': ' || c
		  from (select p.* from `+ours+`) p, lateral plpgsql_check_function(p.oid, coalesce((
			select t.tgrelid from pg_trigger t where t.tgfoid = p.oid limit 1),
			case when p.prorettype = 'trigger'::regtype then 'oq.instance'::regclass else 0 end), extra_warnings => true,
			security_warnings => true, performance_warnings => false) c
		 where p.prolang = (select oid from pg_language where lanname = 'plpgsql')`)
}

// The files of sql: every one installed, lower-case, no line far over 100 columns, one object each.
func TestFiles(t *testing.T) {
	t.Parallel()
	install := read(t, "sql/code/install.sql")
	used := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, "sql/code/*/*.sql"))
	if err != nil || len(files) < 50 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	texts := map[string]string{}
	for _, path := range files {
		rel, err := filepath.Rel(filepath.Join(root, "sql/code"), path)
		if err != nil {
			t.Fatal(err)
		}
		texts[rel] = read(t, filepath.Join("sql/code", rel))
	}
	texts["install.sql"] = install
	template := regexp.MustCompile(`\{\{\s*template "([^"]+)"`)
	for _, text := range texts {
		for _, m := range template.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
		}
	}
	object := regexp.MustCompile(`(?m)^create or replace (function|view) `)
	shouting := regexp.MustCompile(`\b(SELECT|INSERT|DELETE|UPDATE|CREATE|FUNCTION|WHERE|RETURNS|BEGIN|BIGINT)\b`)
	comment := regexp.MustCompile(`(?m)--.*$|\{\{-? /\*(?s:.*?)\*/ -?\}\}`)
	for rel, text := range texts {
		if rel != "install.sql" && !used[rel] {
			t.Errorf("%s is not installed", rel)
		}
		if n := len(object.FindAllString(text, -1)); n > 1 {
			t.Errorf("%s makes %d objects", rel, n)
		}
		code := regexp.MustCompile(`'[^']*'`).ReplaceAllString(comment.ReplaceAllString(text, ""), "''")
		if m := shouting.FindString(code); m != "" {
			t.Errorf("%s: %s in upper case", rel, m)
		}
		for i, line := range strings.Split(text, "\n") {
			if len([]rune(line)) > 140 {
				t.Errorf("%s:%d: %d columns", rel, i+1, len([]rune(line)))
			}
			// A server with EUC_JP takes no UTF-8, and LATIN1 would show other characters.
			if strings.ContainsFunc(line, func(r rune) bool { return r > unicode.MaxASCII }) {
				t.Errorf("%s:%d: a character that is not ASCII", rel, i+1)
			}
		}
	}
}

// The daemon and the clients know no table.
func TestNoTableNamesOutsideSQL(t *testing.T) {
	t.Parallel()
	tables := regexp.MustCompile(`(?i)\b(from|into|update|join|table)\s+(oq\.|"oq"\.)?` +
		`(queue|job|finished|attempt|ready|scheduled|leased|dead|ttl|mark|epoch_open|passed|generation_state|instance|schedule|deputy|subscription|watch|watch_failure)\b`)
	for _, dir := range []string{"daemon", "clients"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") || filepath.Ext(path) != ".go" {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, quoted := range regexp.MustCompile("`[^`]*`|\"[^\"\n]*\"").FindAllString(string(raw), -1) {
				if m := tables.FindString(quoted); m != "" && strings.Contains(strings.ToLower(quoted), "select") {
					t.Errorf("%s names a table: %s", path, m)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A string means the same to every session, whatever its standard_conforming_strings: a backslash stands in E” alone.
func TestNoBackslashInPlainStrings(t *testing.T) {
	t.Parallel()
	skip := regexp.MustCompile(`(?s)\{\{.*?\}\}|--[^\n]*`)
	found := 0
	err := filepath.WalkDir("../../sql/code", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".sql" {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// What is skipped keeps its line ends.
		code := skip.ReplaceAllStringFunc(string(raw), func(s string) string { return strings.Repeat("\n", strings.Count(s, "\n")) })
		for i := 0; i < len(code); i++ {
			if code[i] != '\'' {
				continue
			}
			begin, escapes := i, i > 0 && (code[i-1] == 'E' || code[i-1] == 'e')
			for i++; i < len(code) && code[i] != '\''; i++ {
				if code[i] == '\\' && escapes {
					i++
				}
			}
			if found++; i < len(code) && !escapes && strings.Contains(code[begin:i], `\`) {
				t.Errorf("%s:%d: %s'", path, strings.Count(code[:begin], "\n")+1, code[begin:i])
			}
		}
		return nil
	})
	if err != nil || found < 1000 {
		t.Errorf("%d strings: %v", found, err)
	}
}
