-- Makes a schedule, or changes it. The job is enqueued once for trial and taken back: what the queue would
-- refuse at each run, by its rights, limits or options, is refused now; but not for being full just now.
-- Calls: check_schedule_name, cron_parse, check_timezone, demand_schedule, check_schedule, open_queue,
-- role_may, enqueue_run, fixed_times, next_run, time_low, oq_schedule (once).
-- Locks: schedule (advisory, shared), the schedule's row. Index: schedule_name_key, mark_lane_idx.
create or replace function {{.api_schema}}.oq_schedule(
    schedule_name text,
    cron          text,
    queue_name    text,
    payload       jsonb default '{}',
    timezone      text  default 'UTC',
    options       jsonb default null
)
returns timestamptz
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_caller   name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    v_old      schedule;
    v_new      schedule;
    v_found    boolean;
    v_fields   text[];
    v_queue_id bigint;
    v_now      timestamptz;
    v_after    timestamptz;
begin
    perform check_schedule_name(oq_schedule.schedule_name);
    v_fields := cron_parse(oq_schedule.cron collate "default");
    perform check_timezone(oq_schedule.timezone collate "default");
    perform pg_advisory_xact_lock_shared(hashtext('{{.schema}}:schedule'), 0);
    select s.* into v_old from schedule s where s.schedule_name = oq_schedule.schedule_name collate "C" for update;
    v_found := found;
    v_new := v_old;
    if v_found then
        perform demand_schedule(v_old);
    else
        v_new.schedule_name := oq_schedule.schedule_name;
        v_new.job := '{}';
        v_new.missed := 'one';
        v_new.overlap := 'allow';
        v_new.paused := false;
    end if;
    -- Who changes somebody's schedule does not take it over, unless its owner is gone.
    if not exists (select from pg_roles r where r.oid = v_new.owner_id) then
        select r.oid, r.rolname into v_new.owner_id, v_new.owner_name from pg_roles r where r.rolname = v_caller collate "C";
    end if;
    v_new.cron := oq_schedule.cron;
    v_new.fields := v_fields;
    v_new.timezone := oq_schedule.timezone;
    v_new.queue_name := oq_schedule.queue_name;
    v_new.payload := oq_schedule.payload;
    v_new := check_schedule(oq_schedule.options, v_new);

    v_queue_id := open_queue(oq_schedule.queue_name, true);
    begin
        perform enqueue_run(v_new, clock_timestamp());
        raise exception using errcode = 'OQ099';
    exception
        when sqlstate 'OQ099' or sqlstate 'OQ005' or sqlstate 'OQ006' then
            null;
        when insufficient_privilege then
            -- Who has lost the right can still pause what is theirs.
            if not (v_found and v_new.paused) then
                raise;
            end if;
    end;
    if not v_new.paused and not role_may(v_new.owner_id, v_queue_id, 'produce') then
        raise exception 'role % may not produce in queue %', quote_ident(v_new.owner_name),
                quote_literal(oq_schedule.queue_name)
            using errcode = '42501', hint = 'A schedule runs with the rights of its owner.';
    end if;

    v_new.job := fixed_times(v_new.job);
    v_now := clock_timestamp();
    if v_new.paused then
        v_new.due_at := null;
    elsif not v_found or v_old.due_at is null or v_new.start_at > v_old.due_at
        -- A run that is due stays due; one to come moves with what it depends on.
        or v_old.due_at > v_now and (v_new.fields <> v_old.fields or v_new.timezone <> v_old.timezone
            or v_new.start_at is distinct from v_old.start_at)
    then
        -- Never again an instant that has run, whatever the clock says now.
        v_after := greatest(v_now, v_old.last_run_at);
        if v_new.start_at > v_after then
            v_after := v_new.start_at - interval '1 microsecond';
        end if;
        v_new.due_at := next_run(v_new.fields, v_new.timezone, v_after,
            coalesce(v_new.start_at, date_trunc('second', v_now)));
        v_new.behind := 0;
    end if;
    if v_new.due_at > v_new.end_at then
        v_new.due_at := null;
    end if;
    -- The clock went back: what it is due at now lies below the mark.
    if v_new.due_at < time_low(-10) then
        delete from mark m where m.lane = -10;
        insert into mark (lane, low) values (-10, 0);
    end if;

    if v_found then
        update schedule s
           set due_at = v_new.due_at, updated_at = v_now, start_at = v_new.start_at, end_at = v_new.end_at,
               owner_id = v_new.owner_id, owner_name = v_new.owner_name, behind = coalesce(v_new.behind, 0),
               paused = v_new.paused, queue_name = v_new.queue_name, timezone = v_new.timezone,
               missed = v_new.missed, overlap = v_new.overlap, cron = v_new.cron, fields = v_new.fields,
               job = v_new.job, payload = v_new.payload, last_error = null, last_error_at = null
         where s.schedule_id = v_old.schedule_id;
        return v_new.due_at;
    end if;
    insert into schedule (schedule_name, owner_id, owner_name, due_at, start_at, end_at, paused, queue_name, timezone,
        missed, overlap, cron, fields, job, payload)
    values (v_new.schedule_name, v_new.owner_id, v_new.owner_name, v_new.due_at, v_new.start_at, v_new.end_at,
        v_new.paused, v_new.queue_name, v_new.timezone, v_new.missed, v_new.overlap, v_new.cron, v_new.fields,
        v_new.job, v_new.payload)
    on conflict (schedule_name) do nothing;
    if not found then
        -- Somebody else has just made it: then this changes it.
        return {{.api_schema}}.oq_schedule(oq_schedule.schedule_name, oq_schedule.cron, oq_schedule.queue_name,
            oq_schedule.payload, oq_schedule.timezone, oq_schedule.options);
    end if;
    return v_new.due_at;
end
$$;
comment on function {{.api_schema}}.oq_schedule(text, text, text, jsonb, text, jsonb) is
'Enqueues a job at every time of a cron expression; returns the next run.
Called again with the same schedule_name it changes the schedule: a run that is due stays due, none comes
twice. cron: five fields, or six with seconds first, or @daily and the like, or every 90 seconds. timezone:
a name from pg_timezone_names. options: missed one | skip | all, overlap allow | skip, start, end (times),
paused, priority, max_retries, unique_key, group_key, headers, options (of the job, which may also stand
beside the others). What is not named stays as it is, null puts it back to its default. Null is returned
where no run comes: paused, or over. The schedule belongs to who made it and runs with that role''s rights.
Errors: OQ001, 42501; 55P03 where another open transaction is changing the same schedule.';
