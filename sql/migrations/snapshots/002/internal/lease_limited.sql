-- The lease from a queue with limits, one job at a time, each into a slot. A slot of max_running is free when
-- the lease that took it last is gone: acked, given back or reaped. So nothing leaks, and nobody counts.
-- Slots have a lock each, kept until the transaction ends: an open transaction keeps its own slots only.
-- Calls: limit_of, lanes, free_slot, rate_slots, use_slots, reap_expired, tend, advance_alone,
-- raise_lane.
-- Locks: slots (try), ready rows (skip locked). Index: mark_lane_idx, ready_pk, limit_slot_idx, job_N_pk.
create or replace function {{.schema}}.lease_limited(
    queue_name text, worker_id text, seconds int, max_jobs int, queue_id bigint, kept boolean,
    restricted boolean, max_retries int
)
returns setof {{.schema}}.leased_job
language plpgsql
as $$
#variable_conflict use_variable
declare
    v_limit  record;
    v_now    timestamptz;
    v_token  bigint;
    -- Two locks a job, and the lock table is everybody's.
    v_left   int := least(max_jobs, 1000);
    v_slot   int;
    v_rate   int[];
    v_lane   record;
    v_ready  record;
    v_job    record;
    v_reaped boolean := false;
    v_tended boolean := false;
begin
    if {{template "internal/one_snapshot.sql"}} then
        raise exception 'a lease from queue %, which has limits, needs a READ COMMITTED transaction',
            quote_literal(queue_name)
            using errcode = '25001', hint = 'A snapshot can''t see which slots were taken since.';
    end if;
    v_limit := {{.schema}}.limit_of(queue_id, 0);
    if v_limit.until is not null then
        return;
    end if;
    -- As in lease_body.sql: what is due may be of a higher priority than what is ready.
    v_now := clock_timestamp();
    if not {{template "internal/ticking.sql" .schema}}
        and not exists (
            select from {{.schema}}.lanes(lease_limited.queue_id << 16, (lease_limited.queue_id << 16) + 65535) k
             where k.raised_at > v_now - interval '1 second')
    then
        v_tended := {{.schema}}.tend(queue_id, v_left, true) is not null;
    end if;
    while v_left > 0 loop
        v_now := clock_timestamp();
        -- No slot is taken where nothing is ready.
        v_ready := null;
        for v_lane in
            select k.lane, k.low, k.raised_at > v_now - interval '1 second' as fresh
              from {{.schema}}.lanes(lease_limited.queue_id << 16, (lease_limited.queue_id << 16) + 65535) k
             order by k.lane
        loop
            select r.job_id into v_ready
              from {{.schema}}.ready r
             where r.lane = v_lane.lane and r.position >= v_lane.low
               and (r.expires_at is null or r.expires_at > v_now)
             order by r.position
             limit 1;
            continue when v_ready.job_id is null;
            if v_limit.max_running is not null and v_slot is null then
                v_slot := {{.schema}}.free_slot(queue_id * 4, v_limit.max_running);
                if v_slot is null and not v_reaped then
                    -- A worker that is gone holds its slot until its lease ends, and no longer.
                    v_reaped := true;
                    if {{template "internal/leases_due.sql" dict "schema" .schema "late" "50" "at" "v_now"}}
                        and {{.schema}}.reap_expired(1000, queue_id) > 0
                    then
                        v_slot := {{.schema}}.free_slot(queue_id * 4, v_limit.max_running);
                        v_now := clock_timestamp();
                    end if;
                end if;
                if v_slot is null then
                    return;
                end if;
            end if;
            if v_limit.slots is not null and coalesce(cardinality(v_rate), 0) = 0 then
                v_rate := {{.schema}}.rate_slots(queue_id * 4 + 1, v_limit.slots, v_limit.time_window, 1);
                if cardinality(v_rate) = 0 then
                    return;
                end if;
            end if;
            delete from {{.schema}}.ready r
             where r.ctid = (
                select x.ctid
                  from {{.schema}}.ready x
                 where x.lane = v_lane.lane and x.position >= v_lane.low
                   and (x.expires_at is null or x.expires_at > v_now)
                 order by x.position
                 limit 1
                   for update skip locked)
            returning r.* into v_ready;
            if v_ready.job_id is not null and not v_lane.fresh then
                perform {{.schema}}.advance_alone();
                perform {{.schema}}.raise_lane(v_lane.lane);
            end if;
            exit when v_ready.job_id is not null;
        end loop;
        if v_ready.job_id is null then
            exit when v_tended;
            v_tended := true;
            exit when not {{.schema}}.tend(queue_id, v_left, true);
            continue;
        end if;

        -- The job begins after the moment at which its slots, its group's as well, were seen free.
        v_now := clock_timestamp();
        v_token := greatest(v_ready.token + 1, {{template "internal/new_token.sql" dict "schema" .schema "at" "v_now"}});
        insert into {{.schema}}.leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost, kept,
            restricted, linked, worker_id, job_expires_at)
        values (v_ready.job_id, v_token, v_ready.lane, v_now + seconds * interval '1 second', v_now,
            coalesce(v_ready.attempt, 0) + 1, coalesce(v_ready.failed, 0), coalesce(v_ready.lost, 0), kept, restricted, true, worker_id,
            v_ready.expires_at);
        if v_slot is not null then
            perform {{.schema}}.use_slots(queue_id * 4, array[v_slot], array[v_ready.job_id], array[v_token]);
            v_slot := null;
        end if;
        if v_rate is not null then
            perform {{.schema}}.use_slots(queue_id * 4 + 1, v_rate, array[v_ready.job_id], array[v_token]);
            v_rate := null;
        end if;
        select j.* into v_job from {{.schema}}.job j where j.job_id = v_ready.job_id limit 1;
        return query
        select v_ready.job_id, v_token, queue_name, v_job.payload, v_job.headers,
            (32767 - (v_ready.lane & 65535))::int, coalesce(v_ready.attempt, 0) + 1, coalesce(v_job.max_retries, max_retries),
            v_job.group_key, v_job.created_at, v_now + seconds * interval '1 second';
        v_left := v_left - 1;
    end loop;
end
$$;
comment on function {{.schema}}.lease_limited(text, text, int, int, bigint, boolean, boolean, int) is
'Leases from a queue that has limits.';
