-- Drops what watch_build made, with the rights of whoever calls oq_unwatch. A function that belongs to
-- a former owner of the table stays: it does nothing.
create or replace function {{.schema}}.watch_drop(ended jsonb)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_trigger text;
    v_name    regprocedure;
begin
    if ended is null then
        return false;
    end if;
    for v_trigger in
        select t.tgname
          from pg_trigger t
         where t.tgrelid = (ended ->> 'table_id')::oid and t.tgparentid = 0
           and t.tgname ~ ('^{{.schema}}_watch_' || (ended ->> 'id') || '_(insert|update|delete)$')
    loop
        execute format('drop trigger %I on %s', v_trigger, (ended ->> 'table_id')::oid::regclass);
    end loop;
    for v_name in
        select p.oid::regprocedure
          from pg_proc p
         where p.proname = '{{.schema}}_watch_' || (ended ->> 'id') and p.pronargs = 0
           and pg_has_role(p.proowner, 'usage')
           and not exists (select from pg_trigger t where t.tgfoid = p.oid)
    loop
        execute format('drop function %s', v_name);
    end loop;
    return true;
end
$$;
comment on function {{.schema}}.watch_drop(jsonb) is 'Drops a watch''s triggers and function.';
