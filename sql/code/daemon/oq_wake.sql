-- Notifies queues that have both ready jobs and sleepers: the wake-up that slipped between "the queue
-- is empty" and "asleep", and whatever was promoted or reaped. One NOTIFY a queue.
-- Calls: queue_gate, wake. Index: mark_lane_idx, ready_pk.
create or replace function {{.api_schema}}.oq_wake()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_keys  bigint[];
    v_name  text;
    v_count bigint := 0;
begin
    v_keys := array(
        select distinct k.objid::bigint
          from pg_locks k
         where k.locktype = 'advisory' and k.granted and k.objsubid = 2 and k.mode = 'ShareLock'
           and k.database = (select d.oid from pg_database d where d.datname = current_database())
           and k.classid = (hashtext('{{.schema}}:sleeper')::bigint & 4294967295)::oid);
    if cardinality(v_keys) = 0 then
        return 0;
    end if;
    for v_name in
        select q.queue_name
          from queue_now q
         where q.queue_id & 2147483647 = any (v_keys) and not q.paused
           and (not q.limited or not exists (select from queue_gate(q.queue_id)))
           and exists (
            select from (
                select m.lane, max(m.low) as low
                  from mark m
                 where m.lane between q.queue_id << 16 and (q.queue_id << 16) + 65535
                 group by m.lane) k
             cross join lateral (
                select from ready r where r.lane = k.lane and r.position >= k.low limit 1) r)
    loop
        perform wake(v_name);
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;
comment on function {{.api_schema}}.oq_wake() is
'Wakes sleeping workers of queues that have ready jobs.
Returns how many queues.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
