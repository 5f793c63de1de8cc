-- Many jobs, each with its own arguments and options, set-based. Everything is checked before anything is
-- written, and the first bad element is named by its index, from 0. single: the caller is oq_enqueue, which
-- has checked its arguments, and whose options are not named as an element's.
-- Then, step by step: unique keys, parents, run_at, group, ready.
-- What stands in line is let in by line_up, before the commit.
-- Calls: claim_keys, enqueue_jobs (once), check_refs, place_children, settle_parents,
-- open_queue, tell_queue, open_lane, job_options, check_payload, check_depth, demand, enter,
-- wake_sleepers. Locks: epoch shared (memory), as claim_keys. Index: queue_name_idx, mark_lane_idx.
create or replace function {{.schema}}.enqueue_jobs(jobs jsonb, single boolean)
returns table (idx int, job_id bigint, inserted boolean)
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
#variable_conflict use_column
declare
    v_arguments constant text[] := array['queue_name', 'payload', 'priority', 'run_at', 'max_retries', 'unique_key',
        'group_key', 'headers', 'options', 'ref', 'depends_on_refs'];
    v_options   constant text[] := array['delay', 'ttl', 'expires_at', 'retry', 'tags', 'unique_mode', 'unique_for',
        'debounce_max', 'depends_on', 'on_parent_failure', 'batch_id'];
    v_idx       int;
    v_key       text;
    v_bad       record;
    v_queue     record;
    v_now       timestamptz;
    v_count     int;
    v_names     text[];
    v_found     bigint[];
    v_new       boolean[];
    v_turns     int[];
    v_firsts    int[];
    v_lasts     int[];
    v_later     jsonb;
    v_all       jsonb;
    v_held      boolean[];
    v_over      bigint[];
    v_jobs      new_job[];
    v_gen       smallint;
    v_queue_ids bigint[] := array[]::bigint[];
    v_max_bytes int[] := array[]::int[];
    v_depths    int[] := array[]::int[];
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
     where k.key <> all (v_arguments || v_options)
     order by e.ord
     limit 1;
    if v_bad.idx is not null then
        perform fail('jobs[' || v_bad.idx || ']', 'one with the key ' || quote_literal(left(v_bad.key, 100)),
            'any argument or option of oq_enqueue, ref or depends_on_refs');
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
            or t.key in ('group_key', 'unique_key', 'ref') and t.value is not null
                and (jsonb_typeof(e.job -> t.key) <> 'string' or length(t.value) not between 1 and 1000)
         order by e.ord
         limit 1
    loop
        perform fail(case when single then v_key else 'jobs[' || v_idx || '].' || v_key end, v_name, case v_key
            when 'priority' then 'between -32768 and 32767' when 'max_retries' then 'between 0 and 32767'
            when 'headers' then 'a JSON object of at most 65536 bytes' when 'options' then 'a JSON object'
            else 'a string of 1 to 1000 characters' end);
    end loop;
    select e.ord - 1 as idx, e.job ->> 'queue_name' as name into v_bad
      from jsonb_array_elements(jobs) with ordinality e(job, ord)
     where coalesce(e.job ->> 'queue_name', '') !~ '^[A-Za-z0-9_.:/-]{1,57}$'
        or jsonb_typeof(e.job -> 'queue_name') <> 'string'
     limit 1;
    if v_bad.idx is not null then
        perform fail('jobs[' || v_bad.idx || '].queue_name', coalesce(quote_literal(left(v_bad.name, 100)), 'null'),
            '1 to 57 characters of A-Z a-z 0-9 _ . : / -');
    end if;
    select e.ord - 1 as idx, k.key as key, k.value as value into v_bad
      from jsonb_array_elements(jobs) with ordinality e(job, ord)
     cross join lateral jsonb_each_text(case jsonb_typeof(e.job -> 'options') when 'object' then e.job -> 'options' else '{}' end)
        k(key, value)
     where k.key = any (v_options) and k.value is not null and e.job ->> k.key is not null
     order by e.ord
     limit 1;
    if v_bad.idx is not null then
        perform fail('jobs[' || v_bad.idx || '].options.' || left(v_bad.key, 100), left(v_bad.value, 100),
            'either beside options or in it, not both');
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
        perform fail(case when single then 'options.delay' else 'jobs[' || v_idx || '].delay' end, v_name,
            'either run_at or delay, not both');
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
        v_depths := v_depths || v_queue.max_depth;
    end loop;
    perform check_payload(e.job -> 'payload', n.max_bytes,
            case when single then 'payload' else 'jobs[' || e.ord - 1 || '].payload' end)
       from jsonb_array_elements(jobs) with ordinality e(job, ord)
       join unnest(v_names, v_max_bytes) n(name, max_bytes) on n.name = e.job ->> 'queue_name'
      where octet_length((e.job -> 'payload')::text) > n.max_bytes;

    if exists (select from jsonb_array_elements(jobs) e(job) where e.job ?| '{ref,depends_on_refs}') then
        perform check_refs(jobs);
    end if;

    perform enter();
    v_now := clock_timestamp();
    -- Options stand beside the arguments or in "options".
    v_found := array(select nextval('position') from generate_series(1, v_count));
    v_jobs := array(
        select row(e.ord, v_found[e.ord], n.queue_id, (n.queue_id << 16) + 32767 - coalesce((e.job ->> 'priority')::int, 0),
            coalesce((e.job ->> 'run_at')::timestamptz, o.run_at, p.run_at), (e.job ->> 'max_retries')::int,
            least(o.expires_at, p.expires_at), coalesce(o.retry, p.retry), coalesce(o.tags, p.tags),
            e.job ->> 'group_key', e.job ->> 'unique_key', coalesce(o.unique_mode, p.unique_mode),
            coalesce(o.unique_for, p.unique_for), coalesce(o.debounce_max, p.debounce_max),
            coalesce(o.depends_on, p.depends_on), coalesce(o.on_parent_failure, p.on_parent_failure),
            coalesce(o.batch_id, p.batch_id))::new_job
          from jsonb_array_elements(jobs) with ordinality e(job, ord)
          join unnest(v_names, v_queue_ids) n(name, queue_id) on n.name = e.job ->> 'queue_name'
          left join lateral (
            select o.*
              from (
                select e.job - v_arguments as options
                 where e.job ?| v_options
                offset 0) x
             cross join lateral job_options(x.options, v_now, 'jobs[' || e.ord - 1 || '].') o) o on true
          left join lateral (
            select o.*
              from (select e.job -> 'options' as options where jsonb_typeof(e.job -> 'options') = 'object' offset 0) x
             cross join lateral job_options(x.options, v_now,
                case when single then 'options.' else 'jobs[' || e.ord - 1 || '].options.' end) o) p on true
         order by e.ord);

    -- The first of a debounced key is bound as those after it.
    if exists (select from unnest(v_jobs) j where j.unique_mode = 'debounce' and j.run_at > v_now + j.debounce_max) then
        v_jobs := array(
            select row(u.ord, u.job_id, u.queue_id, u.lane, case when u.unique_mode = 'debounce'
                    and u.run_at > v_now + u.debounce_max then v_now + u.debounce_max else u.run_at end, u.max_retries,
                u.expires_at, u.retry, u.tags, u.group_key, u.unique_key, u.unique_mode, u.unique_for, u.debounce_max,
                u.depends_on, u.on_parent_failure, u.batch_id)::new_job
              from unnest(v_jobs) u
             order by u.ord);
    end if;

    -- UNIQUE KEYS: those that give an existing job leave jobs and v_jobs here.
    if exists (
        select from unnest(v_jobs) j
         where j.unique_key is not null or j.unique_mode is not null or j.unique_for is not null
            or j.debounce_max is not null)
    then
        select array_agg(c.job_id order by c.ord), array_agg(c.inserted order by c.ord) into v_found, v_new
          from claim_keys(v_jobs, enqueue_jobs.jobs, v_now, single) c;
        -- Behind the first of a key, what replaces or debounces waits for a second call: the last one is enough.
        select array_agg(u.ord order by u.ord), array_agg(u.first_change order by u.ord),
            array_agg(u.last_change order by u.ord)
          into v_turns, v_firsts, v_lasts
          from (
            select t.ord, min(t.ord) filter (where t.changes) over w as first_change,
                max(t.ord) filter (where t.changes) over w as last_change
              from (
                select u.queue_id, u.unique_key, u.ord, u.unique_mode in ('replace', 'debounce')
                        and row_number() over (partition by u.queue_id, u.unique_key order by u.ord) > 1 as changes
                  from unnest(v_jobs) u
                 where u.unique_key is not null) t
            window w as (partition by t.queue_id, t.unique_key)) u
         where u.ord >= u.first_change;
        v_all := jobs;
        jobs := (
            select coalesce(jsonb_agg(e.job order by e.ord), '[]')
              from jsonb_array_elements(enqueue_jobs.jobs) with ordinality e(job, ord)
             where v_new[e.ord]);
        v_jobs := array(select row(u.*)::new_job from unnest(v_jobs) u where v_new[u.ord] order by u.ord);
    end if;
    -- Not before the keys, which may be waited for as long as somebody's transaction is open; and before what may end
    -- at once below, which must not be in an older generation.
    v_gen := pg_sequence_last_value('generation'::regclass);
    perform check_depth(n.queue_id, n.name, n.max_depth, c.adds)
       from unnest(v_names, v_queue_ids, v_depths) n(name, queue_id, max_depth)
      cross join lateral (
        select count(*)::int as adds from unnest(v_jobs) j where j.queue_id = n.queue_id) c
      where n.max_depth is not null and c.adds > 0;
    -- PARENTS, BATCHES: what waits for a parent, or ends with one, is placed there.
    if exists (
        select from unnest(v_jobs) j
         where j.depends_on is not null or j.on_parent_failure is not null or j.batch_id is not null)
        or exists (select from jsonb_array_elements(jobs) e(job) where e.job ? 'depends_on_refs')
    then
        select p.news, p.held, p.over into v_jobs, v_held, v_over
          from place_children(coalesce(v_all, enqueue_jobs.jobs), v_jobs, v_found, v_now, single) p;
    end if;
    perform tell_queue(l.queue_id, 'linked')
       from (select distinct j.queue_id from unnest(v_jobs) j where j.group_key is not null order by 1) l;

    perform open_lane(l.lane) from (select distinct u.lane from unnest(v_jobs) u order by 1) l;
    with asked as materialized (
        select e.job_id, e.lane, e.value as job, e.run_at, e.max_retries, e.expires_at, e.retry, e.tags, e.group_key,
            e.unique_key, e.batch_id, e.depends_on, e.on_parent_failure, e.unnest is true as held
          from rows from (unnest(v_jobs), jsonb_array_elements(enqueue_jobs.jobs), unnest(v_held)) e
    ), jobs as (
        insert into job (gen, job_id, queue_id, priority, created_at, run_at, max_retries, expires_at,
            payload, headers, retry, tags, group_key, unique_key, batch_id, depends_on, on_parent_failure)
        select v_gen, a.job_id, a.lane >> 16,
            (32767 - (a.lane & 65535))::smallint, v_now, a.run_at, a.max_retries, a.expires_at,
            coalesce(a.job -> 'payload', '{}'), nullif(a.job -> 'headers', 'null'), a.retry, a.tags,
            a.group_key, a.unique_key, a.batch_id, a.depends_on, a.on_parent_failure
          from asked a
    ), timers as (
        -- A timer in the past would stand below the mark, where nobody looks.
        insert into ttl (expires_at, job_id)
        select greatest(a.expires_at, v_now), a.job_id from asked a where a.expires_at is not null
    ), later as (
        insert into scheduled (due_at, job_id, lane, expires_at)
        select a.run_at, a.job_id, a.lane, a.expires_at from asked a where a.run_at > v_now and not a.held
    ), in_line as (
        insert into waiting (job_id, lane, holder, group_id, position, expires_at, xact, first)
        select l.job_id, l.lane, 'group', l.group_id, l.job_id, l.expires_at,
            pg_current_xact_id()::text::bigint,
            row_number() over (partition by l.group_id order by l.job_id) = 1
          from (
            select a.job_id, a.lane, a.expires_at,
                hashtextextended(a.group_key, a.lane >> 16) & 9223372036854775807 as group_id
              from asked a
             where a.group_key is not null and not a.held and (a.run_at is null or a.run_at <= v_now)) l
         -- Its triggers fire in this order, that of the groups otherwise.
         order by l.job_id
    )
    insert into ready (lane, position, job_id, expires_at)
    select a.lane, a.job_id, a.job_id, a.expires_at
      from asked a
     where a.group_key is null and not a.held and (a.run_at is null or a.run_at <= v_now);
    if v_over is not null then
        perform settle_parents(v_over);
    end if;

    perform wake_sleepers(u.queue_id) from unnest(v_queue_ids) u(queue_id);
    if v_turns is not null then
        -- Its refs, which only this call knows, as ids.
        v_later := (
            select jsonb_agg(e.job - '{ref,depends_on_refs}'::text[] || case when e.job ? 'depends_on_refs' then
                    jsonb_build_object('depends_on', coalesce(nullif(e.job -> 'depends_on', 'null'),
                        nullif(e.job -> 'options' -> 'depends_on', 'null'), '[]') || (
                        select coalesce(jsonb_agg(v_found[r.ord]), '[]')
                          from jsonb_array_elements(v_all) with ordinality r(job, ord)
                         where e.job -> 'depends_on_refs' ? (r.job ->> 'ref')))
                    else '{}' end order by l.ord)
              from (select distinct u.ord from unnest(v_lasts) u(ord)) l
             cross join lateral (select v_all -> l.ord - 1 as job) e);
        select array_agg(coalesce(a.job_id, f.job_id) order by f.ord),
            array_agg(case when a.job_id is null then f.is_new else a.inserted and f.ord = t.first_change end order by f.ord)
          into v_found, v_new
          from unnest(v_found, v_new) with ordinality f(job_id, is_new, ord)
          left join unnest(v_turns, v_firsts, v_lasts) t(ord, first_change, last_change)
            on t.ord = f.ord
          left join (
            select l.ord, a.job_id, a.inserted
              from enqueue_jobs(v_later, enqueue_jobs.single) a
              join (
                select u.ord, row_number() over (order by u.ord) - 1 as idx
                  from (select distinct u.ord from unnest(v_lasts) u(ord)) u) l on l.idx = a.idx) a
            on a.ord = t.last_change;
    end if;
    return query
    select (u.ord - 1)::int, u.job_id, coalesce(v_new[u.ord], true)
      from unnest(v_found) with ordinality u(job_id, ord)
     order by u.ord;
end
$$;
comment on function {{.schema}}.enqueue_jobs(jsonb, boolean) is 'Enqueues many jobs, with every check and option.';
