-- Calls: queue_shown, may. Index: queue_id_idx. The counts are read only where they are asked for.
create or replace view {{.api_schema}}.oq_queues with (security_barrier) as
select q.queue_name,
    q.paused,
    coalesce(r.jobs, 0) as ready,
    coalesce(s.jobs, 0) as scheduled,
    coalesce(w.jobs, 0) as waiting,
    coalesce(l.jobs, 0) as leased,
    coalesce(d.jobs, 0) as dead,
    q.restricted,
    q.lease_seconds,
    q.max_retries,
    q.max_lost_leases,
    q.retry,
    q.retention,
    q.keep,
    q.max_payload_bytes,
    q.max_depth,
    'reject'::text as overflow,
    q.notify,
    q.created_at
  from {{.schema}}.queue_shown q
  left join (
    select x.lane >> 16 as queue_id, count(*) as jobs
      from {{.schema}}.ready x
     group by x.lane >> 16) r
    on r.queue_id = q.queue_id
  left join (
    select x.lane >> 16 as queue_id, count(*) as jobs
      from {{.schema}}.scheduled x
     group by x.lane >> 16) s
    on s.queue_id = q.queue_id
  left join (
    select x.lane >> 16 as queue_id, count(*) as jobs
      from {{.schema}}.waiting x
     group by x.lane >> 16) w
    on w.queue_id = q.queue_id
  left join (
    select x.lane >> 16 as queue_id, count(*) as jobs
      from {{.schema}}.leased x
     group by x.lane >> 16) l
    on l.queue_id = q.queue_id
  left join (
    select x.queue_id, count(*) as jobs
      from {{.schema}}.dead x
     group by x.queue_id) d
    on d.queue_id = q.queue_id
 where not q.restricted or {{.schema}}.may(q.queue_id, 'observe');
comment on view {{.api_schema}}.oq_queues is
'Queues with their options and how many unfinished jobs they hold.
Of restricted queues those that the reader may observe.';
