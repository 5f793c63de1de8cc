-- Ends a job in any unfinished state. Who holds it learns it at the next heartbeat: the lease is
-- gone. The last token is kept, negative where its lease had ended before: a redrive must not go
-- below it.
-- Calls: demand, hold_place, settle.
-- Locks: the row of the job's place. Index: as hold_place, queue_id_idx.
create or replace function {{.api_schema}}.oq_cancel(
    job_id bigint,
    reason text default null
)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue record;
    v_place record;
begin
    if length(reason) > 1000 then
        perform fail('reason', length(reason) || ' characters long', 'at most 1000 characters');
    end if;
    select q.queue_id, q.restricted, q.keep, q.linked into v_queue
      from (select j.queue_id from job j where j.job_id = oq_cancel.job_id limit 1) j
      join queue q on q.queue_id = j.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if v_queue.queue_id is null then
        return false;
    end if;
    if v_queue.restricted then
        perform demand(v_queue.queue_id, null, 'produce');
    end if;

    v_place := hold_place(oq_cancel.job_id, true);
    case v_place.place
    when 'ready' then
        delete from ready r where r.lane = v_place.lane and r.position = v_place.place_at;
    when 'scheduled' then
        delete from scheduled s where s.job_id = oq_cancel.job_id;
    when 'waiting' then
        delete from waiting w where w.job_id = oq_cancel.job_id;
    when 'leased' then
        delete from leased l where l.job_id = oq_cancel.job_id;
    when 'dead' then
        delete from dead d where d.job_id = oq_cancel.job_id;
    else
        return false;
    end case;
    insert into finished (gen, lost, attempt, job_id, queue_id, finished_at, leased_at, token,
        outcome, kept, worker_id, error)
    values (pg_sequence_last_value('generation'::regclass)::smallint, v_place.lost, v_place.attempt,
        oq_cancel.job_id, v_queue.queue_id, clock_timestamp(), v_place.leased_at,
        case when v_place.place = 'leased' then v_place.token else -nullif(v_place.token, 0) end,
        'cancelled', v_queue.keep <> 'none', v_place.worker_id, oq_cancel.reason);
    if v_queue.linked then
        perform settle(array[oq_cancel.job_id]);
    end if;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_cancel(bigint, text) is
'Cancels a job in any unfinished state, dead included.
False where it is finished or unknown. A leased job''s worker learns it at its next heartbeat; its
ack is refused. reason: at most 1000 characters, shown as error. A job whose row an open transaction
holds is waited for, 2 s at most (55P03). Errors: OQ001, 42501.';
