-- The laws, one statement and so one snapshot each: true at any moment, under any load. What oq_compact and
-- oq_rotate empty is locked against TRUNCATE first, since rows that are being copied back are invisible to an
-- older snapshot. 4 s of one core for 1M ready and 1M finished jobs. Ready has no index of job ids,
-- so that a nested loop would scan it for every job: hash joins.
-- Calls: queue_now, may, audit_sample. Locks: access share on these tables. Index: all scanned.
create or replace function {{.api_schema}}.oq_audit()
returns table (law text, violations bigint, sample text)
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_custom_plan
set enable_nestloop = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_epoch  bigint := pg_sequence_last_value('epoch_low'::regclass);
    -- The queues of which the caller is not shown ids; null where there is none.
    v_hidden bigint[] := (select array_agg(q.queue_id) from queue_now q where q.restricted and not may(q.queue_id, 'observe'));
begin
    lock table job, ready, scheduled, waiting, leased, finished, attempt, ttl, mark, epoch_open, passed, group_slot,
        todo in access share mode;

    return query
    select 'one_place'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select p.job_id
          from (
            select r.job_id from ready r
            union all select s.job_id from scheduled s
            union all select w.job_id from waiting w
            union all select l.job_id from leased l
            union all select d.job_id from dead d
            union all select f.job_id from finished f) p
         group by p.job_id
        having count(*) > 1) v;

    -- A finished job's row may be gone with its generation.
    return query
    select 'place_without_job'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select p.job_id
          from (
            select r.job_id from ready r
            union all select s.job_id from scheduled s
            union all select w.job_id from waiting w
            union all select l.job_id from leased l
            union all select d.job_id from dead d) p
         where not exists (select from job j where j.job_id = p.job_id)) v;

    return query
    select 'job_without_place'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select j.job_id
          from job j
         where not exists (select from ready p where p.job_id = j.job_id)
           and not exists (select from scheduled p where p.job_id = j.job_id)
           and not exists (select from waiting p where p.job_id = j.job_id)
           and not exists (select from leased p where p.job_id = j.job_id)
           and not exists (select from dead p where p.job_id = j.job_id)
           and not exists (select from finished p where p.job_id = j.job_id)) v;

    return query
    select 'job_twice'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (select j.job_id from job j group by j.job_id having count(*) > 1) v;

    return query
    select 'lane_of_job'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select j.job_id
          from (
            select r.job_id, r.lane from ready r
            union all select s.job_id, s.lane from scheduled s
            union all select w.job_id, w.lane from waiting w
            union all select l.job_id, l.lane from leased l
            union all select d.job_id, null from dead d) p
          join job j on j.job_id = p.job_id
         where p.lane <> (j.queue_id << 16) + 32767 - j.priority) v;

    return query
    select 'lane_without_mark'::text, count(*),
        array_to_string((array_agg(v.lane order by v.lane)
            filter (where v_hidden is null or v.lane >> 16 <> all (v_hidden)))[1:5], ', ')
      from (
        select distinct p.lane
          from (
            select r.lane from ready r
            union all select s.lane from scheduled s
            union all select w.lane from waiting w
            union all select l.lane from leased l) p
         where not exists (select from mark m where m.lane = p.lane)) v;

    return query
    select 'queue_without_row'::text, count(*),
        array_to_string((array_agg(v.queue_id order by v.queue_id))[1:5], ', ')
      from (
        select p.queue_id
          from (
            select j.queue_id from job j
            union select f.queue_id from finished f
            union select d.queue_id from dead d
            union select r.lane >> 16 from ready r
            union select s.lane >> 16 from scheduled s
            union select w.lane >> 16 from waiting w
            union select l.lane >> 16 from leased l) p
         where not exists (select from queue q where q.queue_id = p.queue_id)) v;

    -- What stands below its lane's mark is noted, or belongs to an epoch that is not resolved.
    return query
    select 'below_mark'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select r.job_id
          from ready r
          join (select m.lane, max(m.low) as low from mark m where m.lane >= 0 group by m.lane) k
            on k.lane = r.lane
         where r.position < k.low
           and r.position <= coalesce((
            select min(e.lo) from epoch_open e where e.epoch >= v_epoch), 9223372036854775807)
           and not exists (select from passed p where p.lane = r.lane and p.position = r.position)
        union all
        select t.job_id
          from (
            select -1 as lane, s.job_id, s.due_at as at from scheduled s
            union all select -2, x.job_id, x.expires_at from ttl x) t
          join (
            select m.lane, timestamptz 'epoch' + max(m.low) * interval '1 microsecond' as low
              from mark m
             where m.lane < 0
             group by m.lane) k on k.lane = t.lane
          cross join (
            select timestamptz 'epoch' + min(e.lo_scheduled) * interval '1 microsecond' as due,
                timestamptz 'epoch' + min(e.lo_ttl) * interval '1 microsecond' as ttl
              from epoch_open e
             where e.epoch >= v_epoch) e
         where t.at < k.low
           and not exists (select from passed p where p.lane = t.lane and p.position = t.job_id)
           and t.at < coalesce(
            case t.lane when -1 then e.due else e.ttl end, 'infinity')) v;

    -- A job's tokens rise with its attempts, and the lease has the largest.
    return query
    select 'token_rises'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select x.job_id
          from (
            select y.job_id, y.token,
                lag(y.token) over (partition by y.job_id order by y.attempt, y.place) as before
              from (
                select a.job_id, a.attempt, a.token, 0 as place from attempt a
                union all select l.job_id, l.attempt, l.token, 1 from leased l
                union all select f.job_id, f.attempt, f.token, 1 from finished f
                 where f.token > 0) y) x
         where x.token <= x.before
        union
        select p.job_id
          from (
            select r.job_id, r.token from ready r where r.attempt > 0
            union all select s.job_id, s.token from scheduled s where s.attempt > 0
            union all select w.job_id, w.token from waiting w where w.attempt > 0
            union all select d.job_id, d.token from dead d) p
          join attempt a on a.job_id = p.job_id
         where a.token > p.token) v;

    return query
    select 'attempts_recorded'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select p.job_id
          from (
            select r.job_id, coalesce(r.attempt, 0) as attempt from ready r
            union all select s.job_id, s.attempt from scheduled s
            union all select w.job_id, w.attempt from waiting w
            union all select l.job_id, l.attempt - 1 from leased l
            union all select d.job_id, d.attempt from dead d
            union all
            select f.job_id, f.attempt - case when f.leased_at is null then 0 else 1 end
              from finished f) p
          left join (select a.job_id, count(*) as attempts from attempt a group by a.job_id) a
            on a.job_id = p.job_id
         where p.attempt <> coalesce(a.attempts, 0)) v;

    -- A lease looks at the time to live in the narrow row, and oq_expire finds it by its timer.
    return query
    select 'ttl_timer'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select p.job_id
          from (
            select r.job_id, r.expires_at from ready r
            union all select s.job_id, s.expires_at from scheduled s
            union all select w.job_id, w.expires_at from waiting w) p
         where p.expires_at is not null
           and not exists (select from ttl t where t.job_id = p.job_id)) v;

    return query
    select 'schedule_below_mark'::text, count(*),
        array_to_string((array_agg(s.schedule_name order by s.schedule_name)
            filter (where v_hidden is null or not exists (
                select from queue q where q.queue_name = s.queue_name and q.queue_id = any (v_hidden))))[1:5], ', ')
      from schedule s
     where s.due_at < (
        select timestamptz 'epoch' + max(m.low) * interval '1 microsecond' from mark m where m.lane = -10);
    -- One unfinished job a key: the one that the key names. A row has one job, so there are never two.
    return query
    select 'unique_key'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select j.job_id
          from (
            select r.job_id from ready r
            union all select s.job_id from scheduled s
            union all select w.job_id from waiting w
            union all select l.job_id from leased l) p
          join job j on j.job_id = p.job_id and j.unique_key is not null
          left join unique_key k on k.job_id = j.job_id and k.queue_id = j.queue_id
           and k.key_hash = sha256(convert_to(j.unique_key, 'UTF8'))
         where k.job_id is null) v;
    -- One job a slot: what may run of a group has the slot that it took last.
    return query
    select 'group_slot'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select p.job_id
          from (
            select r.job_id from ready r
            union all select l.job_id from leased l) p
          join job j on j.job_id = p.job_id
          left join (
            select distinct on (s.group_id, s.slot) s.group_id, s.job_id
              from group_slot s
             order by s.group_id, s.slot, s.version desc) s
            on s.job_id = p.job_id
           and s.group_id = hashtextextended(j.group_key, j.queue_id) & 9223372036854775807
         where j.group_key is not null and s.job_id is null) v;

    -- Nobody is forgotten: a line whose group is free, or a row below its low, is on the list of things to do.
    return query
    select 'group_stuck'::text, count(*),
        audit_sample(array_agg(v.job_id order by v.job_id), v_hidden)
      from (
        select w.job_id
          from (
            select distinct on (w.group_id) w.group_id, w.job_id, w.lane, w.position
              from waiting w
             where w.holder = 'group'
             order by w.group_id, w.position) w
          left join (
            select s.group_id, max(s.low) as low, bool_or(p.job_id is not null) as busy
              from (
                select distinct on (s.group_id, s.slot) s.group_id, s.job_id, s.low
                  from group_slot s
                 order by s.group_id, s.slot, s.version desc) s
              left join (
                select r.job_id from ready r where r.position <> r.job_id
                union all select l.job_id from leased l
                union all select c.job_id from scheduled c) p on p.job_id = s.job_id
             group by s.group_id) s on s.group_id = w.group_id
          left join (select distinct t.id from todo t where t.kind = 'group') t on t.id = w.group_id
         where t.id is null and (s.busy is not true or s.low > w.position)) v;

    -- Who waits for a parent waits for somebody, or is on the list of things to do; so is who has ended.
    return query
    select 'child_stuck'::text, count(*),
        audit_sample(array_agg(v.child_id order by v.child_id), v_hidden)
      from (
        select c.child_id
          from (
            select w.job_id as child_id from waiting w where w.holder = 'parent'
            union all select -b.batch_id from batch b) c
          left join (select distinct d.child_id from dependency d) d on d.child_id = c.child_id
          left join (select distinct t.id from todo t where t.kind = 'child') t on t.id = c.child_id
         where d.child_id is null and t.id is null) v;

    return query
    select 'parent_over'::text, count(*),
        audit_sample(array_agg(v.parent_id order by v.parent_id), v_hidden)
      from (
        select distinct d.parent_id
          from dependency d
          join finished f on f.job_id = d.parent_id and f.linked
          join (
            select w.job_id as child_id from waiting w where w.holder = 'parent'
            union all select -b.batch_id from batch b) c on c.child_id = d.child_id
          left join (select distinct t.id from todo t where t.kind = 'parent') t on t.id = d.parent_id
         where t.id is null) v;
end
$$;
comment on function {{.api_schema}}.oq_audit() is
'The conservation laws: how often each is broken, which is 0.
sample: a few of the ids, without what oq_get would not show the caller. one_place: a job stands in one state. place_without_job,
job_without_place, job_twice, lane_of_job, queue_without_row: the tables agree. lane_without_mark,
below_mark: leases see every ready job. token_rises: no lease has an older token than one before.
attempts_recorded: every attempt has its record. ttl_timer: what can expire will. schedule_below_mark:
every schedule is seen when it is due. unique_key: a job that is not over has the key that it shows.
child_stuck, parent_over: who waits for a parent waits for one that is open. group_slot: what may run
of a group has a slot of it. group_stuck: no group that is free is forgotten. Reads everything; changes nothing. See oq_repair.';
