-- Before the commit of a transaction that put jobs in line: once a group and statement. The order of a
-- group is that of the commits: if others have committed behind these meanwhile, or were let in already,
-- these go to the end. Then the first is let in, if it is the first in line and its group is free. Not at
-- once in the enqueue: its transaction may stay open for an hour and would hold the group for as long.
-- Calls: admit_one. Locks: line (shared, try), then as admit. Index: waiting_pk, waiting_group_idx, group_slot_idx.
create or replace function {{.schema}}.line_up()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_blind    boolean := {{template "internal/one_snapshot.sql"}};
    v_position bigint;
    v_low      bigint;
    v_own      boolean;
    v_before   boolean;
    v_late     boolean;
    v_safe     boolean;
    v_lines    int;
    v_few      boolean;
    v_known    text;
    v_place    bigint;
    v_several  boolean;
begin
    -- Rows that a dump brings keep their places: the sequences are restored after them.
    if new.xact <> pg_current_xact_id()::text::bigint then
        return null;
    end if;
    -- A look at what is in line would make any two of these fail each other: it is left to the tick, and the
    -- order is that of the ids.
    if current_setting('transaction_isolation') = 'serializable' then
        insert into todo (kind, id, queue_id, position, due_at)
        values ('group', new.group_id, new.lane >> 16, new.position, clock_timestamp());
        return null;
    end if;
    if not v_blind then
        -- Shared until the commit is visible: while it is held, no low passes what can't be seen yet.
        -- A transaction may have jobs of many groups, and the lock table is everybody's.
        v_known := current_setting('{{.schema}}.lines', true);
        v_lines := case when v_known ~ '^[0-9]{1,3}$' then v_known::int else 0 end;
        v_few := v_lines < 100;
        v_safe := v_few and pg_try_advisory_xact_lock_shared(
            hashtext('{{.schema}}:line'), (new.group_id & 2147483647)::int);
    end if;
    -- Where it stands, up to where its group has been let in, and whose are the rows before and behind it.
    loop
        select w.position, s.low,
            (select p.xact is not distinct from new.xact from waiting p
              where p.group_id = new.group_id and p.position >= s.low and p.position < s.position
              order by p.position desc
              limit 1),
            exists (
                select from waiting p
                 where p.group_id = new.group_id and p.position > s.position and p.xact is distinct from new.xact),
            v_low is null and exists (select from group_slot x where x.group_id = new.group_id and x.slot > 0)
          into v_place, v_low, v_own, v_late, v_several
          from (
            select coalesce(v_position, new.position) as position, coalesce(v_low, (
                    select x.low from group_slot x
                     where x.group_id = new.group_id and x.slot = 0
                     order by x.version desc
                     limit 1), 0) as low
            offset 0) s
          left join waiting w on w.job_id = new.job_id;
        exit when v_position is not null;
        -- Moved already, with those of an earlier statement.
        if v_place <> new.position then
            return null;
        end if;
        v_position := v_place;
        exit when v_position is not null and not v_several;
        if v_several then
            v_low := {{template "internal/group_low.sql" dict "schema" .schema "group" "new.group_id"}};
        end if;
        -- If it has left the line, others of its statement may still be there.
        if v_position is null then
            select w.position into v_position
              from waiting w
             where w.group_id = new.group_id and w.position > new.position and w.xact = new.xact
             order by w.position
             limit 1;
            if v_position is null then
                return null;
            end if;
        end if;
    end loop;
    if v_blind then
        v_own := null;
        v_late := false;
    else
        if v_safe then
            v_known := set_config('{{.schema}}.lines', (v_lines + 1)::text, true);
        end if;
        if v_own then
            return null;
        end if;
    end if;
    v_before := v_own is not null;
    -- Who can't see what others have committed takes new places in any case.
    if v_blind or v_late or v_low > v_position then
        with own as materialized (
            select w.job_id, nextval('position') as position
              from (
                select w.job_id from waiting w
                 where w.group_id = new.group_id and w.position >= v_position and w.xact = new.xact
                 order by w.position) w
        ), moved as (
            update waiting w
               set position = o.position
              from own o
             where w.job_id = o.job_id
        )
        select min(o.position) into v_position from own o;
    end if;
    -- With somebody before it, who lets that one in or sees it end looks at the line.
    if not v_blind and v_few and not v_before and not v_late then
        v_before := admit_one(new.group_id, new.lane >> 16) is not null;
    end if;
    if v_blind or not v_safe or not (v_before or v_late) then
        insert into todo (kind, id, queue_id, position, due_at)
        values ('group', new.group_id, new.lane >> 16, v_position, clock_timestamp());
    end if;
    return null;
end
$$;
comment on function {{.schema}}.line_up() is 'Puts what was enqueued in the order of the commits, and lets it in.';

do $$
begin
    if not exists (
        select from pg_trigger t where t.tgrelid = '{{.schema}}.waiting'::regclass and t.tgname = 'waiting_line_up')
    then
        create constraint trigger waiting_line_up after insert on {{.schema}}.waiting
            deferrable initially deferred
            for each row when (new.first) execute function {{.schema}}.line_up();
    end if;
    -- In a session that loads data with session_replication_role = replica, too.
    alter table {{.schema}}.waiting enable always trigger waiting_line_up;
end
$$;
