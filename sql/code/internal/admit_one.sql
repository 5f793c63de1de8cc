-- admit for one group, in statements that are as short as they can be, since it is the turn of every ack and
-- enqueue of a group. The caller is READ COMMITTED.
-- Calls: enter, admit, admit_limited, wake_sleepers. Locks, Index: as admit.
create or replace function {{.schema}}.admit_one(group_id bigint, queue_id bigint, ended bigint default null)
returns boolean
language plpgsql
as $$
#variable_conflict use_column
declare
    v_known   text := current_setting('{{.schema}}.groups', true);
    v_epoch   bigint;
    v_top     bigint := 9223372036854775807;
    v_slot    tid;
    v_low     bigint;
    v_busy    boolean;
    v_limited boolean;
    v_job_id  bigint;
    v_holder  bigint;
    v_row     {{.schema}}.waiting%rowtype;
begin
    if v_known <> '' then
        return {{.schema}}.admit(array[admit_one.group_id], array[admit_one.queue_id], 100,
            array[admit_one.ended]) > 0;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (admit_one.group_id & 2147483647)::int) then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        values ('group', admit_one.group_id, admit_one.queue_id, clock_timestamp());
        return false;
    end if;
    v_known := set_config('{{.schema}}.groups', '{' || admit_one.group_id || '}', true);
    if not pg_try_advisory_xact_lock(hashtext('{{.schema}}:line'), (admit_one.group_id & 2147483647)::int) then
        v_epoch := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
        v_top := (
            select coalesce(min(e.lo) + 1, 0) from {{.schema}}.epoch_open e where e.epoch >= v_epoch);
    end if;

    select s.slot_row, coalesce(s.low, 0), w.job_id, s.job_id,
        exists (
            select from {{.schema}}.limit_rule r where r.queue_id = one.queue_id and r.group_id > 0)
            or exists (select from {{.schema}}.throttled t where t.queue_id = one.queue_id and t.group_id > 0)
            or exists (select from {{.schema}}.group_slot x where x.group_id = one.group_id and x.slot > 0)
      into v_slot, v_low, v_job_id, v_holder, v_limited
      from (select admit_one.group_id, admit_one.queue_id) one
      left join lateral (
        select s.ctid as slot_row, s.job_id, s.low from {{.schema}}.group_slot s
         where s.group_id = one.group_id and s.slot = 0
         order by s.version desc
         limit 1) s on true
      left join lateral (
        select w.job_id from {{.schema}}.waiting w
         where w.group_id = one.group_id and w.position >= coalesce(s.low, 0)
         order by w.position
         limit 1) w on true;
    if v_limited then
        v_busy := {{.schema}}.enter();
        if {{.schema}}.admit_limited(admit_one.group_id, admit_one.queue_id, v_top) = 0 then
            return false;
        end if;
    elsif v_job_id is null then
        -- As in admit.
        if v_top < 9223372036854775807 then
            insert into {{.schema}}.todo (kind, id, queue_id, due_at)
            values ('group', admit_one.group_id, admit_one.queue_id, clock_timestamp() + interval '500 ms');
        end if;
        return false;
    else
        if v_holder <> coalesce(admit_one.ended, 0) then
            -- Not by exists, which may become a hash of a whole table. Apart, since few ask: each table that a
            -- statement names is locked.
            v_busy := coalesce(
                (select true from {{.schema}}.leased l where l.job_id = v_holder limit 1),
                (select true from {{.schema}}.ready r
                  where r.job_id = v_holder and r.position <> r.job_id limit 1),
                (select true from {{.schema}}.scheduled d where d.job_id = v_holder limit 1), false);
            if v_busy then
                return false;
            end if;
        end if;
        delete from {{.schema}}.waiting w
         where w.job_id = (
            select x.job_id from {{.schema}}.waiting x where x.job_id = v_job_id for update skip locked)
        returning w.* into v_row;
        -- It may be held by somebody who changes or cancels it: nothing overtakes it.
        if v_row.job_id is null then
            insert into {{.schema}}.todo (kind, id, queue_id, due_at)
            values ('group', admit_one.group_id, admit_one.queue_id, clock_timestamp());
            return false;
        end if;
        v_busy := {{.schema}}.enter();
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        values (v_row.lane, nextval('{{.schema}}.position'), v_job_id, v_row.token, v_row.attempt, v_row.failed,
            v_row.lost, v_row.expires_at);
        with replaced as (
            delete from {{.schema}}.group_slot s where s.ctid = v_slot
        )
        insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
        values (admit_one.group_id, 0, v_job_id, greatest(v_low, least(v_row.position + 1, v_top)),
            clock_timestamp());
    end if;
    if {{template "internal/to_wake.sql" dict "schema" .schema "queue" "admit_one.queue_id"}} then
        perform {{.schema}}.wake_sleepers(admit_one.queue_id);
    end if;
    return true;
end
$$;
comment on function {{.schema}}.admit_one(bigint, bigint, bigint) is 'Lets the first in line of a group into ready.';
