-- Jobs whose time to live has passed, from expires_at = low to high (null: now). A job that somebody holds keeps its
-- lease; one whose row is locked is looked at again, in a tenth of a second at first, then after a quarter of the time that
-- it is overdue: the timers of a thousand jobs that somebody holds for an hour may not stand before all others, nor be
-- written ten times a second.
-- Calls: settle, enter. Locks: ttl, scheduled, waiting and ready rows (skip locked).
-- Index: ttl_expires_idx, scheduled_pk, waiting_pk, ready_pk, queue_linked_idx.
create or replace function {{.schema}}.expire_due(low timestamptz, high timestamptz, max_rows int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_high  timestamptz := least(v_now, expire_due.high);
    v_gen   smallint := pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint;
    v_timers bigint[];
    v_ids   bigint[];
    v_linked bigint[];
    v_ended bigint[];
    v_count bigint;
    v_gone  bigint;
begin
    select array_agg(t.ttl_id), array_agg(distinct t.job_id) into v_timers, v_ids
      from (
        select t.ttl_id, t.job_id
          from {{.schema}}.ttl t
         where t.expires_at >= expire_due.low and t.expires_at <= v_high
         order by t.expires_at
         limit expire_due.max_rows
           for update skip locked) t;
    if v_ids is null then
        return 0;
    end if;
    v_linked := array(select q.queue_id from {{.schema}}.queue q where q.linked);
    with held as materialized (
        select j.job_id, j.queue_id, (j.queue_id << 16) + 32767 - j.priority as lane
          from unnest(v_ids) i(job_id)
         cross join lateral (
            select j.job_id, j.queue_id, j.priority from {{.schema}}.job j
             where j.job_id = i.job_id
             limit 1) j
    ), from_scheduled as (
        delete from {{.schema}}.scheduled s
         where s.ctid = any (array(
            select x.ctid from {{.schema}}.scheduled x
             where x.job_id = any (v_ids) and x.expires_at <= v_now
             order by x.job_id
               for update skip locked))
        returning s.job_id, s.lane, s.attempt, s.lost
    ), from_waiting as (
        delete from {{.schema}}.waiting w
         where w.ctid = any (array(
            select x.ctid from {{.schema}}.waiting x
             where x.job_id = any (v_ids) and x.expires_at <= v_now
             order by x.job_id
               for update skip locked))
        returning w.job_id, w.lane, w.attempt, w.lost
    ), from_ready as (
        delete from {{.schema}}.ready r
         where r.ctid = any (array(
            select x.ctid
              from held h
             cross join lateral (
                select f.ctid from {{.schema}}.ready f
                 where f.lane = h.lane and f.position = h.job_id and f.expires_at <= v_now
                   for update skip locked) x
            union all
            select x.ctid
              from held h
             cross join lateral (
                select f.ctid from {{.schema}}.ready f
                 where f.job_id = h.job_id and f.position <> f.job_id and f.expires_at <= v_now
                   for update skip locked) x))
        returning r.job_id, r.lane, coalesce(r.attempt, 0), coalesce(r.lost, 0)
    ), ended as (
        select * from from_scheduled union all select * from from_waiting union all select * from from_ready
    ), finished as (
        insert into {{.schema}}.finished (gen, job_id, queue_id, attempt, lost, finished_at, outcome,
            kept)
        select v_gen, e.job_id, e.lane >> 16, e.attempt, e.lost, v_now, 'expired', q.keep <> 'none'
          from ended e
         cross join lateral (
            select q.keep from {{.schema}}.queue q
             where q.queue_id = e.lane >> 16
             order by q.version desc, q.row_id
             limit 1) q
    )
    select count(*), array_agg(e.job_id order by e.job_id) filter (where e.lane >> 16 = any (v_linked))
      into v_count, v_ended
      from ended e;
    if v_ended is not null then
        perform {{.schema}}.settle(v_ended);
    end if;

    -- The timers of what no longer waits for a lease.
    delete from {{.schema}}.ttl t
     where t.ttl_id = any (v_timers)
       and not exists (select from {{.schema}}.scheduled s where s.job_id = t.job_id)
       and not exists (select from {{.schema}}.waiting w where w.job_id = t.job_id)
       and not exists (
        select from {{.schema}}.job j
          join {{.schema}}.ready r
            on r.lane = (j.queue_id << 16) + 32767 - j.priority and r.position = j.job_id
         where j.job_id = t.job_id)
       and not exists (
        select from {{.schema}}.ready r where r.job_id = t.job_id and r.position <> r.job_id);
    get diagnostics v_gone = row_count;
    if v_gone < cardinality(v_timers) then
        perform {{.schema}}.enter();
        v_now := clock_timestamp();
        update {{.schema}}.ttl t
           set expires_at = v_now + least(interval '10 s', greatest(interval '100 ms', (
            select (v_now - j.expires_at) / 4 from {{.schema}}.job j where j.job_id = t.job_id limit 1)))
         where t.ttl_id = any (v_timers);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.expire_due(timestamptz, timestamptz, int) is 'Ends jobs whose time to live has passed.';
