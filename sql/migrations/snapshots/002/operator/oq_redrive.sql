-- Dead or cancelled jobs back to ready, set-based, ids ascending. Failures and lost leases begin
-- again at 0; attempts go on counting and the token is kept. A cancelled job's rows move to the
-- current generation: theirs may be on its way to TRUNCATE.
-- Calls: check_queue_name, check_patch, check_payload, demand, enter, open_lane, place_jobs, leave_slots, settle_parents,
-- reclaim_keys, wake_sleepers.
-- Locks: dead or finished rows with their job rows by job id (skip locked), epoch shared (memory), as reclaim_keys.
-- Index: dead_queue_idx, dead_pk, finished_N_pk, job_N_pk; finished is scanned without job_ids.
create or replace function {{.api_schema}}.oq_redrive(
    queue_name text,
    filter     jsonb   default '{}',
    patch      jsonb   default '{}',
    per_second numeric default null,
    max_jobs   int     default null,
    dry_run    boolean default false
)
returns setof bigint
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue   record;
    v_patch   record;
    v_key     text;
    v_value   text;
    v_state   text := 'dead';
    v_job_ids bigint[];
    v_reason  text;
    v_error   text;
    v_since   timestamptz := timestamptz '-infinity';
    v_until   timestamptz := timestamptz 'infinity';
    v_payload jsonb;
    v_limit   int := coalesce(oq_redrive.max_jobs, 100000);
    v_gen     smallint;
    v_now     timestamptz;
    v_ids     bigint[];
    v_lane    bigint;
    v_due     timestamptz;
    v_jobs    ready[];
begin
    perform check_queue_name(oq_redrive.queue_name);
    if filter is null or jsonb_typeof(filter) <> 'object' then
        perform fail('filter', filter::text, 'a JSON object');
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(filter) e loop
        case v_key
        when 'state' then
            if v_value is null or v_value not in ('dead', 'cancelled') then
                perform fail('filter.state', v_value, 'dead or cancelled');
            end if;
            v_state := v_value;
        when 'job_ids' then
            begin
                v_job_ids := array(
                    select e.value::bigint from jsonb_array_elements_text(filter -> v_key) e);
            exception when data_exception then
                v_job_ids := null;
            end;
            if v_job_ids is null or cardinality(v_job_ids) > 100000 then
                perform fail('filter.job_ids', v_value, 'an array of at most 100000 job ids');
            end if;
        when 'reason', 'error' then
            if jsonb_typeof(filter -> v_key) <> 'string' then
                perform fail('filter.' || v_key, v_value, 'a string');
            elsif v_key = 'reason' then
                v_reason := v_value;
            else
                v_error := v_value;
            end if;
        when 'since', 'until' then
            begin
                if v_value is null then
                    perform fail('filter.' || v_key, null, 'a timestamp with time zone');
                elsif v_key = 'since' then
                    v_since := v_value::timestamptz;
                else
                    v_until := v_value::timestamptz;
                end if;
            exception when data_exception then
                perform fail('filter.' || v_key, v_value, 'a timestamp with time zone');
            end;
        when 'payload' then
            v_payload := filter -> v_key;
        else
            raise exception 'filter must not have the key %', quote_literal(left(v_key, 100))
                using errcode = 'OQ001',
                hint = 'state, job_ids, reason, error, since, until, payload';
        end case;
    end loop;
    v_patch := check_patch(patch);
    if per_second is not null and not (per_second >= 0.001 and per_second <= 1000000) then
        perform fail('per_second', per_second::text, 'between 0.001 and 1000000, or null');
    end if;
    if max_jobs is not null and max_jobs not between 1 and 10000 then
        perform fail('max_jobs', max_jobs::text, 'between 1 and 10000, or null');
    end if;
    if dry_run is null then
        perform fail('dry_run', null, 'true or false');
    end if;
    select q.queue_id, q.restricted, q.max_payload_bytes, q.created_at, q.linked into v_queue
      from queue q
     where q.queue_name = oq_redrive.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if patch ? 'payload' then
        perform check_payload(v_patch.payload, coalesce(v_queue.max_payload_bytes, 1048576));
    end if;
    if v_queue.queue_id is null then
        return;
    end if;
    if v_queue.restricted then
        perform demand(v_queue.queue_id, oq_redrive.queue_name, 'produce');
    end if;

    if dry_run then
        return query select u.job_id from unnest(case v_state
            when 'dead' then {{template "internal/redrive_ids.sql" dict "cancelled" false "lock" false}}
            else {{template "internal/redrive_ids.sql" dict "cancelled" true "lock" false}} end) u(job_id);
        return;
    elsif v_state = 'dead' then
        v_ids := {{template "internal/redrive_ids.sql" dict "cancelled" false "lock" true}};
    else
        v_ids := {{template "internal/redrive_ids.sql" dict "cancelled" true "lock" true}};
    end if;
    if cardinality(v_ids) = 0 then
        return;
    end if;

    perform enter();
    v_now := clock_timestamp();
    v_gen := pg_sequence_last_value('generation'::regclass)::smallint;
    if v_state = 'cancelled' then
        with gone as (
            delete from job j where j.job_id = any (v_ids) and j.gen <> v_gen
            returning j.*
        )
        insert into job (gen, priority, max_retries, job_id, queue_id, created_at, run_at,
            expires_at, payload, headers, retry, tags, group_key, unique_key, batch_id, depends_on,
            on_parent_failure)
        select v_gen, g.priority, g.max_retries, g.job_id, g.queue_id, g.created_at, g.run_at,
            g.expires_at, g.payload, g.headers, g.retry, g.tags, g.group_key, g.unique_key, g.batch_id,
            g.depends_on, g.on_parent_failure
          from gone g;
        with gone as (
            delete from attempt a where a.job_id = any (v_ids) and a.gen <> v_gen
            returning a.*
        )
        insert into attempt (gen, attempt, job_id, token, leased_at, ended_at, outcome, worker_id,
            error)
        select v_gen, g.attempt, g.job_id, g.token, g.leased_at, g.ended_at, g.outcome,
            g.worker_id, g.error
          from gone g;
    end if;
    -- A time to live that has passed is dropped, and so is a time to run that was to come: the operator wants
    -- the job to run.
    update job j
       set priority = case when patch ? 'priority' then v_patch.priority::smallint
               else j.priority end,
           run_at = case when patch ? 'run_at' then v_patch.run_at
               when j.run_at <= v_now then j.run_at end,
           max_retries = case when patch ? 'max_retries' then v_patch.max_retries
               else j.max_retries end,
           payload = case when patch ? 'payload' then v_patch.payload else j.payload end,
           headers = case when patch ? 'headers' then v_patch.headers else j.headers end,
           expires_at = case when j.expires_at > v_now then j.expires_at end
     where j.job_id = any (v_ids)
       and (patch <> '{}' or j.expires_at <= v_now or j.run_at > v_now);
    if exists (select from job j where j.job_id = any (v_ids) and j.unique_key is not null) then
        perform reclaim_keys(v_ids);
    end if;
    insert into ttl (expires_at, job_id)
    select j.expires_at, j.job_id from job j
     where j.job_id = any (v_ids) and j.expires_at is not null
     order by j.job_id;
    for v_lane in
        select distinct (j.queue_id << 16) + 32767 - j.priority
          from job j
         where j.job_id = any (v_ids)
         order by 1
    loop
        perform open_lane(v_lane);
    end loop;

    if v_queue.linked then
        perform leave_slots(v_ids);
        -- The first end counts, also one that was left to the next tick.
        perform settle_parents(v_ids);
    end if;

    -- The i-th is due i / per_second after the first, which is due at once or at patch.run_at.
    v_due := greatest(v_now, v_patch.run_at);
    with from_dead as (
        delete from dead d where v_state = 'dead' and d.job_id = any (v_ids)
        returning d.job_id, d.token, d.attempt
    ), from_finished as (
        delete from finished f where v_state = 'cancelled' and f.job_id = any (v_ids)
        returning f.*
    ), recorded as (
        -- The finished row was the record of the attempt that was cancelled while it ran.
        insert into attempt (gen, attempt, job_id, token, leased_at, ended_at, outcome, worker_id,
            error)
        select v_gen, f.attempt, f.job_id, f.token, f.leased_at, f.finished_at, 'cancelled',
            f.worker_id, f.error
          from from_finished f
         where f.leased_at is not null
    ), back as materialized (
        select x.job_id, x.token, x.attempt, j.expires_at,
            (j.queue_id << 16) + 32767 - j.priority as lane,
            v_due + case when per_second is null then interval '0'
                else (row_number() over (order by x.job_id) - 1) / per_second * interval '1 second'
                end as due_at
          from (
            select d.job_id, d.token, d.attempt from from_dead d
            union all
            select f.job_id, abs(coalesce(f.token, 0)), f.attempt from from_finished f) x
          join job j on j.job_id = x.job_id
    ), later as (
        insert into scheduled (due_at, job_id, lane, token, attempt, expires_at)
        select b.due_at, b.job_id, b.lane, b.token, b.attempt, b.expires_at
          from back b
         where b.due_at > v_now
    ), plain as (
        insert into ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select b.lane, nextval('position'), b.job_id, b.token, b.attempt, 0, 0, b.expires_at
          from (select * from back where due_at <= v_now and not v_queue.linked order by job_id) b
    )
    select array_agg(row(b.lane, 0, b.job_id, b.token, b.attempt, 0, 0, b.expires_at)::ready order by b.job_id)
      into v_jobs
      from back b
     where b.due_at <= v_now and v_queue.linked;
    if v_jobs is not null then
        perform place_jobs(v_jobs);
    end if;
    perform wake_sleepers(v_queue.queue_id);
    return query select u.job_id from unnest(v_ids) u(job_id);
end
$$;
comment on function {{.api_schema}}.oq_redrive(text, jsonb, jsonb, numeric, int, boolean) is
'Makes dead or cancelled jobs ready again; returns their ids, ascending.
filter: state (dead, or cancelled), job_ids, reason (as in oq_dead), error (a part of it, case
counts), since and until (died or cancelled in that time), payload (contains this). patch: as in
oq_update. per_second: how many this call makes ready each second, from now on: the paces of
several calls add up; null: all at once. max_jobs: 1 to 10000; null: as many as 100000, so call it until
nothing comes. dry_run => true only says which. A
cancelled job comes back while its payload is kept. A run_at that is to come and a time to live that has passed are
dropped. It takes its unique key back where that is free, else it comes back without one. An unknown queue gives no
rows. Errors: OQ001.';
