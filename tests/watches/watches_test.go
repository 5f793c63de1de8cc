package watches

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	osexec "os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/openqueue/openqueue/tests/testdb"
)

// listening is a session that keeps what it is warned of.
func listening(t *testing.T, db *testdb.DB) (*pgx.Conn, *[]string) {
	t.Helper()
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	warnings := &[]string{}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" {
			*warnings = append(*warnings, n.Message)
		}
	}
	c, err := pgx.ConnectConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c, warnings
}

// The examples of the reference give what stands below them.
func TestExamplesOfTheReference(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../sql/README.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```sql\n(.*?)```\n\n```\n(.*?)```")
	for _, title := range []string{"Topics", "Table watches"} {
		_, section, found := strings.Cut(string(page), "\n## "+title+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		m := example.FindStringSubmatch(section)
		if !found || m == nil {
			t.Fatalf("no example in %s", title)
		}
		out := testdb.New(t).Psql(t, "-c", "set client_min_messages = warning", "-f", write(t, m[1]))
		var lines []string
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
		if got := strings.Join(lines, "\n"); got != strings.TrimSpace(m[2]) {
			t.Errorf("%s gives\n%s\nnot\n%s", title, got, m[2])
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := t.TempDir() + "/example.sql"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const shop = `create schema shop;
	create table shop.orders (id int primary key, status text, amount numeric);`

// A dump holds watches and subscriptions, and a restored copy goes on with them.
func TestDumpAndRestore(t *testing.T) {
	t.Parallel()
	db, restored := testdb.New(t), testdb.Empty(t)
	c := db.Conn(t)
	exec(t, c, shop+`create table gone (id int); select oq_watch('gone', 'w');
		select oq_watch('shop.orders', 'w', 'insert, update', '{status}', $$new.status <> 'it''s'$$);
		select oq_subscribe('a.#', 'topic'); drop table gone; insert into shop.orders values (1, 'a')`)
	c2 := copyOf(t, db, restored)
	exec(t, c2, "insert into shop.orders values (2, 'b'), (3, 'it''s'); update shop.orders set amount = 1; select oq_publish('a.b')")
	exec(t, c2, "update shop.orders set status = 'c' where id = 2")
	got := strings.Join(list[string](t, c2, `select queue_name || ' ' || coalesce(payload ->> 'op', '') || coalesce(payload -> 'new' ->> 'id', '')
		from oq_jobs order by job_id`), ", ")
	if want := "w INSERT1, w INSERT2, topic , w UPDATE2"; got != want {
		t.Errorf("jobs in the copy: %s, want %s", got, want)
	}
	if got := get[string](t, c2, "select concat_ws(' ', table_name, queue_name, failed, problem) from oq_watches"); got != "shop.orders w 0" {
		t.Errorf("the copy's watch: %s", got)
	}
	if !get[bool](t, c2, "select oq_unwatch('shop.orders', 'w')") {
		t.Error("the copy's watch can't be ended")
	}
}

// copyOf restores one database into another: by pg_dump where it is as new as the server, else by what
// pg_dump would write of a table, a trigger and its function, and of the rows.
func copyOf(t *testing.T, from, to *testdb.DB) *pgx.Conn {
	t.Helper()
	c := from.Conn(t)
	major := get[int](t, c, "select current_setting('server_version_num')::int / 10000")
	if out, err := osexec.Command("pg_dump", "--version").Output(); err == nil {
		if m := regexp.MustCompile(`\) (\d+)`).FindSubmatch(out); m != nil {
			if v, _ := strconv.Atoi(string(m[1])); v >= major {
				dump, err := osexec.Command("pg_dump", from.URL).Output()
				if err != nil {
					t.Fatal(err)
				}
				to.Psql(t, "-c", "set client_min_messages = error", "-f", write(t, string(dump)))
				return to.Conn(t)
			}
		}
	}
	if err := testdb.Migrate(t.Context(), to.URL, "oq", "public", -1); err != nil {
		t.Fatal(err)
	}
	c2 := to.Conn(t)
	exec(t, c2, shop)
	for _, def := range list[string](t, c, `
		select pg_get_functiondef(tgfoid) from pg_trigger where tgname like 'oq\_watch%' union
		select pg_get_triggerdef(oid) from pg_trigger where tgname like 'oq\_watch%' order by 1`) {
		exec(t, c2, def)
	}
	exec(t, c, "set search_path = ''")
	for _, table := range []string{"oq.queue", "oq.watch", "oq.subscription", "oq.mark", "oq.job", "oq.ready"} {
		exec(t, c2, "delete from "+table)
		var data bytes.Buffer
		source := table
		if table == "oq.job" {
			source = "(select * from oq.job)"
		}
		if _, err := c.PgConn().CopyTo(t.Context(), &data, "copy "+source+" to stdout"); err != nil {
			t.Fatal(err)
		}
		if _, err := c2.PgConn().CopyFrom(t.Context(), &data, "copy "+table+" from stdin"); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, c2, "select setval('oq.position', $1)", get[int64](t, c, "select last_value from oq.position"))
	return c2
}

// Without OpenQueue, or what of it a watch calls, the table can be written to. Its down migration takes the
// triggers along.
func TestWithoutOpenQueue(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, warnings := listening(t, db)
	exec(t, c, shop+"select oq_watch('shop.orders', 'w', 'insert, update, delete')")
	exec(t, c, "begin; drop function oq_watch_fire")
	exec(t, c, "insert into shop.orders values (1); update shop.orders set id = 2; delete from shop.orders")
	if len(*warnings) != 3 {
		t.Errorf("warnings: %q, want one a statement", *warnings)
	}
	exec(t, c, "rollback; insert into shop.orders values (1)")
	if n := get[int](t, c, "select count(*)::int from oq_jobs"); n != 1 {
		t.Errorf("%d jobs after the function came back, want 1", n)
	}
	if err := testdb.Migrate(t.Context(), db.URL, "oq", "public", 1); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "insert into shop.orders values (2)")
	if err := testdb.Migrate(t.Context(), db.URL, "oq", "public", -1); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "insert into shop.orders values (3)")
	if n := get[int](t, c, "select count(*)::int from oq_jobs"); n != 2 {
		t.Errorf("%d jobs after the code was made again, want 2", n)
	}
	if err := testdb.Migrate(t.Context(), db.URL, "oq", "public", 0); err != nil {
		t.Fatal(err)
	}
	exec(t, c, "insert into shop.orders values (4)")
	if left := list[string](t, c, `select tgname::text from pg_trigger where tgname like 'oq\_%'
		union select proname::text from pg_proc where proname like 'oq\_%'`); len(left) > 0 {
		t.Errorf("left by the down migration: %v", left)
	}
}

// An owner who may not even use the API's schema any more writes on.
func TestOwnerWithoutTheAPI(t *testing.T) {
	t.Parallel()
	db := testdb.Empty(t)
	if err := testdb.Migrate(t.Context(), db.URL, "oq", "api", -1); err != nil {
		t.Fatal(err)
	}
	owner, c := role(t, db, "oq_producer")
	exec(t, db.Pool, "create schema shop authorization "+owner)
	exec(t, c, "set client_min_messages = error; create table shop.orders (id int); select api.oq_watch('shop.orders', 'w')")
	exec(t, c, "insert into shop.orders values (1)")
	exec(t, db.Pool, "revoke oq_producer from "+owner)
	exec(t, c, "insert into shop.orders values (2)")
	if got := get[string](t, db.Pool, "select concat_ws(' ', failed, problem) from api.oq_watches"); got != "0 role "+owner+" may not produce in the queue" {
		t.Errorf("oq_watches says: %s", got)
	}
	exec(t, db.Pool, "grant oq_producer to "+owner)
	exec(t, c, "insert into shop.orders values (3)")
	if got := list[string](t, db.Pool, "select payload -> 'new' ->> 'id' from api.oq_jobs order by job_id"); strings.Join(got, " ") != "1 3" {
		t.Errorf("jobs of %v, want 1 and 3", got)
	}
}

// Writers whose watch fails do not wait for each other, and every failure counts.
func TestFailuresBlockNobody(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db.Pool, shop+"select oq_create_queue('full', '{\"max_depth\": 1}'); select oq_enqueue('full'); select oq_watch('shop.orders', 'full')")
	exec(t, db.Pool, "set client_min_messages = error; insert into shop.orders values (-1)")
	var open []*pgx.Conn
	for i := range 5 {
		c := db.Conn(t)
		exec(t, c, "set client_min_messages = error; set lock_timeout = '5 s'; begin")
		for j := range 3 {
			exec(t, c, "insert into shop.orders values ($1)", 10*i+j)
		}
		open = append(open, c)
	}
	for i, c := range open {
		if i == 2 {
			exec(t, c, "rollback")
		} else {
			exec(t, c, "commit")
		}
	}
	c := open[0]
	exec(t, c, "insert into shop.orders values (100)")
	exec(t, c, "begin isolation level serializable; insert into shop.orders values (101); commit")
	if n := get[int](t, c, "select failed::int from oq_watches"); n != 15 {
		t.Errorf("%d failures, want 15", n)
	}
	exec(t, c, "insert into shop.orders values (102)")
	if n := get[int](t, c, "select count(*)::int from oq.watch_failure"); n != 1 {
		t.Errorf("%d rows of failures, want one that took up the others", n)
	}
}

// A watch, and a publish, in a transaction that is prepared.
func TestPreparedTransactions(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c, worker := db.Conn(t), db.Conn(t)
	exec(t, c, shop+`select oq_create_queue('w', '{"notify": "daemon"}'); select oq_watch('shop.orders', 'w');
		select oq_subscribe('t', 'w')`)
	exec(t, worker, "select oq_listen('w')")
	name := "watched_" + strings.ReplaceAll(t.Name(), "/", "_") + strconv.Itoa(int(c.PgConn().PID()))
	exec(t, c, "begin; insert into shop.orders values (1); select oq_publish('t')")
	exec(t, c, fmt.Sprintf("prepare transaction '%s'", name))
	if n := get[int](t, worker, "select count(*)::int from oq_jobs"); n != 0 {
		t.Errorf("%d jobs before the commit", n)
	}
	exec(t, c, fmt.Sprintf("commit prepared '%s'", name))
	if n := get[int](t, worker, "select count(*)::int from oq_lease('w', max_jobs => 5)"); n != 2 {
		t.Errorf("%d jobs after the commit, want 2", n)
	}
}

// MERGE came with PostgreSQL 15.
func TestMerge(t *testing.T) {
	t.Parallel()
	c := testdb.New(t).Conn(t)
	exec(t, c, shop+"insert into shop.orders values (1, 'a'), (2, 'b'), (3, 'c')")
	exec(t, c, "select oq_watch('shop.orders', 'w', 'insert, update, delete')")
	merge := `merge into shop.orders o using (values (1, 'x'), (2, null), (4, 'y'), (5, 'z')) v(id, status) on v.id = o.id
		when matched and v.status is null then delete
		when matched then update set status = v.status
		when not matched then insert (id, status) values (v.id, v.status)`
	want := "DELETE 2, INSERT 4, INSERT 5, UPDATE 1 a x"
	if get[int](t, c, "select current_setting('server_version_num')::int") < 150000 {
		if code := refused(t, c, merge); code != "42601" {
			t.Errorf("MERGE before 15: %s", code)
		}
		want = ""
	} else {
		exec(t, c, merge)
	}
	got := strings.Join(list[string](t, c, `select concat_ws(' ', payload ->> 'op', coalesce(payload -> 'new' ->> 'id', payload -> 'old' ->> 'id'),
		case payload ->> 'op' when 'UPDATE' then concat_ws(' ', payload -> 'old' ->> 'status', payload -> 'new' ->> 'status') end)
		from oq_jobs order by 1`), ", ")
	if got != want {
		t.Errorf("jobs: %s\nwant: %s", got, want)
	}
	if want == "" {
		return
	}
	// What moves to another partition, by the branches that the merge has.
	exec(t, c, `create table moved (id int, r int) partition by list (r);
		create table moved_1 partition of moved for values in (1); create table moved_2 partition of moved for values in (2);
		insert into moved values (1, 1); select oq_watch('moved', 'moved', 'insert, update, delete')`)
	for i, branches := range []string{"", "when matched and v.r is null then delete",
		"when not matched then insert values (v.id, v.r)",
		"when matched and v.r is null then delete when not matched then insert values (v.id, v.r)"} {
		exec(t, c, fmt.Sprintf("merge into moved o using (values (1, %d)) v(id, r) on v.id = o.id %s when matched then update set r = v.r",
			2-i%2, branches))
		got := strings.Join(list[string](t, c, "select payload ->> 'op' from oq_jobs where queue_name = 'moved' and state = 'ready' order by 1"), " ")
		if want := []string{"", "DELETE", "INSERT", "DELETE INSERT"}[i]; got != want {
			t.Errorf("%q makes %q, want %q", branches, got, want)
		}
		exec(t, c, "select oq_purge('moved', 'ready')")
	}
}

// DDL behind a writer gives up; two that watch at once make one watch.
func TestWatchBesideOthers(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	writer, owner := db.Conn(t), db.Conn(t)
	exec(t, owner, shop)
	exec(t, writer, "begin; insert into shop.orders values (1)")
	if code := refused(t, owner, "select oq_watch('shop.orders', 'w')"); code != "55P03" {
		t.Errorf("behind a writer: %s, want 55P03", code)
	}
	exec(t, writer, "commit")
	exec(t, owner, "alter function oq_watch set lock_timeout = '30s'") // From here on it is to wait, and not to give up.
	exec(t, writer, "begin; select oq_watch('shop.orders', 'w', 'insert, delete')")
	done := make(chan error, 1)
	go func() {
		_, err := owner.Exec(context.Background(), "select oq_watch('shop.orders', 'w', 'insert, update')")
		done <- err
	}()
	db.WaitBlocked(t, owner.PgConn().PID())
	exec(t, writer, "commit")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(list[string](t, owner, `select substring(tgname from '[a-z]*$') from pg_trigger
		where tgrelid = 'shop.orders'::regclass order by 1`), " "); got != "insert update" {
		t.Errorf("triggers: %s", got)
	}
	exec(t, owner, "insert into shop.orders values (2)")
	if n := get[int](t, owner, "select count(*)::int from oq_jobs"); n != 1 {
		t.Errorf("%d jobs, want 1", n)
	}
}

// role makes a role of the test's own, and a session of it.
func role(t *testing.T, db *testdb.DB, groups string) (string, *pgx.Conn) {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/") + "_" + strconv.Itoa(len(list[string](t, db.Pool,
		"select rolname::text from pg_roles where starts_with(rolname, current_database())")))
	exec(t, db.Pool, fmt.Sprintf("create role %s login in role %s", name, groups))
	u.User = url.User(name)
	c, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		c.Close(ctx)
		if admin, err := pgx.Connect(ctx, db.URL); err == nil {
			defer admin.Close(ctx)
			if _, err := admin.Exec(ctx, fmt.Sprintf("drop owned by %[1]s cascade; drop role %[1]s", name)); err != nil {
				t.Error(err)
			}
		}
	})
	return name, c
}

// A superuser who watches somebody else's table runs none of that one's code.
func TestConditionsOfASuperuser(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	mallory, c := role(t, db, "oq_producer")
	exec(t, db.Pool, fmt.Sprintf("create schema trap authorization %s", mallory))
	exec(t, c, `
		create table trap.caught (who text);
		grant all on trap.caught to public;
		create function trap.snap(anyelement) returns boolean language plpgsql as
			$$ begin insert into trap.caught values (current_user); return true; end $$;
		create function trap.eq(text, varchar) returns boolean language sql as $$ select trap.snap(1) $$;
		create function trap.eq(varchar, text) returns boolean language sql as $$ select trap.snap(1) $$;
		create operator trap.= (function = trap.eq, leftarg = varchar, rightarg = text);
		create function trap.lower(varchar) returns text language sql as $$ select trap.snap(1)::text $$;
		create domain trap.number as int check (trap.snap(value));
		create type trap.odd as enum ('a');
		create function trap.to_json(trap.odd) returns json language sql as $$ select to_json(trap.snap(1)) $$;
		create cast (trap.odd as json) with function trap.to_json(trap.odd);
		create table trap.orders (id int, n trap.number default 1, v varchar, o trap.odd default 'a');
		delete from trap.caught`)
	exec(t, db.Pool, "set search_path = trap, public; select oq_watch('trap.orders', 'w', 'insert, update', "+
		"columns => '{n,o,v}', condition => $$lower(new.v) = 'x' and new.v = 'x' and new.n = 1$$)")
	if got := list[string](t, db.Pool, "select who from trap.caught"); len(got) > 0 {
		t.Errorf("oq_watch ran the owner's code as %v", got)
	}
	exec(t, db.Pool, "insert into trap.orders (id, v) values (1, 'x'); update trap.orders set o = null")
	exec(t, db.Pool, "create trigger by_row after insert on trap.orders for each row execute function oq_enqueue_row('w')")
	exec(t, db.Pool, "delete from trap.caught")
	exec(t, c, "insert into trap.orders (id, v) values (2, 'x')")
	for _, who := range list[string](t, db.Pool, "select who from trap.caught") {
		if who != mallory {
			t.Errorf("the table's owner wrote, and its code ran as %s", who)
		}
	}
	if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs"); n != 4 {
		t.Errorf("%d jobs, want 4", n)
	}
}

// Another producer can make no job by the right of a table's owner.
func TestNobodyActsAsAnother(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	alice, a := role(t, db, "oq_producer")
	_, m := role(t, db, "oq_producer")
	exec(t, db.Pool, fmt.Sprintf(`create schema alice authorization %[1]s; create schema trap; grant all on schema trap to public;
		select oq_create_queue('closed', '{"restricted": true}'); select oq_grant('closed', '%[1]s', '{produce}')`, alice))
	exec(t, a, "create table alice.t (id int); grant usage on schema alice to public; select oq_watch('alice.t', 'closed')")
	exec(t, m, "create table trap.t (id int)")
	for _, call := range []string{
		"select oq_watch('trap.t', 'closed')",
		"select oq_watch('alice.t', 'closed')",
		"select oq_unwatch('alice.t', 'closed')",
		"select alice.oq_watch_1()",
		"create trigger x after insert on trap.t for each row execute function alice.oq_watch_1()",
		"select oq.watch_put('" + alice + "', 1, 'alice.t'::regclass, '{1}', '{}', '{}', 0, null, null)",
		"create function trap.f() returns void language sql begin atomic select oq.watch_put('" + alice +
			"', 1, 'alice.t'::regclass, '{1}', '{}', '{}', 0, null, null); end",
		"create operator trap.### (function = oq.watch_allowed, leftarg = oid, rightarg = bigint)",
	} {
		if code := refused(t, m, call); code != "42501" && code != "0A000" {
			t.Errorf("%s: %s", call, code)
		}
	}
	// By hand, with a trigger of the same name, or inside a function of alice's name.
	exec(t, m, `set client_min_messages = error;
		select oq_watch_fire(1, 'alice.t'::regclass, '{1}', '{}', '{}');
		select oq_watch_fire(1, 'trap.t'::regclass, '{1}', '{}', '{}');
		create function trap.oq_watch_1() returns trigger language plpgsql security definer as
			$$ begin perform public.oq_watch_fire(1, 'alice.t'::regclass, '{1}', '{}', '{}', 7, 'XX000', 'forged'); return null; end $$;
		create trigger oq_watch_1_insert after insert on trap.t for each statement execute function trap.oq_watch_1();
		create trigger row after insert on trap.t for each row execute function oq_enqueue_row('closed');
		insert into trap.t values (1)`)
	if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs"); n != 0 {
		t.Errorf("%d jobs in a queue that is closed to who made them", n)
	}
	if n := get[int](t, db.Pool, "select failed::int from oq_watches where table_name = 'alice.t'"); n != 0 {
		t.Errorf("%d failures noted for somebody else's watch", n)
	}
	exec(t, m, "reset client_min_messages")
	exec(t, a, "insert into alice.t values (1)")
	if n := get[int](t, db.Pool, "select count(*)::int from oq_jobs"); n != 1 {
		t.Errorf("%d jobs by the owner, want 1", n)
	}
}

// Unique and group keys made of columns, in a queue that is closed to who writes. Where enqueues with a key
// are refused yet, the changes go through and the reason is noted.
func TestKeysOfColumns(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	owner, c := role(t, db, "oq_producer, oq_observer")
	_, writer := role(t, db, "pg_monitor")
	exec(t, db.Pool, fmt.Sprintf(`create schema shop authorization %[1]s;
		select oq_create_queue('closed', '{"restricted": true}'); select oq_grant('closed', '%[1]s', '{produce,observe}')`, owner))
	exec(t, c, `create table shop.orders (id int, customer text, region text); grant usage on schema shop to public;
		grant insert on shop.orders to public;
		select oq_watch('shop.orders', 'closed', options => '{"unique_columns": ["customer"], "group_columns": ["region", "id"],
			"headers": {"a": null}, "unique_mode": "skip"}')`)
	exec(t, writer, "set client_min_messages = error")
	exec(t, writer, `insert into shop.orders values (1, 'ann', 'north'), (1, 'bob', null), (null, 'ann', 'south'), (null, null, null),
		(null, null, null), (7, repeat('x', 5000), '')`)
	if n := get[int](t, db.Pool, "select count(*)::int from shop.orders"); n != 6 {
		t.Fatalf("%d rows, want 6", n)
	}
	failed := get[string](t, db.Pool, "select concat_ws(' ', failed, left(last_error, 5)) from oq_watches")
	if failed != "0" {
		t.Fatalf("failures: %s %v", failed, list[string](t, db.Pool, "select last_error from oq_watches"))
	}
	got := strings.Join(list[string](t, db.Pool, `select concat_ws(' ', left(unique_key, 20), length(unique_key), group_key, headers)
		from oq_jobs order by job_id`), ", ")
	want := `shop.orders:ann 15 ["north", 1] {"a": null}, shop.orders:bob 15 [null, 1] {"a": null}, {"a": null}, {"a": null}, ` +
		`shop.orders:xxxxxxxx 164 ["", 7] {"a": null}`
	if got != want {
		t.Errorf("jobs: %s\nwant: %s", got, want)
	}
}

// Whoever's ack ends a batch is warned of a job that could not be made, not told of queues and keys that are not his.
func TestBatchWarnsWithoutSecrets(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	exec(t, db.Pool, `select oq_enqueue('secret', unique_key => 'ssn 123'); select oq_batch(
		'{"on_complete": {"queue_name": "secret", "unique_key": "ssn 123", "unique_mode": "reject"}}');
		select oq_enqueue('m', options => jsonb_build_object('batch_id', b.batch_id)), oq_batch_seal(b.batch_id) from oq.batch b`)
	c, warnings := listening(t, db)
	exec(t, c, "select oq_ack(job_id, lease_token) from oq_lease('m')")
	if got := strings.Join(*warnings, "; "); got != "batch 1: a job could not be made (OQ005)" {
		t.Errorf("warned of: %s", got)
	}
}
