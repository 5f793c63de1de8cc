-- Many jobs, each with its own arguments and options, set-based.
-- Calls: open_queue, open_lane, job_options, check_payload, check_depth, demand, enter, wake_sleepers.
-- Locks: epoch shared (memory). Index: queue_name_idx, mark_lane_idx.
create or replace function {{.api_schema}}.oq_enqueue_many(jobs jsonb)
returns table (idx int, job_id bigint, inserted boolean)
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
#variable_conflict use_column
declare
    v_idx       int;
    v_key       text;
    v_bad       record;
    v_queue     record;
    v_now       timestamptz;
    v_count     int;
    v_names     text[];
    v_lanes     bigint[];
    v_ids       bigint[];
    v_gen       smallint := pg_sequence_last_value('generation'::regclass);
    v_queue_ids bigint[] := array[]::bigint[];
    v_max_bytes int[] := array[]::int[];
    v_name      text;
begin
    if jobs is null or jsonb_typeof(jobs) <> 'array' then
        perform fail('jobs', left(jobs::text, 100), 'a JSON array of objects');
    end if;
    v_count := jsonb_array_length(jobs);
    if v_count > 100000 then
        perform fail('jobs', v_count || ' long', 'at most 100000 long');
    elsif v_count = 0 then
        return;
    end if;

    -- The first bad element is named by its index, from 0.
    select e.ord - 1 as idx, e.job into v_bad
      from jsonb_array_elements(jobs) with ordinality e(job, ord)
     where jsonb_typeof(e.job) <> 'object'
     limit 1;
    if v_bad.idx is not null then
        perform fail('jobs[' || v_bad.idx || ']', left(v_bad.job::text, 100), 'a JSON object');
    end if;
    select e.ord - 1 as idx, k.key as key into v_bad
      from jsonb_array_elements(jobs) with ordinality e(job, ord)
     cross join lateral jsonb_object_keys(e.job) k(key)
     where k.key not in ('queue_name', 'payload', 'priority', 'run_at', 'max_retries', 'headers', 'options',
        'delay', 'ttl', 'expires_at', 'retry', 'tags')
     order by e.ord
     limit 1;
    if v_bad.idx is not null then
        if v_bad.key in ('unique_key', 'group_key', 'unique_mode', 'unique_for', 'debounce_max', 'depends_on',
            'on_parent_failure', 'batch_id', 'ref', 'depends_on_refs')
        then
            raise exception 'jobs[%].% is not supported yet', v_bad.idx, v_bad.key using errcode = '0A000';
        end if;
        perform fail('jobs[' || v_bad.idx || ']', 'one with the key ' || quote_literal(left(v_bad.key, 100)),
            'queue_name, payload, priority, run_at, max_retries, headers, options, or an option');
    end if;
    for v_idx, v_key, v_name in
        select e.ord - 1, t.key, left(t.value, 100)
          from jsonb_array_elements(jobs) with ordinality e(job, ord)
         cross join lateral jsonb_each_text(e.job) t(key, value)
         where t.key = 'priority' and (t.value is null or t.value !~ '^-?[0-9]{1,5}$'
                or t.value::int not between -32768 and 32767)
            or t.key = 'max_retries' and t.value is not null
                and (t.value !~ '^[0-9]{1,5}$' or t.value::int > 32767)
            or t.key in ('headers', 'options') and t.value is not null
                and (jsonb_typeof(e.job -> t.key) <> 'object' or t.key = 'headers' and octet_length(t.value) > 65536)
         order by e.ord
         limit 1
    loop
        perform fail('jobs[' || v_idx || '].' || v_key, v_name, case v_key
            when 'priority' then 'between -32768 and 32767' when 'max_retries' then 'between 0 and 32767'
            else 'a JSON object, headers at most 65536 bytes' end);
    end loop;
    select e.ord - 1 as idx into v_bad
      from jsonb_array_elements(jobs) with ordinality e(job, ord)
     where e.job ->> 'queue_name' is null
     limit 1;
    if v_bad.idx is not null then
        perform fail('jobs[' || v_bad.idx || '].queue_name', null, '1 to 57 characters of A-Z a-z 0-9 _ . : / -');
    end if;
    begin
        for v_idx, v_name in
            select e.ord - 1, e.job ->> 'run_at'
              from jsonb_array_elements(jobs) with ordinality e(job, ord)
             where e.job ->> 'run_at' is not null
        loop
            v_now := v_name::timestamptz;
            if v_now = 'infinity' then
                perform fail('jobs[' || v_idx || '].run_at', v_name, 'a finite timestamp');
            end if;
        end loop;
    exception when data_exception then
        perform fail('jobs[' || v_idx || '].run_at', v_name, 'a timestamp with time zone');
    end;
    select e.ord - 1, coalesce(e.job ->> 'delay', e.job -> 'options' ->> 'delay') into v_idx, v_name
      from jsonb_array_elements(jobs) with ordinality e(job, ord)
     where e.job ->> 'run_at' is not null
       and coalesce(e.job ->> 'delay', e.job -> 'options' ->> 'delay') is not null
     order by e.ord
     limit 1;
    if v_name is not null then
        perform fail('jobs[' || v_idx || '].delay', v_name, 'either run_at or delay, not both');
    end if;
    v_names := array(
        select distinct e.job ->> 'queue_name' from jsonb_array_elements(jobs) e(job) order by 1);
    if cardinality(v_names) > 1000 then
        perform fail('jobs', 'for ' || cardinality(v_names) || ' queues', 'for at most 1000 queues');
    end if;

    foreach v_name in array v_names loop
        v_queue_ids := v_queue_ids || open_queue(v_name);
        select q.queue_id, q.max_payload_bytes, q.max_depth, q.restricted into v_queue
          from queue q
         where q.queue_name = v_name
         order by q.version desc, q.row_id
         limit 1;
        if v_queue.restricted then
            perform demand(v_queue.queue_id, v_name, 'produce');
        end if;
        v_max_bytes := v_max_bytes || v_queue.max_payload_bytes;
        if v_queue.max_depth is not null then
            perform check_depth(v_queue.queue_id, v_name, v_queue.max_depth, (
                select count(*)::int from jsonb_array_elements(jobs) e(job)
                 where e.job ->> 'queue_name' = v_name));
        end if;
    end loop;
    perform check_payload(e.job -> 'payload', n.max_bytes)
       from jsonb_array_elements(jobs) e(job)
       join unnest(v_names, v_max_bytes) n(name, max_bytes) on n.name = e.job ->> 'queue_name'
      where pg_column_size(e.job -> 'payload') > n.max_bytes / 8;

    perform enter();
    v_now := clock_timestamp();
    v_ids := array(select nextval('position') from generate_series(1, v_count));
    v_lanes := array(
        select (n.queue_id << 16) + 32767 - coalesce((e.job ->> 'priority')::int, 0)
          from jsonb_array_elements(jobs) with ordinality e(job, ord)
          join unnest(v_names, v_queue_ids) n(name, queue_id) on n.name = e.job ->> 'queue_name'
         order by e.ord);
    perform open_lane(l.lane) from (select distinct u.lane from unnest(v_lanes) u(lane) order by 1) l;

    with asked as materialized (
        select e.job_id, e.lane, e.job, o.expires_at, o.retry, o.tags,
            coalesce((e.job ->> 'run_at')::timestamptz, o.run_at) as run_at
          from rows from (unnest(v_ids), unnest(v_lanes), jsonb_array_elements(oq_enqueue_many.jobs))
            e(job_id, lane, job)
         cross join lateral job_options(
            coalesce(nullif(e.job -> 'options', 'null'), '{}')
                || (e.job - '{queue_name,payload,priority,run_at,max_retries,headers,options}'::text[]),
            v_now) o
    ), jobs as (
        insert into job (gen, job_id, queue_id, priority, created_at, run_at, max_retries, expires_at,
            payload, headers, retry, tags)
        select v_gen, a.job_id, a.lane >> 16,
            (32767 - (a.lane & 65535))::smallint, v_now, a.run_at, (a.job ->> 'max_retries')::int, a.expires_at,
            coalesce(a.job -> 'payload', '{}'), nullif(a.job -> 'headers', 'null'), a.retry, a.tags
          from asked a
    ), timers as (
        insert into ttl (expires_at, job_id)
        select greatest(a.expires_at, v_now), a.job_id from asked a where a.expires_at is not null
    ), later as (
        insert into scheduled (due_at, job_id, lane, expires_at)
        select a.run_at, a.job_id, a.lane, a.expires_at from asked a where a.run_at > v_now
    )
    insert into ready (lane, position, job_id, expires_at)
    select a.lane, a.job_id, a.job_id, a.expires_at
      from asked a
     where a.run_at is null or a.run_at <= v_now;

    perform wake_sleepers(u.queue_id) from unnest(v_queue_ids) u(queue_id);
    return query
    select (u.ord - 1)::int, u.job_id, true from unnest(v_ids) with ordinality u(job_id, ord) order by u.ord;
end
$$;
comment on function {{.api_schema}}.oq_enqueue_many(jsonb) is
'Enqueues many jobs, each with its own arguments; one row per element.
jobs: a JSON array of at most 100000 objects with queue_name and any other argument or option of
oq_enqueue by its name. idx counts from 0, in the order of jobs. All of them or, with an error that
names the element, none. Errors as oq_enqueue.';
