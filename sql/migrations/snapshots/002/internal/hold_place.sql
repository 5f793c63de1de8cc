-- Finds where a job stands and locks its row there. A job that moves meanwhile is followed. With
-- any_state false, only ready, scheduled and waiting are locked: a worker's ack must not wait. The caller
-- has set a lock_timeout, so an open lease or ack makes it raise 55P03.
-- Locks: the row of the job's place.
-- Index: job_N_pk, ready_pk, ready_returned_idx, leased_pk, scheduled_pk, waiting_pk, dead_pk, finished_N_pk.
create or replace function {{.schema}}.hold_place(
    job_id    bigint,
    any_state boolean,
    out place      text,
    out lane       bigint,
    out place_at   bigint,
    out due_at     timestamptz,
    out token      bigint,
    out attempt    int,
    out failed     smallint,
    out lost       smallint,
    out expires_at timestamptz,
    out leased_at  timestamptz,
    out worker_id  text,
    out holder     text
)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_lane bigint;
begin
    for v_round in 1..20 loop
        select (j.queue_id << 16) + 32767 - j.priority into v_lane
          from {{.schema}}.job j
         where j.job_id = hold_place.job_id
         limit 1;
        exit when v_lane is null;

        select 'ready', r.lane, r.position, coalesce(r.token, 0), coalesce(r.attempt, 0), coalesce(r.failed, 0), coalesce(r.lost, 0),
            r.expires_at
          into place, lane, place_at, token, attempt, failed, lost, expires_at
          from {{.schema}}.ready r
         where r.lane = v_lane and r.position = hold_place.job_id
           for update;
        exit when found;
        select 'ready', r.lane, r.position, r.token, r.attempt, r.failed, r.lost, r.expires_at
          into place, lane, place_at, token, attempt, failed, lost, expires_at
          from {{.schema}}.ready r
         where r.job_id = hold_place.job_id and r.position <> r.job_id
           for update;
        exit when found;
        if hold_place.any_state then
            select 'leased', l.lane, l.token, l.attempt, l.failed, l.lost, l.job_expires_at,
                l.leased_at, l.worker_id
              into place, lane, token, attempt, failed, lost, expires_at, leased_at, worker_id
              from {{.schema}}.leased l
             where l.job_id = hold_place.job_id
               for update;
            exit when found;
            select 'dead', v_lane, d.token, d.attempt, d.failed, d.lost
              into place, lane, token, attempt, failed, lost
              from {{.schema}}.dead d
             where d.job_id = hold_place.job_id
               for update;
            exit when found;
        else
            select 'leased' into place from {{.schema}}.leased l where l.job_id = hold_place.job_id;
            exit when found;
            select 'dead' into place from {{.schema}}.dead d where d.job_id = hold_place.job_id;
            exit when found;
        end if;
        select 'scheduled', s.lane, s.due_at, s.token, s.attempt, s.failed, s.lost, s.expires_at
          into place, lane, due_at, token, attempt, failed, lost, expires_at
          from {{.schema}}.scheduled s
         where s.job_id = hold_place.job_id
           for update;
        exit when found;
        select 'waiting', w.lane, w.position, w.token, w.attempt, w.failed, w.lost, w.expires_at, w.holder
          into place, lane, place_at, token, attempt, failed, lost, expires_at, holder
          from {{.schema}}.waiting w
         where w.job_id = hold_place.job_id
           for update;
        exit when found;
        select 'finished' into place
          from {{.schema}}.finished f
         where f.job_id = hold_place.job_id
         limit 1;
        exit when found;
    end loop;
    -- A snapshot older than a compaction sees a table empty.
    if place is null and v_lane is not null
        and {{template "internal/one_snapshot.sql"}}
    then
        raise exception 'could not tell in this snapshot where job % stands', hold_place.job_id
            using errcode = '40001', hint = 'Try the transaction again.';
    end if;
end
$$;
comment on function {{.schema}}.hold_place(bigint, boolean) is
    'Finds where a job stands and locks its row there.';
