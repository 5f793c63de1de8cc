-- Why a job is not running: its gates one by one, in the order in which they bind, asked of what the engine
-- itself asks. A closed gate says whom or what the job waits for, and until when where that is known.
-- Calls: oq_jobs (for the right to see it), queue_gate, group_gate, group_gates, lanes,
-- oq_workers. Index: as these, mark_lane_idx, ready_pk.
create or replace function {{.api_schema}}.oq_explain(job_id bigint)
returns table (step text, verdict text, detail text, retry_at timestamptz)
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now    timestamptz := clock_timestamp();
    v_beat   timestamptz := timestamptz 'epoch'
        + pg_sequence_last_value('beat'::regclass) * interval '1 millisecond';
    v_job    record;
    v_queue  bigint;
    v_lane   bigint;
    v_group  bigint;
    v_gates  text[];
    v_gate   record;
    v_first  text;
    v_why    text;
    v_when   timestamptz;
    v_count  bigint;
    v_sleeps boolean;
    v_seen   record;
begin
    select j.* into v_job from {{.api_schema}}.oq_jobs j where j.job_id = oq_explain.job_id;
    if v_job.job_id is null then
        return;
    end if;
    select q.queue_id into v_queue from queue q where q.queue_name = v_job.queue_name limit 1;
    v_lane := (v_queue << 16) + 32767 - v_job.priority;
    v_group := hashtextextended(v_job.group_key, v_queue) & 9223372036854775807;

    -- Over, or running: the other gates are behind it.
    step := 'finished';
    if v_job.state in ('completed', 'cancelled', 'expired', 'dead') then
        verdict := 'closed';
        detail := format('%s since %s%s%s', v_job.state, v_job.finished_at, ' (' || v_job.reason || ')',
            ': ' || left(v_job.error, 200));
        return next;
        step := 'verdict';
        verdict := case v_job.state when 'dead' then 'dead' else 'finished' end;
        detail := case v_job.state
            when 'completed' then 'it has run'
            when 'expired' then 'its time to live passed while no worker held it'
            else format('it runs again only by: select oq_redrive(%L, ''{"state": "%s", "job_ids": [%s]}'')',
                v_job.queue_name, v_job.state, v_job.job_id) end;
        return next;
        return;
    end if;
    if v_job.state <> 'leased' and v_job.expires_at <= v_now then
        verdict := 'closed';
        detail := format('its time to live passed at %s; the next tick, or a lease that comes to it, ends it',
            v_job.expires_at);
        return next;
        step := 'verdict';
        verdict := 'finished';
        detail := 'its time to live passed while no worker held it';
        return next;
        return;
    end if;
    verdict := 'open';
    return next;
    step := 'leased';
    if v_job.state = 'leased' then
        verdict := 'closed';
        detail := format('attempt %s, held by %s since %s', v_job.attempt,
            coalesce('worker ' || v_job.worker_id, 'a worker without a name'), v_job.leased_at);
        retry_at := v_job.lease_expires_at;
        return next;
        step := 'verdict';
        verdict := 'running';
        detail := case when v_job.lease_expires_at > v_now
            then 'a worker has it; without an ack or heartbeat it is ready again when the lease ends'
            else 'its lease has ended; the next tick, or a lease that finds too little, takes it back' end;
        return next;
        return;
    end if;
    return next;

    -- In this order: what a closed gate hides need not be looked at by who opens it.
    v_gates := array['restored', 'paused', 'scheduled', 'parent', 'group', 'group_throttled', 'group_rate', 'limit',
        'throttled', 'rate'];
    for v_gate in
        select n.gate, n.nth, x.gate is not null as closed, x.detail, x.until
          from unnest(v_gates) with ordinality n(gate, nth)
          left join (
            select case g.gate when 'max_running' then 'limit' else g.gate end as gate, case g.gate
                    when 'paused' then format('select oq_resume(%L)', v_job.queue_name)
                    when 'max_running' then 'held by jobs ' || array_to_string(g.held_by[1:10], ', ')
                        || case when cardinality(g.held_by) > 10
                            then format(' and %s more', cardinality(g.held_by) - 10) else '' end
                    when 'rate' then 'the rate of the queue is used up'
                    else 'the queue is throttled' end as detail,
                g.until
              from queue_gate(v_queue) g
            union all
            select 'restored', 'this is a copy of another cluster; if that one is stopped: select oq_adopt()', null
             where (select i.system_identifier from instance i)
                is distinct from (select c.system_identifier from pg_control_system() c)
            union all
            select 'scheduled', case
                    when exists (
                        select from throttled t
                         where t.queue_id = v_queue and t.until = v_job.run_at
                           and t.group_id = v_group)
                        then 'its group is throttled'
                    when v_job.group_key is not null and exists (
                        select from group_gates(v_group, v_queue) g where g.gate = 'rate' and g.until = v_job.run_at)
                        then 'the rate of its group is used up'
                    when v_job.failures > 0 then format('attempt %s was not the last: its retry', v_job.attempt)
                    else 'runs at a later time' end,
                v_job.run_at
             where v_job.state = 'scheduled' and v_job.run_at > v_now
            union all
            -- Whenever it is due, it goes no further before.
            select 'group_' || g.gate, case g.gate when 'throttled' then 'the group is throttled'
                    else 'the rate of the group is used up' end, g.until
              from group_gates(v_group, v_queue) g
             where v_job.state = 'scheduled' and v_job.group_key is not null and g.until > v_job.run_at
            union all
            -- Let in by somebody who did not know of it: the tick parks it.
            select 'group_throttled', 'the group is throttled', g.until
              from group_gates(v_group, v_queue) g
             where v_job.state = 'ready' and v_job.group_key is not null and g.gate = 'throttled'
            union all
            -- What the caller may not see holds it all the same.
            select 'parent', 'waits for jobs '
                    || string_agg(format('%s (%s)', p.job_id, coalesce(p.state, 'hidden')), ', ' order by p.job_id)
                        filter (where p.nth <= 10)
                    || case when count(*) > 10 then ' and more' else '' end, null
              from (
                select d.parent_id as job_id, p.state, row_number() over () as nth
                  from job j
                 cross join lateral unnest(j.depends_on) d(parent_id)
                 -- As a value of each: as a join it would be with all that the view has.
                 cross join lateral (
                    select (select p.state from {{.api_schema}}.oq_jobs p where p.job_id = d.parent_id) as state
                    offset 0) p
                 where j.job_id = v_job.job_id
                   and case when p.state is null then exists (
                            select from dependency e
                             where e.parent_id = d.parent_id and e.child_id = v_job.job_id)
                        else p.state not in ('completed', 'cancelled', 'expired', 'dead') end
                 limit 11) p
             where v_job.state = 'waiting'
            having count(*) > 0
            union all
            select case when g.gate in ('throttled', 'rate') then 'group_' || g.gate else 'group' end,
                string_agg(case g.gate
                    when 'line' then 'behind jobs ' || array_to_string(g.held_by, ', ')
                    when 'throttled' then 'the group is throttled'
                    when 'rate' then 'the rate of the group is used up'
                    else 'held by jobs ' || array_to_string(g.held_by[1:10], ', ')
                        || case when cardinality(g.held_by) > 10
                            then format(' and %s more', cardinality(g.held_by) - 10) else '' end end, '; '), max(g.until)
              from group_gate(v_job.job_id) g
             where v_job.state = 'waiting'
             group by 1) x on x.gate = n.gate
         order by n.nth
    loop
        step := v_gate.gate;
        verdict := case when v_gate.closed then 'closed' else 'open' end;
        detail := v_gate.detail;
        retry_at := case when isfinite(v_gate.until) then v_gate.until end;
        return next;
        if v_gate.closed then
            v_first := coalesce(v_first, step);
            v_why := coalesce(v_why, detail);
            -- Known only if each closed gate says when it opens.
            v_when := case when retry_at is null then 'infinity' else greatest(v_when, retry_at) end;
        end if;
    end loop;

    step := 'line';
    verdict := 'open';
    detail := null;
    retry_at := null;
    if v_job.state = 'ready' then
        select count(*) into v_count
          from lanes(v_queue << 16, v_lane) k
         cross join lateral (
            select 1 from ready r
             where r.lane = k.lane and r.position >= k.low
               and (k.lane < v_lane or r.position < coalesce((
                    select p.position from ready p where p.job_id = v_job.job_id and p.position <> p.job_id limit 1),
                    v_job.job_id))
             limit 10000) r;
        detail := case when v_count = 0 then 'the next' when v_count = 1 then '1 job before it'
            when v_count < 10000 then v_count || ' jobs before it'
            else '10000 jobs and more before it' end;
    end if;
    return next;

    -- Somebody to run it: asleep on the queue, or seen with a lease of it.
    step := 'worker';
    v_sleeps := exists (
        select from pg_locks k
         where k.locktype = 'advisory' and k.granted and k.objsubid = 2 and k.mode = 'ShareLock'
           and k.database = (select d.oid from pg_database d where d.datname = current_database())
           and k.classid = (hashtext('{{.schema}}:sleeper')::bigint & 4294967295)::oid
           and k.objid::bigint = v_queue & 2147483647);
    select w.worker_id, w.last_leased_at into v_seen
      from {{.api_schema}}.oq_workers w
     where w.queue_name = v_job.queue_name
     order by w.last_leased_at desc
     limit 1;
    verdict := case when v_sleeps or v_seen.last_leased_at is not null then 'open' else 'unknown' end;
    detail := case when v_sleeps then 'a worker waits for jobs of this queue'
        when v_seen.last_leased_at is not null then format('%s leased a job of this queue at %s',
            coalesce('worker ' || v_seen.worker_id, 'a worker'), v_seen.last_leased_at)
        else 'no worker holds or awaits a job of this queue: one that polls leaves no trace' end;
    return next;

    step := 'verdict';
    retry_at := nullif(v_when, 'infinity');
    if v_first is null then
        verdict := case when v_job.state = 'ready' then 'ready' else 'due' end;
        detail := case when v_job.state <> 'ready' then
                format('nothing holds it any more: the next tick, or a %slease that finds too little, makes it ready',
                    case when v_job.state = 'waiting' or v_job.group_key is not null then 'READ COMMITTED ' end)
            when v_sleeps or v_seen.last_leased_at is not null then 'it runs when a worker comes to it'
            else 'it runs when a worker leases from this queue' end;
    else
        verdict := 'held';
        detail := v_first || coalesce(': ' || v_why, '');
    end if;
    if v_beat not between v_now - interval '5 seconds' and v_now + interval '5 seconds' then
        detail := format('%s; no tick%s: is the daemon running?', detail,
            case when v_beat > timestamptz 'epoch' then ' since ' || v_beat else ' ever' end);
    end if;
    return next;
end
$$;
comment on function {{.api_schema}}.oq_explain(bigint) is
'Says why a job is not running.
A row for each gate, in the order in which they bind. step: finished, leased, restored, paused, scheduled, parent,
group, group_throttled, group_rate, limit, throttled, rate, line, worker, and last verdict. verdict: open,
closed or unknown; in the last row finished, dead, running, held (detail: by the first closed gate), due or
ready. retry_at: when a gate opens; in the last row when the job can run, where that is known. No rows for a
job that is unknown, or not for the caller.';
