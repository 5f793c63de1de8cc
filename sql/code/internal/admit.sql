-- Lets the first in line of each group into ready, as far as slots and limits allow. Under the lock of the
-- group, held until the commit is visible: what was enqueued or ended meanwhile is seen by whoever has it
-- next. Who does not get the lock, or holds most already, leaves a todo: as whoever can't see what
-- was committed since its snapshot. Nobody waits.
-- Calls: enter, limit_of, group_slots, rate_slots, slot_due, use_slots, wake_sleepers.
-- Locks: groups and their lines (try, ascending), waiting and ready rows (skip locked).
-- Index: waiting_group_idx, waiting_pk, group_slot_idx, todo_id_idx.
create or replace function {{.schema}}.admit(group_ids bigint[], queue_ids bigint[], most int default 100)
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now     timestamptz;
    v_group   bigint;
    v_queue   bigint;
    v_known   text := coalesce(current_setting('{{.schema}}.groups', true), '');
    v_held    bigint[] := case when v_known ~ '^[0-9,]+$' then string_to_array(v_known, ',')::bigint[] end;
    v_limit   record;
    v_low     bigint;
    v_busy    int[];
    v_free    int[];
    v_rate    int[];
    v_due     timestamptz;
    v_taken   bigint[];
    v_top     bigint;
    v_epoch   bigint;
    v_heads   int;
    v_count   int := 0;
    v_woken   bigint[];
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select distinct on (u.group_id) 'group', u.group_id, u.queue_id, clock_timestamp()
          from unnest(admit.group_ids, admit.queue_ids) u(group_id, queue_id);
        return 0;
    end if;
    perform {{.schema}}.enter();
    for v_group, v_queue in
        select distinct on (u.group_id) u.group_id, u.queue_id
          from unnest(admit.group_ids, admit.queue_ids) u(group_id, queue_id)
         order by u.group_id
    loop
        v_now := clock_timestamp();
        if cardinality(v_held) >= most and v_group <> all (v_held)
            or not pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (v_group & 2147483647)::int)
        then
            insert into {{.schema}}.todo (kind, id, queue_id, due_at) values ('group', v_group, v_queue, v_now);
            continue;
        end if;
        if v_held is null or v_group <> all (v_held) then
            v_held := v_held || v_group;
        end if;
        v_limit := {{.schema}}.limit_of(v_queue, v_group);
        v_due := v_limit.until;
        v_free := null;
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
        end if;
        v_low := {{template "internal/group_low.sql" dict "schema" .schema "group" "v_group"}};
        continue when not exists (
            select from {{.schema}}.waiting w where w.group_id = v_group and w.position >= v_low);
        if v_due is null then
            v_busy := array(
                select s.slot from {{.schema}}.group_slots(v_group, v_limit.max_running) s where s.busy);
            v_free := null;
            if cardinality(v_busy) < v_limit.max_running then
                v_free := array(
                    select n.slot from generate_series(0, v_limit.max_running - 1) n(slot)
                     where n.slot <> all (v_busy)
                     limit least(v_limit.max_running - cardinality(v_busy), 1000));
            end if;
            continue when coalesce(cardinality(v_free), 0) = 0;
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

        -- Who is committing what it put in line holds this lock shared. Else its rows could come to stand
        -- below the low, and what is invisible is above the lo of the oldest epoch in any case.
        v_top := null;
        if cardinality(v_free) > 0
            and not pg_try_advisory_xact_lock(hashtext('{{.schema}}:line'), (v_group & 2147483647)::int)
        then
            v_epoch := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
            v_top := (
                select coalesce(min(e.lo) + 1, 0) from {{.schema}}.epoch_open e where e.epoch >= v_epoch);
        end if;

        -- The first in line may be held by somebody who changes or cancels it: nothing overtakes it, and
        -- the tick tries again.
        v_heads := 0;
        v_taken := null;
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
                 where s.version = any (array(
                    select x.version
                      from unnest(v_free[1:(select count(*)::int from gone)]) f(slot)
                     cross join lateral (
                        select x.version from {{.schema}}.group_slot x
                         where x.group_id = v_group and x.slot = f.slot
                         order by x.version desc
                         limit 1) x))
            ), noted as (
                insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
                select v_group, v_free[(row_number() over (order by g.position))::int], g.job_id,
                    greatest(v_low, least(g.position + 1, v_top)), v_now
                  from gone g
            )
            select (select count(*) from heads), array_agg(g.job_id order by g.position)
              into v_heads, v_taken
              from gone g;
        end if;
        if v_taken is not null then
            if v_limit.slots is not null then
                perform {{.schema}}.use_slots(-1 - v_group, v_rate[1:cardinality(v_taken)], v_taken, null);
            end if;
            v_count := v_count + cardinality(v_taken);
            if v_queue <> all (coalesce(v_woken, '{}')) then
                v_woken := v_woken || v_queue;
            end if;
        end if;
        if v_heads > coalesce(cardinality(v_taken), 0) then
            v_due := v_now;
        end if;
        if v_due is not null and not exists (
            select from {{.schema}}.todo t where t.id = v_group and t.kind = 'group' and t.due_at > v_now and t.due_at <= v_due)
        then
            insert into {{.schema}}.todo (kind, id, queue_id, due_at) values ('group', v_group, v_queue, v_due);
        end if;
    end loop;
    perform set_config('{{.schema}}.groups', array_to_string(v_held, ','), true);
    if v_woken is not null then
        perform {{.schema}}.wake_sleepers(u.queue_id) from unnest(v_woken) u(queue_id);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.admit(bigint[], bigint[], int) is 'Lets the first in line of groups into ready.';
