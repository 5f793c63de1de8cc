-- Calls: queue_now, may, watch_allowed. Index: queue_id_idx.
create or replace view {{.api_schema}}.oq_subscriptions with (security_barrier) as
select s.pattern as topic_pattern,
    q.queue_name,
    s.owner::text as owner,
    s.created_at,
    ({{.schema}}.watch_allowed(s.owner, s.queue_id, null)).reason as problem
  from {{.schema}}.subscription s
  join {{.schema}}.queue_now q on q.queue_id = s.queue_id
 where not q.restricted or {{.schema}}.may(q.queue_id, 'observe');
comment on view {{.api_schema}}.oq_subscriptions is
'Which topics make jobs in which queue.
problem: why what is published is not delivered now; null where it is.';
