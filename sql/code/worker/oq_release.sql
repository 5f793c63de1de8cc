-- Gives a job back as if it had not been leased.
-- Calls: demand, enter, lost_lease, put_back. Locks: the leased row. Index: leased_pk, queue_id_idx.
create or replace function {{.api_schema}}.oq_release(
    job_id      bigint,
    lease_token bigint,
    delay       interval default null
)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_lease leased%rowtype;
    v_queue record;
begin
    if delay is not null and (delay < interval '0' or delay > interval '3660 days') then
        perform fail('delay', delay::text, 'between 0 and 10 years');
    end if;
    delete from leased l
     where l.job_id = oq_release.job_id and l.token = oq_release.lease_token
    returning l.* into v_lease;
    if v_lease.job_id is null then
        perform lost_lease(oq_release.job_id, false);
        return false;
    end if;
    select q.queue_id, q.restricted into v_queue
      from queue q
     where q.queue_id = v_lease.lane >> 16
     order by q.version desc, q.row_id
     limit 1;
    if v_queue.restricted then
        perform demand(v_queue.queue_id, null, 'consume');
    end if;
    perform enter();
    v_lease.attempt := v_lease.attempt - 1;
    perform put_back(v_lease, clock_timestamp(), oq_release.delay);
    return true;
end
$$;
comment on function {{.api_schema}}.oq_release(bigint, bigint, interval) is
'Gives a leased job back; no attempt is counted. False where the lease is lost.
Without a delay it is ready at once, behind the others of its priority.';
