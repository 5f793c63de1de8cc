-- Notifies queues that have both ready jobs and sleepers: the wake-up that slipped between "the queue
-- is empty" and "asleep", and whatever was promoted or reaped. One NOTIFY a queue; its sleepers may not
-- want what is ready, or may be frozen: paced, as long as the same job stays the first, the session says it
-- again after pauses that grow from 20 ms to a second.
-- Calls: queue_now, queue_gate, wake. Index: mark_lane_idx, ready_pk.
create or replace function {{.schema}}.wake_ready(paced boolean)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_keys  bigint[];
    v_ms    bigint := (date_part('epoch', clock_timestamp()) * 1000)::bigint;
    -- By queue: the first job, the pause, and when it ends.
    v_said  jsonb := coalesce(nullif(current_setting('{{.schema}}.woken', true), ''), '{}')::jsonb;
    v_say   jsonb := jsonb '{}';
    v_pause int;
    v_queue record;
    v_count bigint := 0;
begin
    v_keys := array(
        select distinct k.objid::bigint
          from pg_locks k
         where k.locktype = 'advisory' and k.granted and k.objsubid = 2 and k.mode = 'ShareLock'
           and k.database = (select d.oid from pg_database d where d.datname = current_database())
           and k.classid = (hashtext('{{.schema}}:sleeper')::bigint & 4294967295)::oid);
    if cardinality(v_keys) > 0 then
        for v_queue in
            select q.queue_id, q.queue_name, f.first
              from {{.schema}}.queue_now q
             cross join lateral (
                select k.lane || ' ' || r.position as first
                  from (
                    select m.lane, max(m.low) as low
                      from {{.schema}}.mark m
                     where m.lane between q.queue_id << 16 and (q.queue_id << 16) + 65535
                     group by m.lane) k
                 cross join lateral (
                    select r.position from {{.schema}}.ready r
                     where r.lane = k.lane and r.position >= k.low
                     order by r.position
                     limit 1) r
                 order by k.lane
                 limit 1) f
             where q.queue_id & 2147483647 = any (v_keys) and not q.paused
               and (not q.limited or not exists (select from {{.schema}}.queue_gate(q.queue_id)))
        loop
            v_pause := 20;
            if v_said -> v_queue.queue_id::text ->> 0 = v_queue.first then
                if (v_said -> v_queue.queue_id::text ->> 2)::bigint > v_ms and paced then
                    v_say := v_say || jsonb_build_object(v_queue.queue_id, v_said -> v_queue.queue_id::text);
                    continue;
                end if;
                v_pause := least(2 * (v_said -> v_queue.queue_id::text ->> 1)::int, 1000);
            end if;
            v_say := v_say
                || jsonb_build_object(v_queue.queue_id, jsonb_build_array(v_queue.first, v_pause, v_ms + v_pause));
            perform {{.schema}}.wake(v_queue.queue_name);
            v_count := v_count + 1;
        end loop;
    end if;
    if v_say <> v_said then
        perform set_config('{{.schema}}.woken', v_say::text, false);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.wake_ready(boolean) is 'Notifies queues that have ready jobs and sleepers.';
