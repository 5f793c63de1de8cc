-- Puts right what only a fault from outside can have broken: a dump taken in the middle of a
-- compaction, a table restored by hand. Nothing of it happens in normal running, as oq_audit shows.
-- The tables are locked against TRUNCATE before the snapshots are taken: rows that are being copied
-- back are no violation. Young jobs are left to the transactions that may be moving them.
-- Calls: enter, open_lane, place_jobs, group_slots. Locks: repair (advisory), access share on the tables, groups (try).
-- Index: all scanned.
create or replace function {{.api_schema}}.oq_repair(max_rows int default 1000)
returns table (repair text, done bigint)
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set jit = off
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_epoch bigint := pg_sequence_last_value('epoch_low'::regclass);
    v_lo   bigint;
    v_lane bigint;
    v_jobs ready[];
    v_group record;
    v_step bigint;
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        perform fail('max_rows', max_rows::text, 'between 1 and 100000');
    end if;
    if {{template "internal/one_snapshot.sql"}} then
        raise exception 'oq_repair needs a READ COMMITTED transaction' using errcode = '25001';
    end if;
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:repair'), 0);
    lock table job, ready, scheduled, waiting, leased, dead, finished, attempt, ttl, mark, group_slot in access share mode;
    perform enter();

    repair := 'job_without_place';
    select min(e.lo) into v_lo from epoch_open e where e.epoch >= v_epoch;
    with lone as materialized (
        select j.job_id, (j.queue_id << 16) + 32767 - j.priority as lane,
            case when j.expires_at > clock_timestamp() then j.expires_at end as expires_at,
            exists (select from dependency d where d.child_id = j.job_id) as held
          from job j
         where j.job_id <= v_lo
           and not exists (select from ready p where p.job_id = j.job_id)
           and not exists (select from scheduled p where p.job_id = j.job_id)
           and not exists (select from waiting p where p.job_id = j.job_id)
           and not exists (select from leased p where p.job_id = j.job_id)
           and not exists (select from dead p where p.job_id = j.job_id)
           and not exists (select from finished p where p.job_id = j.job_id)
         order by j.job_id
         limit oq_repair.max_rows
    ), timers as (
        insert into ttl (expires_at, job_id)
        select greatest(o.expires_at, clock_timestamp()), o.job_id from lone o where o.expires_at is not null
    ), back as materialized (
        select o.lane, o.job_id, o.expires_at, o.held, coalesce(a.token, 0) as token, a.attempt, a.failed, a.lost
          from lone o
         cross join lateral (
            select max(a.token) as token, count(*)::int as attempt,
                count(*) filter (where a.outcome = 'failed') as failed,
                count(*) filter (where a.outcome = 'lost') as lost
              from attempt a
             where a.job_id = o.job_id) a
    ), children as (
        -- Who has parents left waits for them; the todos look whether one of them is over.
        insert into waiting (job_id, lane, holder, position, token, attempt, failed, lost, expires_at)
        select b.job_id, b.lane, 'parent', b.job_id, b.token, b.attempt, b.failed, b.lost, b.expires_at
          from back b
         where b.held
    ), todos as (
        insert into todo (kind, id, queue_id, due_at)
        select 'parent', d.parent_id, min(b.lane >> 16), clock_timestamp()
          from back b
          join dependency d on d.child_id = b.job_id
         where b.held
         group by d.parent_id
    )
    select count(*), array_agg(row(b.lane, 0, b.job_id, b.token, b.attempt, b.failed, b.lost,
            b.expires_at)::ready order by b.job_id) filter (where not b.held)
      into done, v_jobs
      from back b;
    if v_jobs is not null then
        perform place_jobs(v_jobs);
    end if;
    return next;

    repair := 'lane_without_mark';
    done := 0;
    for v_lane in
        select distinct p.lane
          from (
            select r.lane from ready r
            union all select s.lane from scheduled s
            union all select w.lane from waiting w
            union all select l.lane from leased l) p
         where not exists (select from mark m where m.lane = p.lane)
         order by p.lane
    loop
        perform open_lane(v_lane);
        done := done + 1;
    end loop;
    return next;

    repair := 'ttl_timer';
    insert into ttl (expires_at, job_id)
    select greatest(p.expires_at, clock_timestamp()), p.job_id
      from (
        select r.job_id, r.expires_at from ready r
        union all select s.job_id, s.expires_at from scheduled s
        union all select w.job_id, w.expires_at from waiting w) p
     where p.expires_at is not null
       and not exists (select from ttl t where t.job_id = p.job_id)
     limit oq_repair.max_rows;
    get diagnostics done = row_count;
    return next;

    -- Free slots first, then further ones. A group that somebody has under his hands is left to the next call.
    repair := 'group_slot';
    done := 0;
    for v_group in
        select p.group_id, array_agg(p.job_id order by p.job_id) as job_ids
          from (
            select j.job_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 as group_id
              from (
                select r.job_id from ready r
                union all select l.job_id from leased l) p
              join job j on j.job_id = p.job_id
             where j.group_key is not null) p
          left join (
            select distinct on (s.group_id, s.slot) s.group_id, s.job_id
              from group_slot s
             order by s.group_id, s.slot, s.version desc) s on s.group_id = p.group_id and s.job_id = p.job_id
         where s.job_id is null
         group by p.group_id
         limit oq_repair.max_rows
    loop
        continue when not pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (v_group.group_id & 2147483647)::int);
        -- What is true now that nobody else can let jobs of it in.
        insert into group_slot (group_id, slot, job_id, low, admitted_at)
        select v_group.group_id, f.slot, u.job_id, coalesce(f.low, 0), clock_timestamp()
          from (
            select u.job_id, row_number() over (order by u.job_id) as nth
              from unnest(v_group.job_ids) u(job_id)
             where u.job_id in (select r.job_id from ready r union all select l.job_id from leased l)
               and u.job_id not in (select s.job_id from group_slots(v_group.group_id, 1) s)) u
          join (
            select n.slot, s.low, row_number() over (order by n.slot) as nth
              from generate_series(0, cardinality(v_group.job_ids)
                    + (select coalesce(max(s.slot), 0) from group_slots(v_group.group_id, 1) s)) n(slot)
              left join group_slots(v_group.group_id, 1) s on s.slot = n.slot
             where s.busy is not true) f on f.nth = u.nth;
        get diagnostics v_step = row_count;
        done := done + v_step;
    end loop;
    return next;
end
$$;
comment on function {{.api_schema}}.oq_repair(int) is
'Puts right what oq_audit found after a fault from outside.
job_without_place: up to max_rows jobs (1 to 100000) that stand nowhere become ready, or wait for their
parents, with the attempts that were recorded. A job that was being leased or completed at that moment
runs again. The youngest jobs are left, which an open transaction may be moving: those enqueued since the
last ticks, or since one that still is open began; call it again a little later.
lane_without_mark: priorities that no lease would look at. ttl_timer, group_slot: up to max_rows times to live
that would not end, and groups of which more could run than may. Errors: OQ001; 25001 in a transaction that is
not READ COMMITTED; 55P03 where another repair, or a truncation, has gone on for 2 s.';
