-- Extends a lease. expires_at says when it may be taken back: until somebody does, it can be extended and acked.
-- Calls: demand, lost_lease.
-- Locks: the leased row. Index: leased_pk, queue_id_idx, finished_N_pk.
create or replace function {{.api_schema}}.oq_heartbeat(
    job_id        bigint,
    lease_token   bigint,
    lease_seconds int   default null,
    progress      jsonb default null
)
returns text
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_done bigint;
begin
    if lease_seconds is not null and lease_seconds not between 1 and 604800 then
        perform fail('lease_seconds', lease_seconds::text, 'between 1 and 604800');
    end if;
    if progress is not null and octet_length(progress::text) > 65536 then
        perform fail('progress', octet_length(progress::text) || ' bytes long', 'at most 65536 bytes');
    end if;
    update leased l
       set expires_at = clock_timestamp() + coalesce(oq_heartbeat.lease_seconds, q.lease_seconds)
               * interval '1 second',
           progress = coalesce(oq_heartbeat.progress, l.progress)
      from leased x
     cross join lateral (
        select q.queue_id, q.lease_seconds, q.restricted from queue q
         where q.queue_id = x.lane >> 16
         order by q.version desc, q.row_id
         limit 1) q
     where x.job_id = oq_heartbeat.job_id and x.token = oq_heartbeat.lease_token
       and l.job_id = oq_heartbeat.job_id and l.token = oq_heartbeat.lease_token
       and case when q.restricted then demand(q.queue_id, null, 'consume') else true end
    returning l.job_id into v_done;
    if v_done is not null then
        return 'ok';
    end if;
    if exists (
        select from finished f
         where f.job_id = oq_heartbeat.job_id and f.token = oq_heartbeat.lease_token
           and f.outcome = 'cancelled')
    then
        return 'cancelled';
    end if;
    perform lost_lease(oq_heartbeat.job_id, false);
    return 'lost';
end
$$;
comment on function {{.api_schema}}.oq_heartbeat(bigint, bigint, int, jsonb) is
'Extends a lease to lease_seconds from now; returns ok, cancelled or lost.
lease_seconds: null takes the queue''s. progress: at most 64 kB, shown by oq_jobs. On cancelled or
lost the worker should stop: what it would ack is refused.';
