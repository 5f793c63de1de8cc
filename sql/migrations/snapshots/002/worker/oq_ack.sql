-- Completes a job: its row goes from leased to finished, if the token is its current lease.
-- Calls: demand, lost_lease, settle. Locks: the leased row. Index: leased_pk, queue_id_idx.
create or replace function {{.api_schema}}.oq_ack(
    job_id      bigint,
    lease_token bigint,
    result      jsonb   default null,
    strict      boolean default false
)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_done   bigint;
    v_linked boolean;
begin
    if pg_column_size(result) > 131072 or pg_column_compression(result) is not null then
        perform check_result(result);
    end if;
    with ended as (
        delete from leased l
         where l.job_id = oq_ack.job_id and l.token = oq_ack.lease_token
        returning l.job_id, l.lane, l.attempt, l.lost, l.leased_at, l.worker_id, l.kept, l.restricted, l.linked
    )
    insert into finished (gen, job_id, queue_id, attempt, lost, finished_at, leased_at, outcome, kept,
        linked, worker_id, result)
    select pg_sequence_last_value('generation'::regclass)::smallint, e.job_id, e.lane >> 16, e.attempt,
        e.lost, clock_timestamp(), e.leased_at, 'completed', e.kept, e.linked, e.worker_id,
        case when e.kept then oq_ack.result end
      from ended e
     where case when e.restricted then demand_lease(e.lane >> 16) else true end
    returning finished.job_id, finished.linked into v_done, v_linked;
    -- One question where the lease was plain and is not lost.
    if v_linked is not false then
        if v_done is null then
            perform lost_lease(oq_ack.job_id, oq_ack.strict);
            return false;
        end if;
        v_linked := settle(array[v_done], true);
    end if;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_ack(bigint, bigint, jsonb, boolean) is
'Completes a leased job; false where the lease is lost.
strict => true raises OQ002 instead, so that the caller''s own writes roll back: with it, effects in
this database are exactly once. An ack after expiry is accepted while nobody has taken the job back.
In a REPEATABLE READ or SERIALIZABLE transaction a lease that is not found raises 40001.
result: at most 1 MB, read by oq_result and oq_jobs for the queue''s retention.';
