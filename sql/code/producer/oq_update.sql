-- Changes what the producer said of a job that nobody holds. The job's row is updated in place,
-- which is rare enough; its place moves only where priority or run_at make it.
-- Calls: check_patch, check_payload, demand, hold_place, enter, open_lane, place_jobs, leave_slots, settle,
-- wake_sleepers.
-- Locks: the row of the job's place, the job row. Index: as hold_place, queue_id_idx,
-- mark_lane_idx.
create or replace function {{.api_schema}}.oq_update(
    job_id bigint,
    patch  jsonb
)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_patch record;
    v_queue record;
    v_place record;
    v_lane  bigint;
    v_due   timestamptz;
    v_now   timestamptz;
    v_count int;
begin
    v_patch := check_patch(patch);
    select q.queue_id, q.restricted, q.max_payload_bytes, q.linked into v_queue
      from (select j.queue_id from job j where j.job_id = oq_update.job_id limit 1) j
      join queue q on q.queue_id = j.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if v_queue.queue_id is null then
        return false;
    end if;
    if v_queue.restricted then
        perform demand(v_queue.queue_id, null, 'produce');
    end if;
    if patch ? 'payload' then
        perform check_payload(v_patch.payload, v_queue.max_payload_bytes);
    end if;

    v_place := hold_place(oq_update.job_id, false);
    if v_place.place is null or v_place.place not in ('ready', 'scheduled', 'waiting') then
        return false;
    end if;
    -- oq_rotate may be carrying the row to another generation: the next statement sees it there.
    for v_round in 1..20 loop
        update job j
           set priority = case when patch ? 'priority' then v_patch.priority::smallint
                   else j.priority end,
               run_at = case when patch ? 'run_at' then v_patch.run_at else j.run_at end,
               max_retries = case when patch ? 'max_retries' then v_patch.max_retries
                   else j.max_retries end,
               payload = case when patch ? 'payload' then v_patch.payload else j.payload end,
               headers = case when patch ? 'headers' then v_patch.headers else j.headers end
         where j.job_id = oq_update.job_id;
        get diagnostics v_count = row_count;
        exit when v_count > 0;
    end loop;
    if v_count = 0 then
        raise exception 'job % is being moved', oq_update.job_id
            using errcode = '40001', hint = 'Try the transaction again.';
    end if;

    perform enter();
    v_now := clock_timestamp();
    v_lane := case when patch ? 'priority' then (v_queue.queue_id << 16) + 32767 - v_patch.priority
        else v_place.lane end;
    v_due := case when patch ? 'run_at' then v_patch.run_at else v_place.due_at end;
    if v_lane = v_place.lane
        and (case v_place.place
            when 'ready' then v_due is null or v_due <= v_now
            when 'waiting' then v_place.holder = 'parent' or v_due is null or v_due <= v_now
            else v_due > v_now and v_due = v_place.due_at end)
    then
        return true;
    end if;
    if v_lane <> v_place.lane then
        perform open_lane(v_lane);
    end if;
    if v_place.place = 'waiting' and (v_place.holder = 'parent' or v_due is null or v_due <= v_now) then
        -- It keeps its place in the line. A time to run is looked at when the parents have ended.
        update waiting w set lane = v_lane where w.job_id = oq_update.job_id;
        return true;
    end if;
    -- Put off by hand it gives its group's turn on, even one that waits for a retry, or that a lower limit sent back in line.
    if v_queue.linked and v_due > v_now and (v_place.place <> 'scheduled' or v_due > v_place.due_at) then
        perform leave_slots(array[oq_update.job_id]);
    end if;
    if v_place.place = 'ready' then
        delete from ready r where r.lane = v_place.lane and r.position = v_place.place_at;
    elsif v_place.place = 'waiting' then
        delete from waiting w where w.job_id = oq_update.job_id;
    else
        delete from scheduled s where s.job_id = oq_update.job_id;
    end if;
    if v_due > v_now then
        insert into scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
        values (v_due, oq_update.job_id, v_lane, v_place.token, v_place.attempt, v_place.failed,
            v_place.lost, v_place.expires_at);
        if v_queue.linked then
            perform settle(array[oq_update.job_id]);
        end if;
    elsif v_queue.linked then
        -- Whoever has its group's turn keeps it: what was let in goes past the line, as what comes from a lease.
        perform place_jobs(array[row(v_lane, 0, oq_update.job_id, v_place.token, v_place.attempt,
            v_place.failed, v_place.lost, v_place.expires_at)::ready], v_place.place);
    else
        insert into ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        values (v_lane, nextval('position'), oq_update.job_id, v_place.token, v_place.attempt,
            v_place.failed, v_place.lost, v_place.expires_at);
        perform wake_sleepers(v_queue.queue_id);
    end if;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_update(bigint, jsonb) is
'Changes a job that nobody holds.
patch: priority, run_at, max_retries, payload, headers. True where the job was ready, scheduled or waiting;
false, and nothing changed, where it is leased, dead, finished or unknown. run_at in the future
makes it scheduled, past or null makes it ready. A new priority puts it behind the others of that
priority. A job whose row an open transaction holds is waited for, 2 s at most (55P03). Errors:
OQ001, 42501.';
