-- The first half of oq_watch: checks everything but the condition, which is code and not for these rights;
-- notes the watch; returns what watch_build needs.
-- Calls: check_queue_name, check_patch, job_options, fixed_times, open_queue, role_may, watch_body.
-- Locks: the watch's row. Index: watch_key, queue_name_idx.
create or replace function {{.schema}}.watch_plan(
    caller     name,
    table_name regclass,
    queue_name text,
    events     text,
    columns    text[],
    condition  text,
    options    jsonb
)
returns jsonb
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
#variable_conflict use_column
declare
    v_table    record;
    v_queue_id bigint;
    v_events   text[];
    v_lists    jsonb := jsonb '{}';
    v_job      jsonb := jsonb '{}';
    v_list     text[];
    v_key      text;
    v_value    text;
    v_patch    jsonb := jsonb '{}';
    v_said     record;
    v_options  record;
    v_related  text;
    v_old      watch%rowtype;
    v_id       bigint;
    v_plan     jsonb;
    v_is_virtual boolean;
    v_virtual  text[];
begin
    select c.oid, c.relname, c.relkind, c.relpersistence, c.relispartition, c.relowner, n.nspname, n.oid as schema_id,
        format('%I.%I', n.nspname, c.relname) as name
      into v_table
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where c.oid = watch_plan.table_name;
    if v_table.oid is null then
        perform fail('table_name', table_name::text, 'a table');
    end if;
    if v_table.relkind not in ('r', 'p') then
        perform fail('table_name', v_table.name || ', ' || case v_table.relkind when 'v' then 'a view'
            when 'm' then 'a materialized view' when 'f' then 'a foreign table' else 'no table' end,
            'a table or a partitioned table: statements on anything else give no changed rows to triggers');
    elsif v_table.nspname ~ '^pg_' or v_table.nspname = 'information_schema' then
        perform fail('table_name', v_table.name || case when v_table.relpersistence = 't' then ', a temporary table'
            else ', a system catalog' end, 'a table that stays');
    elsif v_table.nspname = '{{.schema}}' then
        perform fail('table_name', v_table.name || ', a table of OpenQueue itself', 'a table of yours');
    end if;
    if not pg_has_role(caller, v_table.relowner, 'usage') then
        raise exception 'role % does not own table %', quote_ident(caller), v_table.name
            using errcode = '42501', hint = 'Only the owner of a table, or a member of that role, may watch it.';
    end if;

    -- A statement fires the triggers of the table that it names: with a watch on both, a row that is written
    -- through the parent would make two jobs.
    with recursive up as (
        select i.inhparent as id from pg_inherits i where i.inhrelid = v_table.oid
        union
        select i.inhparent from up u join pg_inherits i on i.inhrelid = u.id
    ), down as (
        select i.inhrelid as id from pg_inherits i where i.inhparent = v_table.oid
        union
        select i.inhrelid from down d join pg_inherits i on i.inhparent = d.id
    )
    select case when c.relkind = 'f' then format('%s has the foreign table %s below it', v_table.name, c.oid::regclass)
            when r.is_up then format('%s is part of %s, which is watched', v_table.name, c.oid::regclass)
            else format('%s has %s below it, which is watched', v_table.name, c.oid::regclass) end
      into v_related
      from (select u.id, true as is_up from up u union all select d.id, false from down d) r
      join pg_class c on c.oid = r.id
     where c.relkind = 'f' and not r.is_up
        or exists (
            select from watch w
              join pg_trigger t on t.tgrelid = w.table_id
               and t.tgname ~ ('^{{.schema}}_watch_' || w.watch_id || '_(insert|update|delete)$')
             where w.table_id = c.oid)
     order by c.relkind = 'f' desc
     limit 1;
    if v_related is not null then
        perform fail('table_name', v_table.name || ': ' || v_related,
            'a table whose parents and partitions are not watched, or rows would make two jobs, '
            'and that has no foreign partitions');
    end if;

    perform check_queue_name(watch_plan.queue_name);
    v_events := array(
        select distinct e.event
          from regexp_split_to_table(lower(btrim(coalesce(events, ''), E' \t\n,') collate "C"), E'(\\s*,\\s*|\\s+or\\s+|\\s+)') e(event));
    if not v_events <@ array['insert', 'update', 'delete'] or cardinality(v_events) = 0 then
        perform fail('events', quote_nullable(events), 'one or more of insert, update, delete');
    end if;
    v_events := array(
        select e.event from unnest(array['insert', 'update', 'delete']) e(event) where e.event = any (v_events));
    if columns is not null and not 'update' = any (v_events) then
        perform fail('columns', columns::text, 'null where events has no update: they tell which updates count');
    end if;
    if condition is not null and (condition !~ '[^[:space:]]' or length(condition) > 8000) then
        perform fail('condition', quote_literal(left(condition, 100)),
            'null, or a boolean SQL expression of at most 8000 characters');
    elsif regexp_replace(condition, '''[^'']*''', '', 'g') ~ '--|/[*]' then
        perform fail('condition', quote_literal(left(condition, 100)), 'an expression without comments');
    end if;
    if options is not null and jsonb_typeof(options) <> 'object' then
        perform fail('options', options::text, 'a JSON object');
    end if;
    if columns is not null then
        v_lists := jsonb_build_object('columns', columns);
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(coalesce(options, '{}')) e loop
        continue when v_value is null;
        case v_key
        when 'unique_columns', 'group_columns', 'payload_columns' then
            if jsonb_typeof(options -> v_key) <> 'array' or exists (
                select from jsonb_array_elements(options -> v_key) l(value) where jsonb_typeof(l.value) <> 'string')
            then
                perform fail('options.' || v_key, v_value, 'an array of names of columns');
            end if;
            v_lists := v_lists || jsonb_build_object(v_key, options -> v_key);
        when 'priority', 'max_retries', 'headers', 'run_at' then
            v_patch := v_patch || jsonb_build_object(v_key, options -> v_key);
        when 'delay', 'ttl', 'expires_at', 'retry', 'tags', 'unique_mode', 'unique_for', 'debounce_max' then
            v_job := v_job || jsonb_build_object(v_key, options -> v_key);
        else
            raise exception 'options must not have the key %', quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'priority, delay, run_at, max_retries, headers, ttl, expires_at, retry, '
                    'tags, unique_columns, unique_mode, unique_for, debounce_max, group_columns, payload_columns';
        end case;
    end loop;
    v_said := check_patch(v_patch, 'options.');
    if v_said.run_at is not null and options ->> 'delay' is not null then
        perform fail('options.delay', options ->> 'delay', 'either run_at or delay, not both');
    end if;
    options := fixed_times(options);
    if v_job <> '{}' then
        select o.* into v_options from job_options(v_job, clock_timestamp(), 'options.') o;
        -- As claim_keys, which would refuse every change.
        if v_options.unique_mode = 'debounce' and coalesce(v_options.run_at, v_said.run_at) is null then
            perform fail('options.delay', null, 'given, or run_at, where unique_mode is debounce');
        elsif v_options.unique_mode = 'reject' then
            perform fail('options.unique_mode', 'reject', 'skip, replace or debounce: one key that is taken would be an error '
                'for all rows of its statement');
        elsif v_options.debounce_max is not null and v_options.unique_mode is distinct from 'debounce' then
            perform fail('options.debounce_max', options ->> 'debounce_max', 'left out unless unique_mode is debounce');
        end if;
    end if;
    v_job := fixed_times(v_job);
    if v_job ?| array['unique_mode', 'unique_for', 'debounce_max'] and not v_lists ? 'unique_columns' then
        perform fail('options.unique_columns', null, 'the names of columns, where unique_mode, unique_for or '
            'debounce_max is given');
    end if;
    for v_key, v_value in select l.key, l.value from jsonb_each(v_lists) l loop
        v_list := array(select c.name from jsonb_array_elements_text(v_value::jsonb) c(name));
        if cardinality(v_list) = 0 or array_ndims(columns) > 1 then
            perform fail(case v_key when 'columns' then '' else 'options.' end || v_key, v_value,
                'an array of names of columns');
        end if;
        select c.name, a.attgenerated = 'v' into v_value, v_is_virtual
          from unnest(v_list) c(name)
          left join pg_attribute a
            on a.attrelid = v_table.oid and a.attname = c.name and a.attnum > 0 and not a.attisdropped
         where coalesce(a.attgenerated = 'v', true)
         limit 1;
        if found then
            perform fail(case v_key when 'columns' then '' else 'options.' end || v_key,
                quote_nullable(v_value) || case when v_is_virtual then ', a virtual generated column' else '' end,
                case when v_is_virtual then 'one that is stored: triggers see no values of virtual ones'
                else 'a column of ' || v_table.name end);
        end if;
    end loop;

    v_queue_id := open_queue(watch_plan.queue_name, true);
    if not role_may(v_table.relowner, v_queue_id, 'produce') then
        raise exception 'role %, the owner of table %, may not produce in queue %',
                v_table.relowner::regrole, v_table.name, quote_literal(watch_plan.queue_name)
            using errcode = '42501', hint = 'It must be a member of oq_producer, and have an oq_grant for a '
                'restricted queue: a watch makes jobs by the right of the table''s owner.';
    end if;

    -- Rows of tables that were dropped go here. Another owner's watch is not taken over, since its function
    -- belongs to that role: it gives way to a new one.
    delete from watch w where not exists (select from pg_class c where c.oid = w.table_id);
    delete from watch_failure f where not exists (select from pg_class c where c.oid = f.table_id);
    select w.* into v_old
      from watch w
     where w.table_id = v_table.oid and w.queue_id = v_queue_id
       for update;
    if v_old.owner <> v_table.relowner::regrole then
        delete from watch w where w.watch_id = v_old.watch_id;
    end if;
    delete from watch_failure f where f.table_id = v_table.oid and f.queue_id = v_queue_id;
    insert into watch (queue_id, table_id, owner, run_at, priority, max_retries, keyed, headers, job_options,
        events, columns, condition, options)
    values (v_queue_id, v_table.oid, v_table.relowner, v_said.run_at, coalesce(v_said.priority, 0),
        v_said.max_retries, v_lists ?| array['unique_columns', 'group_columns'], v_said.headers,
        nullif(v_job, '{}'), v_events, columns, condition, options)
    on conflict (table_id, queue_id) do update
       set run_at = excluded.run_at, priority = excluded.priority, max_retries = excluded.max_retries,
           keyed = excluded.keyed, headers = excluded.headers, job_options = excluded.job_options,
           events = excluded.events, columns = excluded.columns, condition = excluded.condition,
           options = excluded.options
    returning watch_id into v_id;
    v_plan := v_lists || jsonb_build_object('id', v_id, 'table', v_table.name, 'schema', quote_ident(v_table.nspname),
        'schema_id', v_table.schema_id, 'table_id', v_table.oid, 'queue', queue_name, 'events', v_events,
        'condition', condition, 'owner', v_table.relowner::regrole::text,
        'partitioned', v_table.relkind = 'p', 'replaced', nullif(v_old.watch_id, v_id),
        'by_row', exists (select from pg_inherits i where i.inhrelid = v_table.oid));
    v_virtual := array(
        select a.attname from pg_attribute a where a.attrelid = v_table.oid and a.attgenerated = 'v' and not a.attisdropped);
    if cardinality(v_virtual) > 0 then
        v_plan := v_plan || jsonb_build_object('virtual', v_virtual);
    end if;
    return v_plan || jsonb_build_object('body', watch_body(v_plan));
end
$$;
comment on function {{.schema}}.watch_plan(name, regclass, text, text, text[], text, jsonb) is
    'Checks a watch and notes it: the first half of oq_watch.';
