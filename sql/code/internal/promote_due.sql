-- Scheduled jobs that are due, from due_at = low to high (null: now), to the end of their lanes in the order of due_at.
-- only_queue: a lease that finds too little promotes for its own queue, so that its transaction
-- keeps no other queue's jobs from being seen.
-- Calls: enter, place_jobs. Locks: epoch shared (memory), scheduled rows (skip locked). Index: scheduled_due_idx, queue_linked_idx.
create or replace function {{.schema}}.promote_due(
    low timestamptz, high timestamptz, max_rows int, only_queue bigint)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz;
    v_high  timestamptz;
    v_linked bigint[];
    v_jobs  {{.schema}}.ready[];
    v_count bigint;
begin
    perform {{.schema}}.enter();
    v_now := clock_timestamp();
    v_high := least(v_now, promote_due.high);
    v_linked := array(select q.queue_id from {{.schema}}.queue q where q.linked);
    with due as (
        delete from {{.schema}}.scheduled s
         where s.ctid = any (array(
            select x.ctid
              from {{.schema}}.scheduled x
             where x.due_at >= promote_due.low and x.due_at <= v_high
               and (promote_due.only_queue is null or x.lane >> 16 = promote_due.only_queue)
             order by x.due_at
             limit promote_due.max_rows
               for update skip locked))
        returning s.*
    ), plain as (
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select d.lane, nextval('{{.schema}}.position'), d.job_id, d.token, d.attempt, d.failed, d.lost,
            d.expires_at
          from (select * from due where lane >> 16 <> all (v_linked) order by due_at, job_id) d
    )
    select count(*), array_agg(row(d.lane, 0, d.job_id, d.token, d.attempt, d.failed, d.lost,
            d.expires_at)::{{.schema}}.ready order by d.due_at, d.job_id)
            filter (where d.lane >> 16 = any (v_linked))
      into v_count, v_jobs
      from due d;
    if v_jobs is not null then
        perform {{.schema}}.place_jobs(v_jobs, 'scheduled');
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.promote_due(timestamptz, timestamptz, int, bigint) is 'Moves scheduled jobs that are due to ready.';
