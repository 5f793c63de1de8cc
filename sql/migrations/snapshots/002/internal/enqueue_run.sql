-- The job of one run. Headers say which: schedule and scheduled_at.
-- Calls: enqueue_checked.
create or replace function {{.schema}}.enqueue_run(schedule {{.schema}}.schedule, instant timestamptz)
returns bigint
language plpgsql
as $$
begin
    return {{.schema}}.enqueue_checked(schedule.queue_name, schedule.payload,
        coalesce((schedule.job ->> 'priority')::int, 0), null, (schedule.job ->> 'max_retries')::int,
        schedule.job ->> 'unique_key', schedule.job ->> 'group_key',
        coalesce(schedule.job -> 'headers', '{}') || jsonb_build_object('schedule', schedule.schedule_name,
            'scheduled_at', to_char(instant at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
        schedule.job -> 'options');
end
$$;
comment on function {{.schema}}.enqueue_run({{.schema}}.schedule, timestamptz) is 'Enqueues the job of one run.';
