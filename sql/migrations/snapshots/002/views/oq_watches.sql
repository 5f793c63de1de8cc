-- Calls: queue_now, may, watch_allowed. Index: queue_id_idx, watch_failure_idx.
create or replace view {{.api_schema}}.oq_watches with (security_barrier) as
select format('%I.%I', n.nspname, c.relname) as table_name,
    q.queue_name,
    w.trigger_name,
    w.events,
    w.columns,
    w.condition,
    w.options,
    pg_catalog.pg_get_userbyid(w.owner_id) as owner,
    coalesce(f.failed, 0) as failed,
    f.failed_at as last_failed_at,
    f.last_error,
    case when w.trigger_name is null then 'its trigger is gone: call oq_watch again'
        when w.disabled then 'its trigger is disabled'
        when w.by_statement and exists (
            select from pg_catalog.pg_inherits i where i.inhrelid = w.table_id)
        then 'the table is part of another by now, whose statements make no jobs: call oq_watch again'
        else coalesce((
            select 'column ' || quote_ident(n.name) || ' is gone or has another name: call oq_watch again'
              from (
                select unnest(w.columns) as name
                union all
                select jsonb_array_elements_text(w.options -> k.key)
                  from unnest(array['unique_columns', 'group_columns', 'payload_columns']) k(key)
                 where jsonb_typeof(w.options -> k.key) = 'array') n
             where not exists (
                select from pg_catalog.pg_attribute a
                 where a.attrelid = w.table_id and a.attname = n.name and a.attnum > 0 and not a.attisdropped)
             limit 1),
            -- oq_watch forgets the failures before it.
            case when w.condition is not null and f.last_code = '42703' then
                'its condition named a column that is gone or has another name: call oq_watch again' end,
            ({{.schema}}.watch_allowed(w.owner_id, q.queue_id, w.table_id)).reason) end as problem,
    w.created_at
  from (
    select x.table_id::oid as table_id, x.queue_id, x.events, x.columns, x.condition, x.options,
        x.owner::oid as owner_id, x.created_at, t.trigger_name, t.disabled, t.by_statement,
        false as copied
      from {{.schema}}.watch x
      left join lateral (
        select (array_agg(y.tgname::text order by y.tgtype & 4 desc, y.tgtype & 16 desc))[1] as trigger_name,
            bool_or(y.tgenabled = 'D') as disabled, bool_or(y.tgtype & 1 = 0) as by_statement
          from pg_catalog.pg_trigger y
         where y.tgrelid = x.table_id and y.tgparentid = 0
           and y.tgname ~ ('^{{.schema}}_watch_' || x.watch_id || '_(insert|update|delete)$')) t
        on true
    union all
    select t.tgrelid, q.queue_id, array_remove(array[
            case when t.tgtype & 4 > 0 then 'insert' end, case when t.tgtype & 16 > 0 then 'update' end,
            case when t.tgtype & 8 > 0 then 'delete' end], null),
        null, null, null, c.relowner, null, t.tgname::text, t.tgenabled = 'D', false, true
      from pg_catalog.pg_trigger t
      join pg_catalog.pg_class c on c.oid = t.tgrelid
      join {{.schema}}.queue_now q
        on q.queue_name = split_part(encode(t.tgargs, 'escape'), E'\\000', 1)
     where t.tgfoid = '{{.api_schema}}.oq_enqueue_row()'::regprocedure and t.tgparentid = 0) w
  join pg_catalog.pg_class c on c.oid = w.table_id
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join {{.schema}}.queue_now q on q.queue_id = w.queue_id
  left join lateral (
    select sum(x.failed)::bigint as failed, max(x.failed_at) as failed_at,
        (array_agg(x.code order by x.failed_at desc))[1] as last_code,
        (array_agg(x.code || ': ' || x.error order by x.failed_at desc))[1] as last_error
      from {{.schema}}.watch_failure x
     where x.queue_id = w.queue_id and (x.table_id = w.table_id
        -- What fires is the copy of the trigger on a partition.
        or w.copied and exists (
            select from pg_catalog.pg_partition_tree(w.table_id) p where p.relid = x.table_id))) f
    on true
 where not q.restricted or {{.schema}}.may(q.queue_id, 'observe');
comment on view {{.api_schema}}.oq_watches is
'Tables whose changes become jobs, by oq_watch or oq_enqueue_row.
failed: jobs that were not made, since oq_watch was called; last_error says why. problem: why none are made now;
null where they are.';
