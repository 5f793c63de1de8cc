-- The first half of oq_unwatch: forgets the watch, and says which triggers are to go.
-- Calls: check_queue_name. Index: queue_name_idx, watch_key.
create or replace function {{.schema}}.watch_end(caller name, table_name regclass, queue_name text)
returns jsonb
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
#variable_conflict use_column
declare
    v_owner    oid;
    v_queue_id bigint;
    v_id       bigint;
begin
    select c.relowner into v_owner from pg_class c where c.oid = watch_end.table_name;
    if v_owner is null then
        perform fail('table_name', table_name::text, 'a table');
    end if;
    perform check_queue_name(watch_end.queue_name);
    if not pg_has_role(caller, v_owner, 'usage') then
        raise exception 'role % does not own table %', quote_ident(caller), table_name
            using errcode = '42501', hint = 'Only the owner of a table, or a member of that role, may unwatch it.';
    end if;
    select q.queue_id into v_queue_id from queue q where q.queue_name = watch_end.queue_name collate "C" limit 1;
    delete from watch w
     where w.table_id = watch_end.table_name and w.queue_id = v_queue_id
    returning w.watch_id into v_id;
    delete from watch_failure f
     where f.table_id = watch_end.table_name and f.queue_id = v_queue_id;
    return case when v_id is not null then jsonb_build_object('id', v_id, 'table_id', table_name::oid) end;
end
$$;
comment on function {{.schema}}.watch_end(name, regclass, text) is
    'Forgets a watch: the first half of oq_unwatch.';
