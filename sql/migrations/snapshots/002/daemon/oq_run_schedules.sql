-- Schedules that are due, each under its row's lock, so that whoever comes second finds the next instant.
-- Fifty a call: each run is a subtransaction, and a snapshot has room for 64.
-- Calls: verify_instance, time_low, run_schedule, raise_schedules.
-- Locks: schedule (advisory, shared), schedule rows (skip locked). Index: schedule_due_idx.
create or replace function {{.api_schema}}.oq_run_schedules()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_due  schedule;
    v_now  timestamptz;
    v_made bigint;
    v_left int := 0;
    v_done bigint := 0;
begin
    perform verify_instance('oq_run_schedules');
    -- Held by raise_schedules for an instant, which is long where the processors are busy.
    perform pg_advisory_xact_lock_shared(hashtext('{{.schema}}:schedule'), 0);
    -- Of the locks of an enqueue, which others may hold for long, each is waited for so long.
    perform set_config('lock_timeout', '25ms', true);
    v_now := clock_timestamp();
    for v_due in
        select s.*
          from schedule s
         where s.due_at >= time_low(-10) and s.due_at <= v_now and coalesce(s.last_error !~ '^tried again', true)
         order by s.due_at
         limit 50
           for update skip locked
    loop
        v_made := run_schedule(v_due, 50 - least(v_done, 49)::int);
        -- Those that wait in vain for a lock may not take the tick's time.
        v_left := v_left + (v_made < 0)::int;
        v_done := v_done + greatest(v_made, 0);
        exit when v_done >= 50 or v_left >= 5;
    end loop;
    -- Nor keep the others from their runs: until they have it, or their minute is over, they come last, in no order.
    for v_due in
        select s.*
          from schedule s
         where s.due_at >= time_low(-10) and s.due_at <= v_now and s.last_error ~ '^tried again' and s.last_error_at < v_now
           and v_done < 50
         order by random()
         limit 50
           for update skip locked
    loop
        v_made := run_schedule(v_due, 50 - least(v_done, 49)::int);
        v_left := v_left + (v_made < 0)::int;
        v_done := v_done + greatest(v_made, 0);
        exit when v_done >= 50 or v_left >= 10;
    end loop;
    perform raise_schedules();
    return v_done;
end
$$;
comment on function {{.api_schema}}.oq_run_schedules() is
'Enqueues the jobs of schedules that are due; returns how many.
At most 50 a call. An error of one is noted in oq_schedules.last_error and keeps no other from running.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once. Errors: 25001 in a
transaction that is not READ COMMITTED; 55000 in a restored copy.';
