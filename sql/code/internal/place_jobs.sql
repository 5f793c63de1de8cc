-- Where jobs of linked queues go that may run as far as they themselves are concerned: those whose time
-- has not come to scheduled, the others to ready, in the order of the array. Their lanes are open, the
-- caller has entered the epoch and has taken them out of where they stood; position is not read.
-- Calls: wake_sleepers. Index: job_N_pk.
create or replace function {{.schema}}.place_jobs(jobs {{.schema}}.ready[])
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now    timestamptz := clock_timestamp();
    v_queues bigint[];
begin
    with asked as materialized (
        select u.ord, u.lane, u.job_id, u.token, u.attempt, u.failed, u.lost, u.expires_at, j.run_at
          from unnest(place_jobs.jobs) with ordinality
            u(lane, position, job_id, token, attempt, failed, lost, expires_at, ord)
          left join lateral (
            select j.run_at from {{.schema}}.job j where j.job_id = u.job_id limit 1) j on true
    ), later as (
        insert into {{.schema}}.scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
        select a.run_at, a.job_id, a.lane, a.token, a.attempt, a.failed, a.lost, a.expires_at
          from asked a
         where a.run_at > v_now
    ), now_ready as (
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select a.lane, nextval('{{.schema}}.position'), a.job_id, a.token, a.attempt, a.failed, a.lost,
            a.expires_at
          from (select * from asked where run_at is null or run_at <= v_now order by ord) a
        returning lane
    )
    select array_agg(distinct n.lane >> 16) into v_queues from now_ready n;
    perform {{.schema}}.wake_sleepers(u.queue_id) from unnest(v_queues) u(queue_id);
end
$$;
comment on function {{.schema}}.place_jobs({{.schema}}.ready[]) is 'Puts jobs of linked queues where they may run.';
