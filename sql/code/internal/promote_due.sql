-- Scheduled jobs that are due, from due_at = low to high (null: now), to the end of their lanes in the order of due_at.
-- only_queue: a lease that finds too little promotes for its own queue, so that its transaction
-- keeps no other queue's jobs from being seen.
-- Calls: enter. Locks: epoch shared (memory), scheduled rows (skip locked). Index: scheduled_due_idx.
create or replace function {{.schema}}.promote_due(
    low timestamptz, high timestamptz, max_rows int, only_queue bigint)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz;
    v_high  timestamptz;
    v_count bigint;
begin
    perform {{.schema}}.enter();
    v_now := clock_timestamp();
    v_high := least(v_now, promote_due.high);
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
    )
    insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
    select d.lane, nextval('{{.schema}}.position'), d.job_id, d.token, d.attempt, d.failed, d.lost,
        d.expires_at
      from (select * from due order by due_at, job_id) d;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function {{.schema}}.promote_due(timestamptz, timestamptz, int, bigint) is 'Moves scheduled jobs that are due to ready.';
