-- Makes a job that nobody holds what another enqueue of its unique key says: payload, headers, priority,
-- max_retries, run_at, time to live, retry policy, tags. latest bounds a debounced run_at. False where the job is
-- leased or over, or an open transaction has it for longer than a tick would. The caller holds the key, so no
-- other enqueue has it, and is in an epoch, so no mark passes the new timer.
-- A short wait by trying again, not by a lock_timeout: to catch that would take a subtransaction.
-- Calls: oq_update. Locks: as oq_update; ttl rows (skip locked). Index: job_N_pk, ready_pk, ready_returned_idx, scheduled_pk,
-- waiting_pk, leased_pk, dead_pk, finished_N_pk, ttl_job_idx.
create or replace function {{.schema}}.replace_job(
    job_id bigint, said {{.schema}}.new_job, element jsonb, latest timestamptz)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now timestamptz;
    v_old record;
begin
    for v_round in 1..20 loop
        -- The row of its place, whichever that is, is ours.
        exit when exists (
            with r as materialized (
                select from ready r
                 where r.lane = (
                        select (j.queue_id << 16) + 32767 - j.priority from job j
                         where j.job_id = replace_job.job_id limit 1)
                   and r.position = replace_job.job_id
                   for update skip locked
            ), b as materialized (
                select from ready r
                 where r.job_id = replace_job.job_id and r.position <> r.job_id
                   for update skip locked
            ), s as materialized (
                select from scheduled s where s.job_id = replace_job.job_id for update skip locked
            ), w as materialized (
                select from waiting w where w.job_id = replace_job.job_id for update skip locked
            )
            select from r union all select from b union all select from s union all select from w);
        if v_round = 20
            or exists (select from leased l where l.job_id = replace_job.job_id)
            or {{template "internal/over.sql" dict "schema" .schema "id" "replace_job.job_id"}} is not false
        then
            return false;
        end if;
        perform pg_sleep(0.005);
    end loop;
    if not {{.api_schema}}.oq_update(replace_job.job_id, jsonb_build_object(
        'payload', coalesce(element -> 'payload', '{}'),
        'headers', nullif(element -> 'headers', 'null'),
        'priority', 32767 - (said.lane & 65535),
        'max_retries', said.max_retries,
        'run_at', least(said.run_at, latest)))
    then
        return false;
    end if;
    -- Its row is ours by now: oq_rotate can't carry it away.
    select j.expires_at, j.retry, j.tags into v_old from job j where j.job_id = replace_job.job_id limit 1;
    if (v_old.expires_at, v_old.retry, v_old.tags) is distinct from (said.expires_at, said.retry, said.tags) then
        update job j
           set expires_at = said.expires_at, retry = said.retry, tags = said.tags
         where j.job_id = replace_job.job_id;
    end if;
    if v_old.expires_at is distinct from said.expires_at then
        v_now := clock_timestamp();
        update ready r
           set expires_at = said.expires_at
         where r.lane = said.lane and r.position = replace_job.job_id;
        update ready r
           set expires_at = said.expires_at
         where r.job_id = replace_job.job_id and r.position <> r.job_id;
        update scheduled s set expires_at = said.expires_at where s.job_id = replace_job.job_id;
        update waiting w set expires_at = said.expires_at where w.job_id = replace_job.job_id;
        -- The old timer would be looked at again and again until the job is over.
        delete from ttl t
         where t.ctid = any (array(
            select x.ctid from ttl x where x.job_id = replace_job.job_id for update skip locked));
        if said.expires_at is not null then
            insert into ttl (expires_at, job_id) values (greatest(said.expires_at, v_now), replace_job.job_id);
        end if;
    end if;
    return true;
end
$$;
comment on function {{.schema}}.replace_job(bigint, {{.schema}}.new_job, jsonb, timestamptz) is
    'Makes a job that nobody holds what another enqueue says.';
