-- Hides a queue and resets its options. The row stays: an open transaction may have enqueued into
-- it, and its job, once committed, makes it a queue again and is not orphaned. What is finished is
-- hidden by created_at, and goes with its generation.
-- Calls: require_queue, settle, delete_jobs, new_version.
-- Locks: queue (advisory), schedule rows, rows of ready, scheduled, waiting, leased and dead (skip locked), the queue row.
-- Index: queue_id_idx, ready_pk, dead_queue_idx.
create or replace function {{.api_schema}}.oq_drop_queue(
    queue_name text,
    force      boolean default false
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_first    bigint;
    v_last     bigint;
    v_ids      bigint[];
    v_all      bigint[] := array[]::bigint[];
    v_linked   boolean;
    v_row_id   bigint;
    v_now      timestamptz;
begin
    if force is null then
        perform fail('force', null, 'true or false');
    end if;
    perform pg_advisory_xact_lock(
        hashtext('{{.schema}}:queue'), hashtext(oq_drop_queue.queue_name collate "C"));
    v_queue_id := require_queue(oq_drop_queue.queue_name);
    v_first := v_queue_id << 16;
    v_last := v_first + 65535;
    if not force and (
        exists (select from ready r where r.lane between v_first and v_last)
        or exists (select from dead d where d.queue_id = v_queue_id)
        or exists (select from leased l where l.lane between v_first and v_last)
        or exists (select from scheduled s where s.lane between v_first and v_last)
        or exists (select from waiting w where w.lane between v_first and v_last))
    then
        raise exception 'queue % holds unfinished jobs', quote_literal(oq_drop_queue.queue_name)
            using errcode = '55000',
            detail = 'Ready, scheduled, waiting, leased and dead jobs are unfinished.',
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
        v_linked := exists (select from queue q where q.queue_id = v_queue_id and q.linked);
        {{range $place := list "ready" "scheduled" "waiting" "leased" "dead"}}
        with doomed as materialized (
            select p.ctid, p.job_id from {{$place}} p
             where {{if eq $place "dead"}}p.queue_id = v_queue_id{{else}}p.lane between v_first and v_last{{end}}
             order by p.job_id
               for update skip locked
        ), gone as (
            delete from {{$place}} p
             where p.ctid = any (array(select d.ctid from doomed d))
            returning p.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
        v_all := v_all || v_ids;
        {{end}}
        -- Only now: what one of them gives on to another must not make that one ready again.
        if v_linked then
            perform settle(v_all);
        end if;
        perform delete_jobs(v_all);
    end if;

    select q.row_id into v_row_id
      from queue q
     where q.queue_id = v_queue_id
     order by q.version desc, q.row_id
     limit 1
       for update;
    v_now := clock_timestamp();
    perform new_version(v_row_id);
    update queue q
       set paused = default, restricted = default, lease_seconds = default,
           max_retries = default, max_lost_leases = default, max_payload_bytes = default,
           max_depth = default, keep = default, notify = default, retention = default,
           retry = default, limited = default, created_at = v_now, dropped_at = v_now
     where q.row_id = v_row_id;
    delete from limit_rule r where r.queue_id = v_queue_id;
    -- Keys of its jobs, which are over: those of an open transaction stay with what it enqueues.
    delete from unique_key k
     where k.ctid = any (array(
        select x.ctid from unique_key x
         where x.queue_id = v_queue_id
           and {{template "internal/over.sql" dict "schema" .schema "id" "x.job_id"}} is not false
         order by x.key_hash
           for update skip locked));
    delete from throttled t where t.queue_id = v_queue_id;
    delete from queue_grant g where g.queue_id = v_queue_id;
    delete from subscription s where s.queue_id = v_queue_id;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_drop_queue(text, boolean) is
'Drops a queue with its finished jobs; true, or an error.
Refuses (55000) while jobs are ready, scheduled, waiting, leased or dead in it, or schedules enqueue into
it, unless force => true deletes them; a worker that holds one finds its lease lost. A job that an open
transaction is enqueueing or leasing at that moment is not lost: the queue is there again, with default
options, when it commits. Options, grants and subscriptions go. Watches
stay, since they belong to the tables'' owners: until the queue is there again they make no jobs, and
oq_watches says so. Errors: OQ001, OQ003.';
