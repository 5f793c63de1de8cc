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
    v_linked boolean;
begin
    -- Of its text, as it is kept and read: a number of sixteen binary bytes may be 131072 digits long.
    if octet_length(result::text) > 1048576 then
        perform fail('result', octet_length(result::text) || ' bytes long', 'at most 1048576 bytes');
    end if;
{{template "internal/finish_one.sql" dict "id" "oq_ack.job_id" "token" "oq_ack.lease_token"
    "result" "case when e.kept then oq_ack.result end"}}    -- One question where the lease was plain and is not lost.
    if v_linked is not false then
        if v_linked is null then
            perform lost_lease(oq_ack.job_id, oq_ack.strict);
            return false;
        end if;
        v_linked := settle(array[oq_ack.job_id], true);
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
