-- Raises OQ006 where the queue holds max_depth ready, scheduled and waiting jobs. Only queues with that option
-- pay for it: it counts, up to the limit. Concurrent producers may pass it together. Of scheduled and waiting it looks at the
-- rows of every queue, 10 ms for 100,000: an index by lane would cost each retry 5 % and each delayed job of a bulk 12 %.
-- Index: mark_lane_idx, ready_pk; scheduled and waiting are scanned.
create or replace function {{.schema}}.check_depth(queue_id bigint, queue_name text, max_depth int, adds int)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_count bigint;
begin
    select count(*) into v_count
      from (
        select 1
          from (select m.lane, max(m.low) as low
                  from {{.schema}}.mark m
                 where m.lane between check_depth.queue_id << 16 and (check_depth.queue_id << 16) + 65535
                 group by m.lane) k
         cross join lateral (
            select 1 from {{.schema}}.ready r
             where r.lane = k.lane and r.position >= k.low
             limit check_depth.max_depth) r
         limit check_depth.max_depth) x;
    if v_count + adds <= check_depth.max_depth then
        select v_count + count(*) into v_count
          from (select 1 from {{.schema}}.scheduled s
                 where s.lane between check_depth.queue_id << 16 and (check_depth.queue_id << 16) + 65535
                 limit check_depth.max_depth) x;
    end if;
    if v_count + adds <= check_depth.max_depth then
        select v_count + count(*) into v_count
          from (select 1 from {{.schema}}.waiting w
                 where w.lane between check_depth.queue_id << 16 and (check_depth.queue_id << 16) + 65535
                 limit check_depth.max_depth) x;
    end if;
    if v_count + adds > check_depth.max_depth then
        raise exception 'queue % is full', quote_literal(check_depth.queue_name)
            using errcode = 'OQ006', detail = format('max_depth is %s', check_depth.max_depth),
            hint = 'Try again when jobs are done, or raise max_depth by oq_create_queue.';
    end if;
end
$$;
comment on function {{.schema}}.check_depth(bigint, text, int, int) is 'Raises OQ006 where the queue is full.';
