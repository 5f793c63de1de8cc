-- Lets the first in line of one group into ready, as far as its limits allow: for groups with a rule, a
-- throttle or several slots. The caller holds the group's lock. top: its low stays at or below it; null, no bound.
-- Returns how many were let in.
-- Calls: limit_of, group_slots, bind_group, rate_slots, slot_due, use_slots.
-- Locks: waiting and ready rows (skip locked). Index: waiting_group_idx, waiting_pk, group_slot_idx, todo_id_idx, leased_pk.
create or replace function {{.schema}}.admit_limited(group_id bigint, queue_id bigint, top bigint)
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now     timestamptz := clock_timestamp();
    v_group   bigint := admit_limited.group_id;
    v_queue   bigint := admit_limited.queue_id;
    v_limit   record;
    v_low     bigint;
    v_busy    int[];
    v_free    int[];
    v_rate    int[];
    v_due     timestamptz;
    v_taken   bigint[];
    v_tokens  bigint[];
    v_heads   int;
    v_most    int;
begin
    v_limit := {{.schema}}.limit_of(v_queue, v_group);
    v_due := v_limit.until;
    if v_due is not null then
        -- Nobody gets these until then, not even what has been let in.
        with parked as (
            delete from {{.schema}}.ready r
             where r.ctid = any (array(
                select x.ctid
                  from {{.schema}}.group_slots(v_group, v_limit.max_running) s
                 cross join lateral (
                    select r.ctid from {{.schema}}.ready r
                     where r.job_id = s.job_id and r.position <> r.job_id
                       for update skip locked) x
                 where s.busy))
            returning r.*
        )
        insert into {{.schema}}.scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
        select v_due, p.job_id, p.lane, p.token, p.attempt, p.failed, p.lost, p.expires_at from parked p;
        -- Who is just leasing one may roll back, who is just making one ready may not have seen the throttle: the
        -- tick looks again.
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'group', v_group, v_queue, v_now + interval '200 ms'
         where exists (
            select from {{.schema}}.group_slots(v_group, v_limit.max_running) s
             where s.busy and coalesce(
                (select true from {{.schema}}.ready r where r.job_id = s.job_id and r.position <> r.job_id limit 1),
                (select l.xmax <> 0 from {{.schema}}.leased l where l.job_id = s.job_id limit 1),
                (select d.xmax <> 0 from {{.schema}}.scheduled d where d.job_id = s.job_id limit 1)));
    end if;
    if v_due is null then
        v_busy := array(
            select s.slot from {{.schema}}.group_slots(v_group, v_limit.max_running) s where s.busy);
        if cardinality(v_busy) > v_limit.max_running or cardinality(v_busy) > 0 and v_limit.slots is not null then
            if {{.schema}}.bind_group(v_group, v_queue, v_limit.max_running, v_limit.slots, v_limit.time_window) > 0 then
                v_busy := array(
                    select s.slot from {{.schema}}.group_slots(v_group, v_limit.max_running) s where s.busy);
            end if;
        end if;
    end if;
    v_low := {{template "internal/group_low.sql" dict "schema" .schema "group" "v_group"}};
    if not exists (
        select from {{.schema}}.waiting w where w.group_id = v_group and w.position >= v_low)
    then
        -- As in admit.
        if admit_limited.top < 9223372036854775807 then
            insert into {{.schema}}.todo (kind, id, queue_id, due_at) values ('group', v_group, v_queue, v_now + interval '500 ms');
        end if;
        return 0;
    end if;
    if v_due is null then
        if cardinality(v_busy) < v_limit.max_running then
            -- Of a rate each takes a lock, and the lock table is everybody's.
            v_most := case when v_limit.slots is null then 1000 else 20 end;
            v_free := array(
                select n.slot from generate_series(0, v_limit.max_running - 1) n(slot)
                 where n.slot <> all (v_busy)
                 limit least(v_limit.max_running - cardinality(v_busy), v_most, (
                    select count(*) from (
                        select from {{.schema}}.waiting w
                         where w.group_id = v_group and w.position >= v_low
                         limit v_most) w)));
        end if;
        if coalesce(cardinality(v_free), 0) = 0 then
            return 0;
        end if;
        if v_limit.slots is not null then
            v_rate := {{.schema}}.rate_slots(-1 - v_group, v_limit.slots, v_limit.time_window,
                cardinality(v_free));
            if cardinality(v_rate) < cardinality(v_free) then
                v_free := v_free[1:cardinality(v_rate)];
                v_due := greatest(v_now + interval '1 millisecond',
                    {{.schema}}.slot_due(-1 - v_group, v_limit.slots, v_limit.time_window));
            end if;
        end if;
    end if;

    -- The first in line may be held by somebody who changes or cancels it: nothing overtakes it, and
    -- the tick tries again.
    if cardinality(v_free) > 0 then
        with heads as materialized (
            select w.job_id, row_number() over (order by w.position) as nth
              from (
                select w.job_id, w.position from {{.schema}}.waiting w
                 where w.group_id = v_group and w.position >= v_low
                 order by w.position
                 limit cardinality(v_free)) w
        ), got as materialized (
            select h.nth, w.job_id
              from heads h
             cross join lateral (
                select w.job_id from {{.schema}}.waiting w where w.job_id = h.job_id for update skip locked) w
        ), gone as (
            delete from {{.schema}}.waiting w
             where w.job_id = any (array(
                select g.job_id from got g
                 where g.nth < (
                    select coalesce(min(h.nth), 1000000) from heads h
                     where not exists (select from got x where x.nth = h.nth))))
            returning w.*
        ), moved as (
            insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
            select g.lane, nextval('{{.schema}}.position'), g.job_id, g.token, g.attempt, g.failed, g.lost,
                g.expires_at
              from (select * from gone order by position) g
        ), replaced as (
            delete from {{.schema}}.group_slot s
             where s.ctid = any (array(
                select x.slot_row
                  from unnest(v_free[1:(select count(*)::int from gone)]) f(slot)
                 cross join lateral (
                    select x.ctid as slot_row from {{.schema}}.group_slot x
                     where x.group_id = v_group and x.slot = f.slot
                     order by x.version desc
                     limit 1) x))
        ), noted as (
            insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
            select v_group, v_free[(row_number() over (order by g.position))::int], g.job_id,
                greatest(v_low, least(g.position + 1, admit_limited.top)), v_now
              from gone g
        )
        select (select count(*) from heads), array_agg(g.job_id order by g.position),
            array_agg(-1 - g.token order by g.position)
          into v_heads, v_taken, v_tokens
          from gone g;
    end if;
    if v_taken is not null and v_limit.slots is not null then
        perform {{.schema}}.use_slots(-1 - v_group, v_rate[1:cardinality(v_taken)], v_taken, v_tokens);
    end if;
    -- The tick goes on where there may be more of them than one call lets in.
    if v_heads > coalesce(cardinality(v_taken), 0) or v_heads = v_most then
        v_due := v_now;
    elsif v_due is null and admit_limited.top < 9223372036854775807 and cardinality(v_busy) + v_heads < v_limit.max_running then
        v_due := v_now + interval '500 ms';
    end if;
    if v_due is not null and not exists (
        select from {{.schema}}.todo t
         where t.id = v_group and case when t.kind = 'group' then true end and t.due_at > v_now and t.due_at <= v_due)
    then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at) values ('group', v_group, v_queue, v_due);
    end if;
    return coalesce(cardinality(v_taken), 0);
end
$$;
comment on function {{.schema}}.admit_limited(bigint, bigint, bigint) is
    'Lets the first in line of a group with limits into ready.';
