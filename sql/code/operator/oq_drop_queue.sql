-- Hides a queue and resets its options. The row stays: an open transaction may have enqueued into
-- it, and its job, once committed, makes it a queue again and is not orphaned. What is finished is
-- hidden by created_at, and goes with its generation.
-- Calls: require_queue, delete_jobs.
-- Locks: queue (advisory), schedule rows, rows of ready, scheduled, leased and dead (skip locked), the queue row.
-- Index: queue_id_idx, ready_pk, dead_queue_idx.
create or replace function {{.api_schema}}.oq_drop_queue(
    queue_name text,
    force      boolean default false
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set jit = off
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_first    bigint;
    v_last     bigint;
    v_ids      bigint[];
    v_row_id   bigint;
    v_now      timestamptz;
begin
    if force is null then
        perform fail('force', null, 'true or false');
    end if;
    perform pg_advisory_xact_lock(
        hashtext('{{.schema}}:queue'), hashtext(oq_drop_queue.queue_name));
    v_queue_id := require_queue(oq_drop_queue.queue_name);
    v_first := v_queue_id << 16;
    v_last := v_first + 65535;
    if not force and (
        exists (select from ready r where r.lane between v_first and v_last)
        or exists (select from dead d where d.queue_id = v_queue_id)
        or exists (select from leased l where l.lane between v_first and v_last)
        or exists (select from scheduled s where s.lane between v_first and v_last))
    then
        raise exception 'queue % holds unfinished jobs', quote_literal(oq_drop_queue.queue_name)
            using errcode = '55000',
            detail = 'Ready, scheduled, leased and dead jobs are unfinished.',
            hint = format('To lose them, run: select oq_drop_queue(%L, force => true);',
                oq_drop_queue.queue_name);
    end if;

    if not force and exists (select from schedule s where s.queue_name = oq_drop_queue.queue_name) then
        raise exception 'queue % has schedules', quote_literal(oq_drop_queue.queue_name)
            using errcode = '55000',
            hint = format('End them by oq_unschedule, or drop them too: select oq_drop_queue(%L, force => true);',
                oq_drop_queue.queue_name);
    end if;

    if force then
        delete from schedule s where s.queue_name = oq_drop_queue.queue_name;
        with doomed as materialized (
            select r.ctid, r.job_id from ready r
             where r.lane between v_first and v_last
             order by r.job_id
               for update skip locked
        ), gone as (
            delete from ready r
             where r.ctid = any (array(select d.ctid from doomed d))
            returning r.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
        perform delete_jobs(v_ids);
        with doomed as materialized (
            select s.ctid, s.job_id from scheduled s
             where s.lane between v_first and v_last
             order by s.job_id
               for update skip locked
        ), gone as (
            delete from scheduled s
             where s.ctid = any (array(select d.ctid from doomed d))
            returning s.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
        perform delete_jobs(v_ids);
        with doomed as materialized (
            select l.ctid, l.job_id from leased l
             where l.lane between v_first and v_last
             order by l.job_id
               for update skip locked
        ), gone as (
            delete from leased l
             where l.ctid = any (array(select d.ctid from doomed d))
            returning l.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
        perform delete_jobs(v_ids);
        with doomed as materialized (
            select d.ctid, d.job_id from dead d
             where d.queue_id = v_queue_id
             order by d.job_id
               for update skip locked
        ), gone as (
            delete from dead d
             where d.ctid = any (array(select x.ctid from doomed x))
            returning d.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
        perform delete_jobs(v_ids);
    end if;

    select q.row_id into v_row_id
      from queue q
     where q.queue_id = v_queue_id
     order by q.version desc, q.row_id
     limit 1
       for update;
    v_now := clock_timestamp();
    update queue q
       set version = q.version + 1, paused = default, restricted = default, lease_seconds = default,
           max_retries = default, max_lost_leases = default, max_payload_bytes = default,
           max_depth = default, keep = default, notify = default, retention = default,
           retry = default, created_at = v_now, dropped_at = v_now
     where q.row_id = v_row_id;
    delete from queue_grant g where g.queue_id = v_queue_id;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_drop_queue(text, boolean) is
'Drops a queue with its finished jobs; true, or an error.
Refuses (55000) while jobs are ready, scheduled, leased or dead in it, or schedules enqueue into it,
unless force => true deletes them; a worker that holds one finds its lease lost. A job that an open
transaction is enqueueing or leasing at that moment is not lost: the queue is there again, with default
options, when it commits. Options and grants go. Errors: OQ001, OQ003.';
