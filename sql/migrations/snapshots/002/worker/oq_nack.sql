-- A failed attempt: the job comes back after its backoff, or goes to dead.
-- Calls: backoff, demand, enter, lost_lease, put_back, settle.
-- Locks: the leased row, epoch shared (memory). Index: leased_pk, job_N_pk, queue_id_idx.
create or replace function {{.api_schema}}.oq_nack(
    job_id      bigint,
    lease_token bigint,
    error       text     default null,
    retry       boolean  default true,
    retry_after interval default null
)
returns text
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now   timestamptz;
    v_gen   smallint;
    v_lease leased%rowtype;
    v_queue record;
    v_job   record;
    v_failed int;
    v_delay interval;
    v_error text := left(oq_nack.error, 10000);
begin
    if retry_after is not null
        and (retry_after < interval '0' or retry_after > interval '3660 days')
    then
        perform fail('retry_after', retry_after::text, 'between 0 and 10 years');
    end if;
    if retry is null then
        perform fail('retry', null, 'true or false');
    end if;
    delete from leased l
     where l.job_id = oq_nack.job_id and l.token = oq_nack.lease_token
    returning l.* into v_lease;
    if v_lease.job_id is null then
        perform lost_lease(oq_nack.job_id, false);
        return null;
    end if;
    select q.queue_id, q.restricted, q.max_retries, q.retry into v_queue
      from queue q
     where q.queue_id = v_lease.lane >> 16
     order by q.version desc, q.row_id
     limit 1;
    if v_queue.restricted then
        perform demand(v_queue.queue_id, null, 'consume');
    end if;
    select j.max_retries, j.retry into v_job from job j where j.job_id = v_lease.job_id limit 1;

    perform enter();
    v_now := clock_timestamp();
    v_gen := pg_sequence_last_value('generation'::regclass)::smallint;
    insert into attempt (gen, job_id, attempt, token, worker_id, leased_at, ended_at, outcome, error)
    values (v_gen, v_lease.job_id, v_lease.attempt, v_lease.token, v_lease.worker_id, v_lease.leased_at,
        v_now, 'failed', v_error);
    v_failed := v_lease.failed + 1;
    v_lease.failed := least(v_failed, 32767);

    if not oq_nack.retry or v_failed > coalesce(v_job.max_retries, v_queue.max_retries) then
        insert into dead (job_id, queue_id, died_at, token, attempt, failed, lost, reason, worker_id, error)
        values (v_lease.job_id, v_queue.queue_id, v_now, v_lease.token, v_lease.attempt, v_lease.failed,
            v_lease.lost, case when oq_nack.retry then 'retries_exhausted' else 'no_retry' end,
            v_lease.worker_id, v_error);
        if v_lease.linked then
            perform settle(array[v_lease.job_id]);
        end if;
        return 'dead';
    end if;
    v_delay := coalesce(oq_nack.retry_after, backoff(coalesce(v_job.retry, v_queue.retry), v_failed));
    return put_back(v_lease, v_now, v_delay);
end
$$;
comment on function {{.api_schema}}.oq_nack(bigint, bigint, text, boolean, interval) is
'Reports a failed attempt; returns where the job went.
scheduled, ready or dead (expired where its time to live has passed); null where the lease is lost.
The job comes back after base * factor^(retries - 1) with jitter, at most max (option retry of the
job or the queue), or after retry_after. With retry => false, or when its max_retries are used up, it
is dead. error: kept up to 10000 characters, read by oq_attempts.';
