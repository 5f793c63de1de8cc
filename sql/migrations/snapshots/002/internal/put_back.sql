-- A job that its worker gave back: to ready, to scheduled after a delay, or to finished when its time to
-- live has passed. The caller has entered the epoch. Wakes sleepers.
-- Calls: place_jobs, settle, wake_sleepers.
create or replace function {{.schema}}.put_back(lease {{.schema}}.leased, now timestamptz, delay interval)
returns text
language plpgsql
as $$
#variable_conflict use_column
declare
    v_queue_id bigint := lease.lane >> 16;
begin
    if lease.job_expires_at <= now then
        insert into {{.schema}}.finished (gen, job_id, queue_id, attempt, lost, finished_at, outcome,
            kept)
        values (pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint, lease.job_id,
            v_queue_id, lease.attempt, lease.lost, now, 'expired', lease.kept);
        if lease.linked then
            perform {{.schema}}.settle(array[lease.job_id]);
        end if;
        return 'expired';
    end if;
    -- The tick may just be dropping the timer of a job that it sees leased.
    if lease.job_expires_at is not null then
        insert into {{.schema}}.ttl (expires_at, job_id) values (lease.job_expires_at, lease.job_id);
    end if;
    -- Not by the delay's sign: a month less 29 days is in the past, where the month is February.
    if now + delay > now then
        insert into {{.schema}}.scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
        values (now + delay, lease.job_id, lease.lane, lease.token, lease.attempt, lease.failed,
            lease.lost, lease.job_expires_at);
        -- A slot of several is for another one meanwhile.
        if lease.linked then
            perform {{.schema}}.settle(array[lease.job_id]);
        end if;
        return 'scheduled';
    end if;
    if lease.linked then
        perform {{.schema}}.place_jobs(array[row(lease.lane, 0, lease.job_id, lease.token, lease.attempt,
            lease.failed, lease.lost, lease.job_expires_at)::{{.schema}}.ready], 'leased');
        return case when exists (select from {{.schema}}.scheduled s where s.job_id = lease.job_id)
            then 'scheduled' else 'ready' end;
    end if;
    insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
    values (lease.lane, nextval('{{.schema}}.position'), lease.job_id, lease.token, lease.attempt,
        lease.failed, lease.lost, lease.job_expires_at);
    perform {{.schema}}.wake_sleepers(v_queue_id);
    return 'ready';
end
$$;
comment on function {{.schema}}.put_back({{.schema}}.leased, timestamptz, interval) is 'Puts back a job that its worker gave back.';
