-- One schedule that is due and locked: makes its jobs, at most max_jobs, and sets the next instant. An error
-- of a run is noted in the row, and the schedule goes on; what may go away by itself (a deadlock, a lock,
-- a full disk) leaves the instant due for a minute. Returns how many jobs; -1: none, to be tried again.
-- Calls: next_run, require_queue, role_may, may, enqueue_run. Locks: as enqueue_checked.
-- Index: schedule_pk, job_N_pk, finished_N_pk, dead_pk.
create or replace function {{.schema}}.run_schedule(due {{.schema}}.schedule, max_jobs int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now      timestamptz := clock_timestamp();
    v_until    timestamptz := least(v_now, due.end_at);
    v_instant  timestamptz := due.due_at;
    v_next     timestamptz;
    v_high     timestamptz := v_until;
    v_mid      timestamptz;
    v_queue_id bigint;
    v_state    text;
    v_owner    name := coalesce((select r.rolname from pg_roles r where r.oid = due.owner_id), due.owner_name);
    v_deputy   boolean;
    v_made     int;
    v_again    boolean := false;
    v_done     bigint := 0;
begin
    begin
        v_next := {{.schema}}.next_run(due.fields, due.timezone, v_instant, v_instant);
        if v_next <= v_until and due.missed <> 'all' then
            -- The last instant that has come: halve the time between the last one known and now, since a
            -- second by second schedule may have been down for a month.
            for i in 1..100 loop
                exit when v_next is null or v_next > v_until;
                v_instant := v_next;
                v_mid := v_instant + (v_high - v_instant) / 2;
                v_next := {{.schema}}.next_run(due.fields, due.timezone, v_mid, v_instant);
                if v_next <= v_until then
                    v_instant := v_next;
                else
                    v_high := v_mid;
                end if;
                v_next := {{.schema}}.next_run(due.fields, due.timezone, v_instant, v_instant);
            end loop;
        end if;
    exception when data_exception then
        -- The zone is gone from the server.
        update {{.schema}}.schedule s
           set due_at = null, last_error = left(sqlerrm, 1000) || ' (' || sqlstate || ')', last_error_at = v_now
         where s.schedule_id = due.schedule_id;
        return 0;
    end;

    loop
        -- A thousand runs make up for an outage; then it goes on from now.
        due.behind := case when v_next <= v_until then due.behind + 1 else 0 end;
        if due.behind >= 1000 then
            v_next := {{.schema}}.next_run(due.fields, due.timezone, v_until, v_instant);
            due.behind := 0;
        end if;
        begin
            v_queue_id := {{.schema}}.require_queue(due.queue_name);
            if not {{.schema}}.role_may(due.owner_id, v_queue_id, 'produce') then
                raise exception 'role % may not produce in queue %', quote_ident(v_owner), quote_literal(due.queue_name)
                    using errcode = '42501';
            end if;
            -- Two minutes late is not missed: pg_cron ticks once a minute.
            if due.missed = 'skip' and v_instant < v_now - interval '2 minutes' then
                null;
            elsif due.overlap = 'skip'
                and exists (select from {{.schema}}.job j where j.job_id = due.last_job_id)
                and not exists (select from {{.schema}}.finished f where f.job_id = due.last_job_id)
                and not exists (select from {{.schema}}.dead d where d.job_id = due.last_job_id)
            then
                due.skipped := due.skipped + 1;
            else
                v_deputy := not {{.schema}}.may(v_queue_id, 'produce');
                if v_deputy then
                    insert into {{.schema}}.deputy (xid, queue_id) values (pg_current_xact_id(), v_queue_id);
                end if;
                select r.job_id, r.inserted::int into due.last_job_id, v_made from {{.schema}}.enqueue_run(due, v_instant) r;
                if v_deputy then
                    delete from {{.schema}}.deputy d where d.xid = pg_current_xact_id();
                end if;
                due.last_run_at := v_instant;
                due.runs := due.runs + v_made;
                due.last_error := null;
                due.last_error_at := null;
                v_done := v_done + v_made;
            end if;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate;
            if (left(v_state, 2) in ('40', '53') or v_state = '55P03')
                and (due.last_error is null or due.last_error !~ '^tried again' or due.last_error_at > v_now - interval '1 minute')
            then
                v_again := true;
                v_next := v_instant;
                if due.last_error ~ '^tried again' then
                    exit;
                end if;
                due.last_error := 'tried again: ';
            else
                due.last_error := '';
            end if;
            due.last_error := due.last_error || left(sqlerrm, 1000) || ' (' || v_state || ')';
            due.last_error_at := v_now;
        end;
        exit when v_again;
        max_jobs := max_jobs - 1;
        exit when v_next is null or v_next > v_until or max_jobs <= 0;
        v_instant := v_next;
        v_next := {{.schema}}.next_run(due.fields, due.timezone, v_instant, v_instant);
    end loop;

    -- Noted once, so that a row that is tried for a minute is not written a thousand times.
    if v_again and v_done = 0 and due.last_error_at < v_now then
        return -1;
    end if;
    update {{.schema}}.schedule s
       set due_at = case when v_next <= coalesce(due.end_at, v_next) then v_next end, last_run_at = due.last_run_at,
           last_job_id = due.last_job_id, last_error = due.last_error, last_error_at = due.last_error_at,
           runs = due.runs, skipped = due.skipped, behind = due.behind, owner_name = v_owner
     where s.schedule_id = due.schedule_id;
    return case when v_again and v_done = 0 then -1 else v_done end;
end
$$;
comment on function {{.schema}}.run_schedule({{.schema}}.schedule, int) is 'Makes the jobs of one schedule that is due.';
