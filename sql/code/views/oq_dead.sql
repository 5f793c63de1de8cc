-- Calls: queue_now, may. Index: dead_queue_idx, job_N_pk, queue_id_idx.
create or replace view {{.api_schema}}.oq_dead with (security_barrier) as
select d.job_id,
    q.queue_name,
    d.reason,
    d.error,
    d.died_at,
    d.attempt,
    coalesce(j.max_retries, q.max_retries) as max_retries,
    d.failed::int as failures,
    d.lost::int as lost_leases,
    d.worker_id,
    j.priority::int as priority,
    j.created_at,
    j.payload,
    j.headers
  from {{.schema}}.dead d
  join {{.schema}}.job j on j.job_id = d.job_id
  -- Queues by a join: then those of one queue are found by its index.
  join {{.schema}}.queue_now q on q.queue_id = d.queue_id
 where not q.restricted or {{.schema}}.may(q.queue_id, 'observe');
comment on view {{.api_schema}}.oq_dead is
'Jobs that died: no retries left, no retry wanted, or leases lost.
reason: retries_exhausted, no_retry (nacked with retry => false) or lost_lease. They stay until oq_redrive,
oq_cancel or oq_purge. oq_attempts has every error.';
