-- Calls: may. Index: queue_name_idx.
create or replace view {{.api_schema}}.oq_schedules with (security_barrier) as
select s.schedule_name,
    s.cron,
    s.timezone,
    s.queue_name,
    s.due_at as next_run_at,
    s.last_run_at,
    s.last_job_id,
    s.paused,
    s.missed,
    s.overlap,
    s.start_at,
    s.end_at,
    s.payload,
    s.job as job_options,
    coalesce(r.rolname, s.owner_name) as owner,
    s.runs,
    s.skipped,
    s.last_error,
    s.last_error_at,
    s.created_at,
    s.updated_at
  from {{.schema}}.schedule s
  left join pg_catalog.pg_roles r on r.oid = s.owner_id
  left join lateral (
    select q.queue_id, q.restricted
      from {{.schema}}.queue q
     where q.queue_name = s.queue_name
     order by q.version desc, q.row_id
     limit 1) q on true
 where q.restricted is not true or {{.schema}}.may(q.queue_id, 'observe');
comment on view {{.api_schema}}.oq_schedules is
'Schedules: when each runs next, ran last, and what went wrong.
Of restricted queues those that the reader may observe. next_run_at: null where it is paused or over.
last_run_at: the instant of the last run; last_job_id: its job. runs: jobs made. skipped: runs left out
because the job before was not done. last_error: of the last run, if it failed. job_options: priority,
max_retries, unique_key, group_key, headers and options of the job.';
