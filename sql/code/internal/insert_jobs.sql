-- Plain jobs whose queues, rights, payloads and depth the caller has checked: one a lane and payload,
-- with all else the same for all of them.
-- Calls: enter, job_options, open_lane, wake_sleepers.
-- Locks: epoch shared (memory). Index: mark_lane_idx.
create or replace function {{.schema}}.insert_jobs(
    lanes       bigint[],
    payloads    jsonb[],
    run_at      timestamptz default null,
    max_retries int         default null,
    headers     jsonb       default null,
    options     jsonb       default null
)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_ids     bigint[];
    v_now     timestamptz;
    v_run_at  timestamptz := insert_jobs.run_at;
    v_options record;
    v_gen     smallint;
    v_other   bigint[];
begin
    perform {{.schema}}.enter();
    v_now := clock_timestamp();
    if options is null then
        select null::timestamptz as expires_at, null::jsonb as retry, null::text[] as tags into v_options;
    else
        select o.* into v_options from {{.schema}}.job_options(insert_jobs.options, v_now, 'options.') o;
        v_run_at := coalesce(v_run_at, v_options.run_at);
    end if;
    v_other := array(
        select distinct l.lane from unnest(insert_jobs.lanes) l(lane) where l.lane & 65535 <> 32767 order by 1);
    if cardinality(v_other) > 0 then
        perform {{.schema}}.open_lane(l.lane) from unnest(v_other) l(lane);
    end if;
    v_ids := array(select nextval('{{.schema}}.position') from generate_series(1, cardinality(lanes)));
    v_gen := pg_sequence_last_value('{{.schema}}.generation'::regclass);
    insert into {{.schema}}.job (gen, job_id, queue_id, priority, created_at, run_at, max_retries, expires_at,
        payload, headers, retry, tags)
    select v_gen, u.job_id, u.lane >> 16, (32767 - (u.lane & 65535))::smallint, v_now, v_run_at,
        insert_jobs.max_retries, v_options.expires_at, u.payload, insert_jobs.headers, v_options.retry,
        v_options.tags
      from unnest(v_ids, insert_jobs.lanes, insert_jobs.payloads) u(job_id, lane, payload);
    if v_options.expires_at is not null then
        insert into {{.schema}}.ttl (expires_at, job_id)
        select greatest(v_options.expires_at, v_now), u.job_id from unnest(v_ids) u(job_id);
    end if;
    if v_run_at > v_now then
        insert into {{.schema}}.scheduled (due_at, job_id, lane, expires_at)
        select v_run_at, u.job_id, u.lane, v_options.expires_at
          from unnest(v_ids, insert_jobs.lanes) u(job_id, lane);
        return;
    end if;
    insert into {{.schema}}.ready (lane, position, job_id, expires_at)
    select u.lane, u.job_id, u.job_id, v_options.expires_at
      from unnest(v_ids, insert_jobs.lanes) u(job_id, lane);
    if lanes[1] = all (lanes) then
        perform {{.schema}}.wake_sleepers(lanes[1] >> 16);
    else
        perform {{.schema}}.wake_sleepers(q.queue_id)
           from (select distinct l.lane >> 16 as queue_id from unnest(insert_jobs.lanes) l(lane) order by 1) q;
    end if;
end
$$;
comment on function {{.schema}}.insert_jobs(bigint[], jsonb[], timestamptz, int, jsonb, jsonb) is
    'Enqueues plain jobs that the caller has checked.';
