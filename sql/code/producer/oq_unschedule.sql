-- Calls: check_schedule_name, demand_schedule. Locks: the schedule's row. Index: schedule_name_key.
create or replace function {{.api_schema}}.oq_unschedule(schedule_name text)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_old schedule;
begin
    perform check_schedule_name(oq_unschedule.schedule_name);
    select s.* into v_old from schedule s where s.schedule_name = oq_unschedule.schedule_name collate "C" for update;
    if not found then
        return false;
    end if;
    perform demand_schedule(v_old);
    delete from schedule s where s.schedule_id = v_old.schedule_id;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_unschedule(text) is
'Ends a schedule for good; false where there is none of that name.
Jobs that it has enqueued stay. To stop it for a while use oq_schedule with the option paused. Errors:
OQ001, 42501; 55P03 where another open transaction is changing the same schedule.';
