-- Raises the mark of due schedules, lane -10: no row is due before it, so that nobody walks the dead entries
-- of all the runs before. What a transaction writes that is still open is due after it took the lock
-- "schedule"; so the mark is raised to a time read before that lock was found free. Nobody waits for it.
-- Calls: time_low. Index: schedule_due_idx, mark_lane_idx.
create or replace function {{.schema}}.raise_schedules()
returns void
language plpgsql
as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_old   bigint;
    v_first timestamptz;
    v_new   bigint;
begin
    if not (case when pg_try_advisory_lock(hashtext('{{.schema}}:schedule'), 0)
        then pg_advisory_unlock(hashtext('{{.schema}}:schedule'), 0) else false end)
    then
        return;
    end if;
    select m.low into v_old from {{.schema}}.mark m where m.lane = -10 order by m.lane, m.low desc limit 1;
    select s.due_at into v_first
      from {{.schema}}.schedule s
     where s.due_at >= {{.schema}}.time_low(-10)
     order by s.due_at
     limit 1;
    v_new := (date_part('epoch', least(v_now, v_first)) * 1000000)::bigint;
    if v_new >= v_old + 1000000 then
        insert into {{.schema}}.mark (lane, low) values (-10, v_new);
        delete from {{.schema}}.mark m
         where m.ctid = any (array(
            select x.ctid from {{.schema}}.mark x
             where x.lane = -10 and x.low < v_new
               for update skip locked));
    end if;
end
$$;
comment on function {{.schema}}.raise_schedules() is 'Raises the mark of due schedules.';
