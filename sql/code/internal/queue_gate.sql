-- What keeps workers from the ready jobs of a queue, a row for each gate that is closed: paused; throttled,
-- until; max_running, by which jobs, until the first of their leases ends at the latest; rate, until.
-- Calls: limit_of, slot_due. Index: queue_id_idx, limit_slot_idx, leased_pk.
create or replace function {{.schema}}.queue_gate(queue_id bigint)
returns table (gate text, held_by bigint[], until timestamptz)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_limit record;
    v_queue record;
begin
    select q.paused, q.limited into v_queue
      from {{.schema}}.queue q
     where q.queue_id = queue_gate.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if v_queue.paused then
        return query select 'paused'::text, null::bigint[], null::timestamptz;
    end if;
    if v_queue.limited is not true then
        return;
    end if;
    v_limit := {{.schema}}.limit_of(queue_gate.queue_id, 0);
    return query
    select g.gate, g.held_by, g.until
      from (
        select 1 as nth, 'throttled' as gate, null::bigint[] as held_by, v_limit.until as until
         where v_limit.until is not null
        union all
        select 2, 'max_running', array_agg(l.job_id order by l.job_id), min(l.expires_at)
          from (
            with recursive s as (
                (select x.slot, x.job_id, x.token from {{.schema}}.limit_slot x
                  where x.holder = queue_gate.queue_id * 4
                  order by x.slot, x.version desc
                  limit 1)
                union all
                select n.slot, n.job_id, n.token
                  from s
                 cross join lateral (
                    select x.slot, x.job_id, x.token from {{.schema}}.limit_slot x
                     where x.holder = queue_gate.queue_id * 4 and x.slot > s.slot
                     order by x.slot, x.version desc
                     limit 1) n)
            select s.job_id, s.token from s) s
          join {{.schema}}.leased l on l.job_id = s.job_id and l.token = s.token
         where v_limit.max_running is not null
        having count(*) >= v_limit.max_running
        union all
        select 3, 'rate', null, d.due
          from {{.schema}}.slot_due(queue_gate.queue_id * 4 + 1, v_limit.slots, v_limit.time_window) d(due)
         where v_limit.slots is not null and d.due > clock_timestamp()) g
     order by g.nth;
end
$$;
comment on function {{.schema}}.queue_gate(bigint) is 'What keeps workers from the ready jobs of a queue.';
