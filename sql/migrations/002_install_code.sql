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
    -- What others made of it goes with it, and is named: views of views as well, by the rules that are views' queries.
    for v_drop in
        with recursive gone (classid, objid, objsubid) as (
            select 'pg_proc'::regclass, p.oid, 0
              from pg_proc p
             where p.pronamespace = '{{.schema}}'::regnamespace
                or p.proname like 'oq\_%' and 'search_path=pg_catalog, {{.schema}}, pg_temp' = any (p.proconfig)
            union all
            select 'pg_class'::regclass, c.oid, 0 from pg_class c where c.relnamespace = '{{.schema}}'::regnamespace
            union all
            select 'pg_type'::regclass, t.oid, 0 from pg_type t where t.typnamespace = '{{.schema}}'::regnamespace
            union
            select case when r.oid is null then d.classid::regclass else 'pg_class' end, coalesce(r.ev_class, d.objid),
                case when r.oid is null then d.objsubid else 0 end
              from gone g
              join pg_depend d on d.refclassid = g.classid and d.refobjid = g.objid and d.deptype = 'n'
               and g.objsubid in (0, d.refobjsubid)
              left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
        )
        select i.type || ' ' || i.identity
          from gone g
         cross join lateral pg_identify_object(g.classid, g.objid, g.objsubid) i
         where i.schema is distinct from '{{.schema}}'
           and case g.classid
                when 'pg_proc'::regclass then format('drop function if exists %s cascade', g.objid::regprocedure)
                when 'pg_class'::regclass then format('drop view if exists %s cascade', g.objid::regclass)
                else '' end <> all (v_drops)
           and not exists (
            select from pg_trigger t
              join pg_class c on c.oid = t.tgrelid
             where g.classid = 'pg_trigger'::regclass and t.oid = g.objid and c.relnamespace = '{{.schema}}'::regnamespace)
         order by 1
    loop
        raise notice 'drops with it: %', v_drop;
    end loop;
    foreach v_drop in array v_drops loop
        execute v_drop;
    end loop;
end
$$;
