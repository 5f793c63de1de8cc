-- A dropped queue is hidden, unless a job stands in it: one that was enqueued by an open
-- transaction, or held by one, while the queue was dropped. Only dropped queues pay for the look.
-- Calls: queue_now. Index: ready_pk, dead_queue_idx.
create or replace view {{.schema}}.queue_shown as
select q.*
  from {{.schema}}.queue_now q
 where q.dropped_at is null
    or exists (
        select from {{.schema}}.ready r
         where r.lane between q.queue_id << 16 and (q.queue_id << 16) + 65535)
    or exists (select from {{.schema}}.dead d where d.queue_id = q.queue_id)
    or exists (
        select from {{.schema}}.leased l
         where l.lane between q.queue_id << 16 and (q.queue_id << 16) + 65535)
    or exists (
        select from {{.schema}}.scheduled s
         where s.lane between q.queue_id << 16 and (q.queue_id << 16) + 65535)
    or exists (
        select from {{.schema}}.waiting w
         where w.lane between q.queue_id << 16 and (q.queue_id << 16) + 65535);
comment on view {{.schema}}.queue_shown is 'The queues that exist for their users.';
