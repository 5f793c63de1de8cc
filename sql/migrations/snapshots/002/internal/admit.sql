-- Lets the first in line of each group into ready, as far as slots and limits allow: of all that run one at a
-- time by one statement. Under the lock of the group, held until the commit is visible: what was enqueued or
-- ended meanwhile is seen by whoever has it next. Who does not get the lock, or holds most already, leaves a
-- todo: as whoever can't see what was committed since its snapshot. Nobody waits. ended: of each group, a job
-- of which this transaction knows that it is over.
-- Calls: enter, admit_limited, wake_sleepers.
-- Locks: groups and their lines (try), waiting and ready rows (skip locked).
-- Index: waiting_group_idx, waiting_pk, group_slot_idx, leased_pk, ready_returned_idx, scheduled_pk, limit_rule_idx.
create or replace function {{.schema}}.admit(group_ids bigint[], queue_ids bigint[], most int default 100,
    ended bigint[] default null)
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now     timestamptz := clock_timestamp();
    v_known   text := current_setting('{{.schema}}.groups', true);
    v_held    bigint[] := array[]::bigint[];
    v_groups  bigint[];
    v_queues  bigint[];
    v_lined   boolean[];
    v_ended   bigint[];
    v_refused bigint[];
    v_others  bigint[];
    v_epoch   bigint;
    v_top     bigint;
    v_limited bigint[];
    v_late    bigint[];
    v_empty   bigint[];
    v_woken   bigint[];
    v_count   int;
    v_one     int;
begin
    if {{template "internal/one_snapshot.sql"}} then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select distinct on (u.group_id) 'group', u.group_id, u.queue_id, v_now
          from unnest(admit.group_ids, admit.queue_ids) u(group_id, queue_id);
        return 0;
    end if;
    if v_known ~ '^[{][0-9,]+[}]$' then
        v_held := v_known::bigint[];
    end if;
    -- Who is committing what it put in line holds the lock of the line shared. Without it, rows of others could
    -- come to stand below the low.
    select array_agg(g.group_id) filter (where g.got), array_agg(g.queue_id) filter (where g.got),
        array_agg(g.lined) filter (where g.got), array_agg(g.ended) filter (where g.got),
        array_agg(g.group_id) filter (where not g.got),
        array_agg(g.queue_id) filter (where not g.got)
      into v_groups, v_queues, v_lined, v_ended, v_refused, v_others
      from (
        select g.group_id, g.queue_id, g.ended, g.got, case when g.got then pg_try_advisory_xact_lock(
                hashtext('{{.schema}}:line'), (g.group_id & 2147483647)::int) end as lined
          from (
            select g.group_id, g.queue_id, g.ended, case when g.nth <= admit.most - cardinality(v_held) or g.group_id = any (v_held)
                then pg_try_advisory_xact_lock(
                    hashtext('{{.schema}}:group'), (g.group_id & 2147483647)::int)
                else false end as got
              from (
                select g.group_id, min(g.queue_id) as queue_id, max(g.ended) as ended,
                    row_number() over (order by g.group_id) as nth
                  from unnest(admit.group_ids, admit.queue_ids, admit.ended) g(group_id, queue_id, ended)
                 group by g.group_id) g
            offset 0) g
        offset 0) g;
    if v_refused is not null then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'group', u.group_id, u.queue_id, v_now from unnest(v_refused, v_others) u(group_id, queue_id);
        if v_groups is null then
            return 0;
        end if;
    end if;
    v_known := case when {{.schema}}.enter() then set_config('{{.schema}}.groups', array(
        select g from unnest(v_held || v_groups) g group by g)::text, true) end;
    if false = any (v_lined) then
        -- What is invisible is above the lo of the oldest epoch in any case.
        v_epoch := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
        v_top := (
            select coalesce(min(e.lo) + 1, 0) from {{.schema}}.epoch_open e where e.epoch >= v_epoch);
    end if;

    -- The first in line may be held by somebody who changes or cancels it: nothing overtakes it, and the tick
    -- tries again.
    with rules as materialized (
        select exists (
                select from (select q from unnest(v_queues) q group by q) q(queue_id)
                 where exists (select from {{.schema}}.limit_rule r where r.queue_id = q.queue_id and r.group_id > 0)
                    or exists (select from {{.schema}}.throttled t where t.queue_id = q.queue_id and t.group_id > 0)) as has
    ), asked as materialized (
        select u.group_id, u.queue_id, u.lined, u.ended, (select r.has from rules r) or exists (
                select from {{.schema}}.group_slot s where s.group_id = u.group_id and s.slot > 0) as limited
          from unnest(v_groups, v_queues, v_lined, v_ended) u(group_id, queue_id, lined, ended)
    ), heads as materialized (
        select a.group_id, a.queue_id, s.slot_row, coalesce(s.low, 0) as low,
            case when a.lined then 9223372036854775807 else v_top end as top, w.job_id, w.position, w.row
          from asked a
          left join lateral (
            select s.ctid as slot_row, s.job_id, s.low from {{.schema}}.group_slot s
             where s.group_id = a.group_id and s.slot = 0
             order by s.version desc
             limit 1) s on true
         cross join lateral (
            select w.ctid as row, w.job_id, w.position from {{.schema}}.waiting w
             where w.group_id = a.group_id and w.position >= coalesce(s.low, 0)
             order by w.position
             limit 1) w
         where not a.limited
           and case when s.job_id = a.ended then false else coalesce(
                -- Not by exists, which may become a hash of a whole table.
                (select true from {{.schema}}.leased l where l.job_id = s.job_id limit 1),
                (select true from {{.schema}}.ready r
                  where r.job_id = s.job_id and r.position <> r.job_id limit 1),
                (select true from {{.schema}}.scheduled d where d.job_id = s.job_id limit 1), false) end is false
    ), gone as (
        delete from {{.schema}}.waiting w
         where w.ctid = any (array(
            select x.row
              from heads h
             cross join lateral (
                select w.ctid as row from {{.schema}}.waiting w where w.ctid = h.row for update skip locked) x))
        returning w.*
    ), moved as (
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select g.lane, nextval('{{.schema}}.position'), g.job_id, g.token, g.attempt, g.failed, g.lost,
            g.expires_at
          from (select * from gone order by position) g
    ), taken as materialized (
        -- By case, lest it become a join.
        select h.* from heads h where case when h.job_id in (select g.job_id from gone g) then true end
    ), replaced as (
        delete from {{.schema}}.group_slot s
         where s.ctid = any (array(select t.slot_row from taken t))
    ), noted as (
        insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
        select t.group_id, 0, t.job_id, greatest(t.low, least(t.position + 1, t.top)), v_now from taken t
    )
    select (select array_agg(a.group_id) from asked a where a.limited), array_agg(distinct t.queue_id), count(*),
        (select array_agg(h.group_id) from heads h where h.job_id not in (select t.job_id from taken t)),
        (select array_agg(a.group_id) from asked a
          where not a.limited and not a.lined and a.group_id not in (select h.group_id from heads h))
      into v_limited, v_woken, v_count, v_late, v_empty
      from taken t;
    if v_late is not null then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'group', u.group_id, u.queue_id, v_now
          from unnest(v_groups, v_queues) u(group_id, queue_id)
         where u.group_id = any (v_late);
    end if;
    -- Who has the lock of a line in which nobody is seen may have seen somebody there, and so left the look to whoever sees
    -- that one end, which may have been this call. A prepared transaction has it for hours, so not at each tick.
    if v_empty is not null then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'group', u.group_id, u.queue_id, v_now + interval '500 ms'
          from unnest(v_groups, v_queues) u(group_id, queue_id)
         where u.group_id = any (v_empty);
    end if;
    if v_limited is not null then
        for i in 1..cardinality(v_groups) loop
            if v_groups[i] = any (v_limited) then
                v_one := {{.schema}}.admit_limited(v_groups[i], v_queues[i], case when not v_lined[i] then v_top end);
                v_count := v_count + v_one;
                if v_one > 0 and v_queues[i] <> all (coalesce(v_woken, '{}')) then
                    v_woken := v_woken || v_queues[i];
                end if;
            end if;
        end loop;
    end if;
    if v_woken is not null then
        perform {{.schema}}.wake_sleepers(u.queue_id) from unnest(v_woken) u(queue_id);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.admit(bigint[], bigint[], int, bigint[]) is 'Lets the first in line of groups into ready.';
