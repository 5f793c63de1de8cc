-- Every job from the table in which it stands. Ready has no index of all job ids: a fresh job
-- stands at (the lane of its priority, its id), one that came back in the partial index of those.
-- Written as two branches, so that "where job_id = ..." is index probes alone. The last attempt's error is looked for
-- once, above them, and only where there was one: each expression is compiled where the server has JIT.
-- Calls: may. Index: job_N_pk, ready_pk, ready_returned_idx, scheduled_pk, waiting_pk, leased_pk,
-- dead_pk, finished_N_pk, attempt_N_pk, queue_id_idx.
create or replace view {{.api_schema}}.oq_jobs with (security_barrier) as
select p.job_id,
    q.queue_name,
    p.state,
    p.priority,
    p.attempt,
    coalesce(p.max_retries, q.max_retries) as max_retries,
    p.failures,
    p.lost_leases,
    p.run_at,
    p.created_at,
    p.expires_at,
    p.worker_id,
    p.leased_at,
    p.lease_expires_at,
    p.finished_at,
    p.reason,
    p.group_key,
    p.unique_key,
    p.payload,
    p.headers,
    p.tags,
    p.progress,
    p.result,
    case when p.tries > 0 then (
        select a.error from {{.schema}}.attempt a
         where a.job_id = p.job_id
         order by a.attempt desc
         limit 1) else p.error end as error
  from (
    select j.job_id, j.queue_id, 'ready'::text as state, j.priority::int as priority,
        coalesce(r.attempt, 0) as attempt, j.max_retries, coalesce(r.failed, 0)::int as failures,
        coalesce(r.lost, 0)::int as lost_leases, j.run_at,
        j.created_at, r.expires_at, null::text as worker_id, null::timestamptz as leased_at,
        null::timestamptz as lease_expires_at, null::timestamptz as finished_at,
        null::text as reason,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, null::jsonb as progress, null::jsonb as result,
        coalesce(r.attempt, 0) as tries, null::text as error
      from {{.schema}}.job j
      join {{.schema}}.ready r
        on r.lane = (j.queue_id << 16) + 32767 - j.priority and r.position = j.job_id
    union all
    select j.job_id, j.queue_id, 'ready', j.priority::int, r.attempt,
        j.max_retries, r.failed::int, r.lost::int, j.run_at, j.created_at,
        r.expires_at, null, null,
        null, null, null,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, null, null,
        r.attempt, null
      from {{.schema}}.ready r
      join {{.schema}}.job j on j.job_id = r.job_id
     where r.position <> r.job_id
    union all
    select j.job_id, j.queue_id, 'scheduled', j.priority::int, s.attempt,
        j.max_retries, s.failed::int, s.lost::int, s.due_at, j.created_at,
        s.expires_at, null, null,
        null, null, null,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, null, null,
        s.attempt, null
      from {{.schema}}.scheduled s
      join {{.schema}}.job j on j.job_id = s.job_id
    union all
    select j.job_id, j.queue_id, 'waiting', j.priority::int, w.attempt,
        j.max_retries, w.failed::int, w.lost::int, j.run_at, j.created_at,
        w.expires_at, null, null,
        null, null, null,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, null, null,
        w.attempt, null
      from {{.schema}}.waiting w
      join {{.schema}}.job j on j.job_id = w.job_id
    union all
    select j.job_id, j.queue_id, 'leased', j.priority::int, l.attempt,
        j.max_retries, l.failed::int, l.lost::int, j.run_at, j.created_at,
        l.job_expires_at, l.worker_id, l.leased_at,
        l.expires_at, null, null,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, l.progress, null,
        l.attempt - 1, null
      from {{.schema}}.leased l
      join {{.schema}}.job j on j.job_id = l.job_id
    union all
    select j.job_id, j.queue_id, 'dead', j.priority::int, d.attempt,
        j.max_retries, d.failed::int, d.lost::int, j.run_at, j.created_at,
        j.expires_at, d.worker_id, null,
        null, d.died_at, d.reason,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, null, null,
        0, d.error
      from {{.schema}}.dead d
      join {{.schema}}.job j on j.job_id = d.job_id
    union all
    select f.job_id, f.queue_id, f.outcome::text, j.priority::int, f.attempt,
        j.max_retries, null, f.lost::int, j.run_at, j.created_at,
        j.expires_at, f.worker_id, f.leased_at,
        null, f.finished_at, null,
        j.group_key, j.unique_key, j.payload, j.headers, j.tags, null, f.result,
        case when f.error is null and f.outcome <> 'completed' then f.attempt else 0 end, f.error
      from {{.schema}}.finished f
      left join {{.schema}}.job j on j.job_id = f.job_id
     where f.kept) p
 -- Of several rows the newest version; not by lateral, so that a plan over all jobs can hash the queues.
  join {{.schema}}.queue q on q.queue_id = p.queue_id
   and not exists (
    select from {{.schema}}.queue n
     where n.queue_id = q.queue_id and (n.version > q.version or n.version = q.version and n.row_id < q.row_id))
 where (not q.restricted or {{.schema}}.may(q.queue_id, 'observe'))
   -- What had finished when the queue was dropped went with it.
   and (p.finished_at is null or p.state = 'dead' or p.finished_at >= q.created_at);
comment on view {{.api_schema}}.oq_jobs is
'Every job with its state, of the queues that the reader may observe.
run_at: when a scheduled job is due. lost_leases and failures: since the last redrive; a job that is
finished has no failures any more, see oq_attempts. error: why the job ended, or the last attempt''s.
finished_at: when it ended or died. What the producer said (payload, headers, priority, tags, group_key,
unique_key) may be gone before the outcome is.
job_id = x and job_id in (...) are look-ups, any other filter reads all jobs (the newest: oq_list); for the ids
of a table: cross join lateral oq_get(id).';
comment on column {{.api_schema}}.oq_jobs.state is
    'scheduled, waiting, ready, leased, completed, dead, cancelled or expired.';
comment on column {{.api_schema}}.oq_jobs.reason is
    'Why it is dead: retries_exhausted, no_retry or lost_lease.';
