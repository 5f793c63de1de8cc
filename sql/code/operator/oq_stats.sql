-- Numbers of each queue. The counts are counted: 1M ready and 1M finished jobs take 0.4 s of one
-- core; the rates read the end of two tables, the age the front of each lane. Hash joins, since a
-- nested loop would count again for each queue where there are more than the planner thought.
-- Calls: check_queue_name, queue_shown, may, lanes, recent. Index: ready_pk, the rest is scanned.
create or replace function {{.api_schema}}.oq_stats(queue_name text default null)
returns setof {{.schema}}.queue_stats
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_only  bigint;
    v_first bigint := 0;
    v_last  bigint := 9223372036854775807;
    v_now   timestamptz := clock_timestamp();
begin
    if oq_stats.queue_name is not null then
        perform check_queue_name(oq_stats.queue_name);
        select q.queue_id into v_only from queue q where q.queue_name = oq_stats.queue_name collate "C" limit 1;
        if v_only is null then
            return;
        end if;
        v_first := v_only << 16;
        v_last := v_first + 65535;
    end if;
    return query
    with q as materialized (
        select q.queue_id, q.queue_name, q.paused, q.created_at
          from queue_shown q
         where (v_only is null or q.queue_id = v_only)
           and (not q.restricted or may(q.queue_id, 'observe'))
    ), r as materialized (
        select x.lane >> 16 as queue_id, count(*) as jobs from ready x
         where x.lane between v_first and v_last group by 1
    ), s as materialized (
        select x.lane >> 16 as queue_id, count(*) as jobs from scheduled x
         where x.lane between v_first and v_last group by 1
    ), w as materialized (
        select x.lane >> 16 as queue_id, count(*) as jobs from waiting x
         where x.lane between v_first and v_last group by 1
    ), l as materialized (
        select x.lane >> 16 as queue_id, count(*) as jobs from leased x
         where x.lane between v_first and v_last group by 1
    ), d as materialized (
        select x.queue_id, count(*) as jobs from dead x
         where v_only is null or x.queue_id = v_only group by 1
    ), c as materialized (
        select x.queue_id, count(*) as jobs
          from finished x
          join q on q.queue_id = x.queue_id
         where x.outcome = 'completed' and x.kept and x.finished_at >= q.created_at
         group by 1
    ), o as materialized (
        -- Ready since it was enqueued, due, or given back, whichever was last.
        select k.lane >> 16 as queue_id,
            min(greatest(j.created_at, j.run_at, (
                select a.ended_at from attempt a where a.job_id = j.job_id and f.attempt > 0
                 order by a.attempt desc limit 1))) as since
          from lanes(v_first, v_last) k
         cross join lateral (
            select x.job_id, x.attempt from ready x
             where x.lane = k.lane and x.position >= k.low
             order by x.position limit 1) f
         cross join lateral (
            select j.job_id, j.created_at, j.run_at from job j where j.job_id = f.job_id limit 1) j
         group by 1
    ), e as (
        select x.queue_id, sum(x.per_second) as rate from recent('job') x group by 1
    ), a as (
        select x.queue_id, sum(x.per_second) as rate from recent('finished') x group by 1
    )
    select q.queue_name, q.paused, coalesce(r.jobs, 0), coalesce(s.jobs, 0), coalesce(w.jobs, 0),
        coalesce(l.jobs, 0), coalesce(d.jobs, 0), coalesce(c.jobs, 0),
        round(greatest(coalesce(extract(epoch from v_now - o.since), 0), 0), 3),
        round(coalesce(e.rate, 0), 1), round(coalesce(a.rate, 0), 1)
      from q
      left join r using (queue_id)
      left join s using (queue_id)
      left join w using (queue_id)
      left join l using (queue_id)
      left join d using (queue_id)
      left join c using (queue_id)
      left join o using (queue_id)
      left join e using (queue_id)
      left join a using (queue_id)
     order by q.queue_name;
end
$$;
comment on function {{.api_schema}}.oq_stats(text) is
'Counts, age and rates of one queue, or of all.
Of restricted queues those that the caller may observe. completed: those still kept.
oldest_ready_seconds: how long ago the first ready job was enqueued, due or last attempted, 0 where none is
ready. The rates are of the last ten seconds. It counts every row: ask every few seconds, not more often. An unknown queue
gives no rows. Errors: OQ001.';
