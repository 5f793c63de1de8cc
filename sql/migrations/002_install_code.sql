-- Functions and views, as they were at this migration. Their paths are looked for by their text, so it must not depend
-- on settings of the database.
set local quote_all_identifiers = off;
set local standard_conforming_strings = on;
{{ install_snapshot "002" }}

---- create above / drop below ----

set local quote_all_identifiers = off;
set local standard_conforming_strings = on;

do $$
declare
    v_drop  text;
    v_drops text[];
begin
    -- Known by what they use and by their path, in whatever schema: api_schema may be another now, where somebody else's
    -- may stand. Written down before the first goes: some go with others, and have no name then.
    v_drops := array(
        select format('drop view if exists %s cascade', c.oid::regclass)
          from pg_class c
         where c.relkind = 'v' and (c.relnamespace = '{{.schema}}'::regnamespace
            or c.relname in ('oq_queues', 'oq_jobs', 'oq_dead', 'oq_workers', 'oq_schedules', 'oq_watches',
                'oq_subscriptions')
               and exists (
                select from pg_rewrite r
                  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
                  join pg_class u on d.refclassid = 'pg_class'::regclass and d.refobjid = u.oid
                 where r.ev_class = c.oid and u.relnamespace = '{{.schema}}'::regnamespace))
        union all
        select format('drop function if exists %s cascade', p.oid::regprocedure)
          from pg_proc p
         where p.pronamespace = '{{.schema}}'::regnamespace
            or p.proname like 'oq\_%' and 'search_path=pg_catalog, {{.schema}}, pg_temp' = any (p.proconfig));
    foreach v_drop in array v_drops loop
        execute v_drop;
    end loop;
end
$$;
