-- Deletes jobs of one state for good, ids ascending. Finished jobs go by themselves after the
-- retention, as whole generations: this is for what must go earlier, row by row.
-- Calls: check_queue_name, demand, settle, settle_parents, delete_jobs.
-- Locks: rows of the state's table by job id (skip locked), job rows.
-- Index: ready_pk, dead_queue_idx, job_N_pk; scheduled, waiting and finished are scanned.
create or replace function {{.api_schema}}.oq_purge(
    queue_name text,
    state      text,
    older_than interval default '0',
    max_jobs   int default null
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue record;
    v_limit int := coalesce(oq_purge.max_jobs, 100000);
    v_until timestamptz;
    v_ids   bigint[];
begin
    perform check_queue_name(oq_purge.queue_name);
    if state is null
        or state not in ('ready', 'scheduled', 'waiting', 'dead', 'completed', 'cancelled', 'expired')
    then
        perform fail('state', state, 'ready, scheduled, waiting, dead, completed, cancelled or expired');
    end if;
    if older_than is null or older_than < interval '0' or older_than > interval '36600 days' then
        perform fail('older_than', older_than::text, 'an interval between 0 and 100 years');
    end if;
    if max_jobs is not null and max_jobs not between 1 and 10000 then
        perform fail('max_jobs', max_jobs::text, 'between 1 and 10000, or null');
    end if;
    -- 0 is all, whatever the clock says.
    v_until := case when older_than = interval '0' then timestamptz 'infinity'
        else clock_timestamp() - older_than end;
    select q.queue_id, q.restricted, q.created_at, q.linked into v_queue
      from queue q
     where q.queue_name = oq_purge.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if v_queue.queue_id is null then
        return 0;
    end if;
    if v_queue.restricted then
        perform demand(v_queue.queue_id, oq_purge.queue_name, 'produce');
    end if;

    case state
    {{range $place := list "ready" "scheduled" "waiting"}}when '{{$place}}' then
        with doomed as materialized (
            select p.ctid, p.job_id
              from {{$place}} p
              join job j on j.job_id = p.job_id
             where p.lane between v_queue.queue_id << 16 and (v_queue.queue_id << 16) + 65535
               and j.created_at <= v_until
             order by p.job_id
             limit v_limit
               for update of p skip locked
        ), gone as (
            delete from {{$place}} p
             where p.ctid = any (array(select d.ctid from doomed d))
            returning p.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
    {{end}}when 'dead' then
        with doomed as materialized (
            select d.ctid, d.job_id
              from dead d
             where d.queue_id = v_queue.queue_id and d.died_at <= v_until
             order by d.job_id
             limit v_limit
               for update skip locked
        ), gone as (
            delete from dead d
             where d.ctid = any (array(select x.ctid from doomed x))
            returning d.job_id
        )
        select array_agg(g.job_id order by g.job_id) into v_ids from gone g;
    else
        -- By job_id, not by ctid, which is another row in another partition.
        v_ids := array(
            select f.job_id
              from finished f
             where f.queue_id = v_queue.queue_id and f.outcome = oq_purge.state::outcome and f.kept
               and f.finished_at >= v_queue.created_at and f.finished_at <= v_until
             order by f.job_id
             limit v_limit
               for update skip locked);
        -- How they ended counts, also where that was left to the next tick.
        if v_queue.linked then
            perform settle_parents(v_ids);
        end if;
        -- That it was completed may be asked by a child that is being enqueued just now: so the row stays, shown to nobody,
        -- until its generation goes. Nothing is left of any other end, which is that of a parent that failed.
        if state = 'completed' then
            update finished f
               set kept = false, attempt = (f.leased_at is not null)::int, worker_id = null, error = null, result = null
             where f.job_id = any (v_ids);
        else
            delete from finished f where f.job_id = any (v_ids);
        end if;
    end case;
    if v_queue.linked and v_ids is not null and state in ('ready', 'scheduled', 'waiting') then
        perform settle(v_ids);
    end if;
    perform delete_jobs(v_ids);
    return coalesce(cardinality(v_ids), 0);
end
$$;
comment on function {{.api_schema}}.oq_purge(text, text, interval, int) is
'Deletes jobs of one state for good; returns how many.
state: ready, scheduled, waiting, dead, completed, cancelled or expired. older_than: since they were enqueued
(ready, scheduled, waiting), died or ended. max_jobs: 1 to 10000, those that were enqueued first, whenever they
ended; null: as many as 100000, so call it until it returns 0. Jobs that somebody is touching are left.
An unknown queue is 0. Errors: OQ001.';
