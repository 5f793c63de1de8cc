-- The job of one run, and whether it is new: with a unique key it may be another's. Headers say which run: schedule
-- and scheduled_at.
-- Calls: enqueue_checked, enqueue_jobs.
create or replace function {{.schema}}.enqueue_run(
    schedule {{.schema}}.schedule,
    instant  timestamptz,
    out job_id   bigint,
    out inserted boolean
)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_headers jsonb := coalesce(schedule.job -> 'headers', '{}') || jsonb_build_object('schedule', schedule.schedule_name,
        'scheduled_at', to_char(instant at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
begin
    if schedule.job ? 'unique_key' then
        select e.job_id, e.inserted into job_id, inserted
          from {{.schema}}.enqueue_jobs(jsonb_build_array(schedule.job || jsonb_build_object(
            'queue_name', schedule.queue_name, 'payload', schedule.payload, 'headers', v_headers)), true) e;
        return;
    end if;
    job_id := {{.schema}}.enqueue_checked(schedule.queue_name, schedule.payload,
        coalesce((schedule.job ->> 'priority')::int, 0), null, (schedule.job ->> 'max_retries')::int,
        null, schedule.job ->> 'group_key', v_headers, schedule.job -> 'options');
    inserted := true;
end
$$;
comment on function {{.schema}}.enqueue_run({{.schema}}.schedule, timestamptz) is 'Enqueues the job of one run.';
