-- Leases that expired, from expires_at = low to high (null: now): the job goes back to ready, or to dead when it has lost
-- max_lost_leases of them, or to finished when its time to live has passed. The loss is recorded.
-- Calls: enter, place_jobs, settle. Locks: epoch shared (memory), leased rows (skip locked). Index: leased_expires_idx.
create or replace function {{.schema}}.reap_expired(
    low timestamptz, high timestamptz, max_rows int, only_queue bigint)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz;
    v_high  timestamptz;
    v_gen   smallint;
    v_back  {{.schema}}.ready[];
    v_ended bigint[];
    v_count bigint;
begin
    perform {{.schema}}.enter();
    v_now := clock_timestamp();
    v_high := least(v_now, reap_expired.high);
    v_gen := pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint;
    with gone as (
        delete from {{.schema}}.leased l
         where l.ctid = any (array(
            select x.ctid
              from {{.schema}}.leased x
             where x.expires_at >= reap_expired.low and x.expires_at <= v_high
               and (reap_expired.only_queue is null or x.lane >> 16 = reap_expired.only_queue)
             order by x.expires_at
             limit reap_expired.max_rows
               for update skip locked))
        returning l.*
    ), judged as materialized (
        select g.*,
            case when g.lost + 1 >= coalesce(q.max_lost_leases, 3) then 'dead'
                when g.job_expires_at <= v_now then 'expired'
                else 'ready' end as place
          from gone g
          left join lateral (
            select q.max_lost_leases from {{.schema}}.queue q
             where q.queue_id = g.lane >> 16
             order by q.version desc, q.row_id
             limit 1) q on true
    ), recorded as (
        insert into {{.schema}}.attempt (gen, job_id, attempt, token, worker_id, leased_at, ended_at,
            outcome, error)
        select v_gen, j.job_id, j.attempt, j.token, j.worker_id, j.leased_at, v_now, 'lost',
            'lease expired at ' || j.expires_at
          from judged j
    ), buried as (
        insert into {{.schema}}.dead (job_id, queue_id, died_at, token, attempt, failed, lost, reason,
            worker_id, error)
        select j.job_id, j.lane >> 16, v_now, j.token, j.attempt, j.failed, least(j.lost + 1, 32767), 'lost_lease',
            j.worker_id, 'lease expired at ' || j.expires_at
          from judged j
         where j.place = 'dead'
    ), expired as (
        insert into {{.schema}}.finished (gen, job_id, queue_id, attempt, lost, finished_at, outcome,
            kept)
        select v_gen, j.job_id, j.lane >> 16, j.attempt, least(j.lost + 1, 32767), v_now, 'expired', j.kept
          from judged j
         where j.place = 'expired'
    ), timers as (
        insert into {{.schema}}.ttl (expires_at, job_id)
        select j.job_expires_at, j.job_id
          from judged j
         where j.place = 'ready' and j.job_expires_at is not null
    ), returned as (
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select j.lane, nextval('{{.schema}}.position'), j.job_id, j.token, j.attempt, j.failed,
            least(j.lost + 1, 32767), j.job_expires_at
          from (select * from judged where place = 'ready' and not linked order by job_id) j
    )
    select count(*), array_agg(row(j.lane, 0, j.job_id, j.token, j.attempt, j.failed, least(j.lost + 1, 32767),
            j.job_expires_at)::{{.schema}}.ready order by j.job_id) filter (where j.linked and j.place = 'ready'),
        array_agg(j.job_id order by j.job_id) filter (where j.linked and j.place <> 'ready')
      into v_count, v_back, v_ended
      from judged j;
    if v_back is not null then
        perform {{.schema}}.place_jobs(v_back, 'leased');
    end if;
    if v_ended is not null then
        perform {{.schema}}.settle(v_ended);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.reap_expired(timestamptz, timestamptz, int, bigint) is 'Takes back jobs whose lease expired.';
