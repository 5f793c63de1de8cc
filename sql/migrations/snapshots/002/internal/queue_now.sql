-- Of several rows of a queue the newest version counts, then the oldest row: concurrent first uses
-- add equal rows, so that nobody waits to create a queue. Index: queue_id_idx.
create or replace view {{.schema}}.queue_now as
select distinct on (q.queue_id)
    q.row_id, q.version, q.queue_id, q.queue_name, q.paused, q.restricted, q.lease_seconds,
    q.max_retries, q.max_lost_leases, q.max_payload_bytes, q.max_depth, q.keep, q.notify,
    q.retention, q.retry, q.created_at, q.dropped_at,
    q.linked, q.limited
  from {{.schema}}.queue q
 order by q.queue_id, q.version desc, q.row_id;
comment on view {{.schema}}.queue_now is 'The row of each queue that counts.';
