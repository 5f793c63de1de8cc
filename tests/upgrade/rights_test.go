package upgrade

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/openqueue/openqueue/tests/testdb"
)

// rights are those of anybody but the owner and the group roles on what is ours, the version table included.
const rights = `
with ours as (
	select p.oid::regprocedure::text as name, coalesce(p.proacl, acldefault('f', p.proowner)) as acl, p.proowner as owner
	  from pg_proc p where p.pronamespace = 'oq'::regnamespace or p.proname like 'oq\_%'
	union all
	select c.oid::regclass::text, coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner)), c.relowner
	  from pg_class c
	 where c.relkind in ('r', 'p', 'v', 'S') and (c.relnamespace = 'oq'::regnamespace or c.relname ~ '^(oq_|openqueue_version$)')
	union all
	select 'schema oq', coalesce(n.nspacl, acldefault('n', n.nspowner)), n.nspowner from pg_namespace n where n.nspname = 'oq'
	union all
	select 'type ' || t.oid::regtype, t.typacl, t.typowner from pg_type t where t.typnamespace = 'oq'::regnamespace
)
select o.name || ': ' || a.privilege_type || ' of ' || case a.grantee when 0 then 'PUBLIC' else a.grantee::regrole::text end
  from ours o, aclexplode(o.acl) a
 where a.grantee <> o.owner
   and (a.grantee = 0 and o.name not like 'type %' or a.grantee <> 0 and a.grantee::regrole::text !~ '^oq_')
 order by 1`

// Hosted platforms name roles in ALTER DEFAULT PRIVILEGES, in schema public or in the whole database: what is born with
// their rights loses them at each install.
func TestDefaultPrivileges(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"in schema public", ""} {
		db := testdb.Empty(t)
		c := db.Conn(t)
		role := fmt.Sprintf("anon_%d", c.PgConn().PID())
		exec(t, c, "create role "+role)
		t.Cleanup(func() {
			_, _ = db.Pool.Exec(context.Background(), "drop owned by "+role+"; drop role "+role)
		})
		kinds := []string{"functions", "tables", "sequences", "types"}
		if where == "" {
			kinds = append(kinds, "schemas")
		}
		for _, kind := range kinds {
			exec(t, c, fmt.Sprintf("alter default privileges %s grant all on %s to %s with grant option", where, kind, role))
		}
		migrate(t, db, "oq", "public", -1)
		if left := list(t, c, rights); len(left) > 0 {
			t.Errorf("default privileges %s: %d rights are left: %.300s", where, len(left), strings.Join(left, "; "))
		}
		// A schema that the migration makes for the API is nobody's to create in, either.
		migrate(t, db, "second", "second_api", -1)
		if left := list(t, c, `select a.grantee::regrole || ' ' || a.privilege_type from pg_namespace n, aclexplode(n.nspacl) a
			where n.nspname = 'second_api' and a.grantee <> n.nspowner and a.grantee::regrole::text !~ '^oq_'`); len(left) > 0 {
			t.Errorf("default privileges %s: on the API's schema %v", where, left)
		}
		use(t, c, "public", "q")
		// What was granted by hand goes with the next install, and what was granted on by it.
		exec(t, c, fmt.Sprintf(`grant execute on function oq_enqueue_many to %s with grant option;
			grant select (job_id) on oq_jobs to %[1]s; set role %[1]s; grant execute on function oq_enqueue_many to public; reset role`, role))
		exec(t, c, "update public.openqueue_version set version = 1")
		migrate(t, db, "oq", "public", -1)
		if left := list(t, c, rights); len(left) > 0 {
			t.Errorf("granted by hand: %.300s", strings.Join(left, "; "))
		}
		if left := list(t, c, "select attname::text from pg_attribute where attrelid = 'oq_jobs'::regclass and attacl is not null"); len(left) > 0 {
			t.Errorf("granted by hand: columns %v of oq_jobs", left)
		}
	}
}

// Settings of a database that change how names and texts are read and written.
func TestSettingsOfTheDatabase(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"quote_all_identifiers = on", "standard_conforming_strings = off"} {
		db := testdb.Empty(t)
		fresh := db.Conn(t)
		exec(t, fresh, fmt.Sprintf("alter database %s set %s", list(t, fresh, "select current_database()::text")[0], setting))
		for range 2 {
			if err := testdb.Migrate(t.Context(), db.URL, "oq", "public", -1); err != nil {
				t.Errorf("%s: %v", setting, err)
				break
			}
			if left := list(t, fresh, rights); len(left) > 0 {
				t.Errorf("%s: %d rights are left: %.300s", setting, len(left), strings.Join(left, "; "))
			}
			for _, f := range list(t, fresh, `select p.oid::regprocedure::text from pg_proc p where p.prosecdef
				and not coalesce('search_path=pg_catalog, oq, pg_temp' = any (p.proconfig), false)`) {
				t.Errorf("%s: %s has another search_path", setting, f)
			}
			use(t, db.Conn(t), "public", "q")
			migrate(t, db, "oq", "public", 0)
			if left := list(t, fresh, `select p.oid::regprocedure::text from pg_proc p where p.proname like 'oq\_%'`); len(left) > 0 {
				t.Errorf("%s: left by --to 0: %v", setting, left)
			}
		}
	}
}

// A function that grants.sql does not find has not been closed to PUBLIC: the install fails.
func TestGrantsFailClosed(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	c := db.Conn(t)
	exec(t, c, "drop function oq_version()")
	text, err := os.ReadFile("../../sql/code/grants.sql")
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.NewReplacer("{{.schema}}", "oq", "{{.api_schema}}", "public").Replace(string(text)))
	if _, err := c.Exec(t.Context(), string(text)); err == nil || !strings.Contains(err.Error(), "oq_version") {
		t.Errorf("grants without oq_version: %v", err)
	}
}
