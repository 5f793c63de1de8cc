-- Extends many leases.
-- Calls: check_leases, demand, lost_lease.
-- Locks: leased rows, job ids ascending. Index: as oq_heartbeat.
create or replace function {{.api_schema}}.oq_heartbeat_many(
    job_ids       bigint[],
    lease_tokens  bigint[],
    lease_seconds int default null
)
returns table (job_id bigint, status text)
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now  timestamptz;
begin
    if lease_seconds is not null and lease_seconds not between 1 and 604800 then
        perform fail('lease_seconds', lease_seconds::text, 'between 1 and 604800');
    end if;
    perform check_leases(job_ids, lease_tokens, null);
    v_now := clock_timestamp();
    return query
    with asked as materialized (
        select u.job_id, u.token, u.ord
          from unnest(oq_heartbeat_many.job_ids, oq_heartbeat_many.lease_tokens)
            with ordinality u(job_id, token, ord)
    ), held as materialized (
        select l.job_id, l.token, l.lane
          from (select distinct a.job_id, a.token from asked a order by a.job_id) a
         cross join lateral (
            select l.job_id, l.token, l.lane from leased l
             where l.job_id = a.job_id and l.token = a.token
               for update) l
    ), extended as (
        update leased l
           set expires_at = v_now + coalesce(oq_heartbeat_many.lease_seconds, q.lease_seconds)
                   * interval '1 second'
          from held h
         cross join lateral (
            select q.queue_id, q.lease_seconds, q.restricted from queue q
             where q.queue_id = h.lane >> 16
             order by q.version desc, q.row_id
             limit 1) q
         where l.job_id = h.job_id and l.token = h.token
           and case when q.restricted then demand(q.queue_id, null, 'consume') else true end
        returning l.job_id, l.token
    )
    -- By case and in, which is a hash: a join could only be by a walk through all for each.
    select a.job_id, case when (a.job_id, a.token) in (select e.job_id, e.token from extended e) then 'ok'
            else coalesce((
                -- A scalar: of an exists the planner may make a hash of the whole table.
                select 'cancelled' from finished f
                 where f.job_id = a.job_id and f.token = a.token and f.outcome = 'cancelled'
                 limit 1), 'lost') end
      from asked a
     order by a.ord;
    if {{template "internal/one_snapshot.sql"}}
        and exists (
            select from unnest(oq_heartbeat_many.job_ids, oq_heartbeat_many.lease_tokens) u(job_id, token)
             where not exists (
                    select from leased l where l.job_id = u.job_id and l.token = u.token)
               and not exists (
                    select from finished f
                     where f.job_id = u.job_id and f.token = u.token and f.outcome = 'cancelled'))
    then
        perform lost_lease(null, false);
    end if;
end
$$;
comment on function {{.api_schema}}.oq_heartbeat_many(bigint[], bigint[], int) is
'Extends many leases; one row per job asked for: ok, cancelled or lost.
As oq_heartbeat, in one call: the arrays go together, at most 10000 long.';
