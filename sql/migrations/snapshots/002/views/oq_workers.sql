-- Calls: queue_now, may. Index: queue_id_idx.
create or replace view {{.api_schema}}.oq_workers with (security_barrier) as
select l.worker_id,
    q.queue_name,
    l.leased,
    l.overdue,
    l.first_leased_at,
    l.last_leased_at,
    l.next_expiry_at
  from (
    select x.worker_id, x.lane >> 16 as queue_id,
        count(*) as leased,
        count(*) filter (where x.expires_at < clock_timestamp()) as overdue,
        min(x.leased_at) as first_leased_at,
        max(x.leased_at) as last_leased_at,
        min(x.expires_at) as next_expiry_at
      from {{.schema}}.leased x
     group by x.worker_id, x.lane >> 16) l
  join {{.schema}}.queue_now q on q.queue_id = l.queue_id
 where not q.restricted or {{.schema}}.may(q.queue_id, 'observe');
comment on view {{.api_schema}}.oq_workers is
'Workers that hold jobs, by queue: how many, since when, until when.
A worker without a job is not listed; one that gave no worker_id is null. overdue: leases that have
expired and were not taken back yet.';
