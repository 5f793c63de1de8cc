-- Takes back leases that have expired, of one queue or of all: the job goes back to ready, or to dead when it has lost
-- max_lost_leases of them, or to finished when its time to live has passed. The loss is recorded.
-- All leases are read, which are few: an index by expiry would cost every lease and heartbeat more than it saves here. No lease
-- lasts less than a second, so it is enough to look once a second, and when the first of those seen expires; of many it is looked
-- less often, so that it never takes more than a tenth of the time; not by the clock alone, for it may have waited or stood
-- still. Where more has expired than one call takes back, the next of the session goes on from the first page that had any.
-- Calls: enter, place_jobs, settle. Locks: epoch shared (memory), leased rows (skip locked); leased is scanned.
create or replace function {{.schema}}.reap_expired(max_rows int, only_queue bigint)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_began timestamptz := clock_timestamp();
    v_now   timestamptz;
    v_next  timestamptz;
    v_seen  bigint;
    v_over  bigint;
    v_all   boolean := only_queue is null and not {{template "internal/one_snapshot.sql"}};
    v_noted text := current_setting('{{.schema}}.reap_from', true);
    v_from  tid := case when v_noted ~ '^[(][0-9]{1,10},0[)]$' and only_queue is null
        then v_noted::tid else tid '(0,0)' end;
    v_first tid;
    v_last  tid;
    v_gen   smallint;
    v_back  {{.schema}}.ready[];
    v_ended bigint[];
    v_count bigint := 0;
begin
    loop
        -- As many as these may be locked, or be extended in time for ever: what has expired behind them is taken back all the same.
        select coalesce(min(x.place) filter (where x.expires_at <= v_began),
                case when count(*) >= 10 * max_rows then max(x.place) end),
            case when count(*) < 10 * max_rows then max(x.place) filter (where x.expires_at <= v_began) else '(4294967295,0)' end,
            min(x.expires_at), count(*), count(*) filter (where x.expires_at <= v_began)
          into v_first, v_last, v_next, v_seen, v_over
          from (
            select l.expires_at, l.ctid as place
              from {{.schema}}.leased l
             where l.ctid >= v_from and l.expires_at <= v_began + interval '1 second'
               and (reap_expired.only_queue is null or l.lane >> 16 = reap_expired.only_queue)
             limit 10 * reap_expired.max_rows) x;
        exit when v_from = tid '(0,0)' or v_over >= max_rows;
        v_from := tid '(0,0)';
    end loop;
    -- Whoever keeps one snapshot does not see all, and one queue is not all. What expired may be locked, or this may roll back:
    -- then it is soon looked again.
    if v_all then
        perform setval('{{.schema}}.reap_after', ceil(date_part('epoch', greatest(
            case when v_next < v_began - interval '1 second' then v_began + interval '200 milliseconds'
                when v_next <= v_began or v_seen >= 10 * max_rows then v_began + interval '20 milliseconds'
                else least(v_next, v_began + interval '1 second') end,
            v_began + least(10 * (clock_timestamp() - v_began), interval '1 minute',
                pg_relation_size('{{.schema}}.leased'::regclass) / 8192 * interval '100 microseconds'))) * 1000)::bigint);
    end if;
    if v_noted <> '' and only_queue is null then
        perform set_config('{{.schema}}.reap_from', '', false);
    end if;
    if v_first is null then
        return 0;
    end if;
    perform {{.schema}}.enter();
    v_now := clock_timestamp();
    v_gen := pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint;
    with gone as (
        delete from {{.schema}}.leased l
         where l.ctid = any (array(
            select x.ctid
              from {{.schema}}.leased x
             where x.ctid >= v_first and x.ctid <= v_last and x.expires_at <= v_now
               and (reap_expired.only_queue is null or x.lane >> 16 = reap_expired.only_queue)
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
    if v_count = max_rows and v_all then
        perform set_config('{{.schema}}.reap_from', regexp_replace(v_first::text, ',.*', ',0)'), false),
            setval('{{.schema}}.reap_after', 0);
    end if;
    if v_back is not null then
        perform {{.schema}}.place_jobs(v_back, 'leased');
    end if;
    if v_ended is not null then
        perform {{.schema}}.settle(v_ended);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.reap_expired(int, bigint) is 'Takes back jobs whose lease expired.';
