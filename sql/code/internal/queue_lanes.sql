-- The lanes of a queue with their newest marks, as lanes() has those of all. Index: mark_lane_idx.
create or replace function {{.schema}}.queue_lanes(queue_id bigint)
returns table (lane bigint, low bigint, raised_at timestamptz)
language plpgsql
stable
as $$
#variable_conflict use_column
begin
    return query
    with recursive k as (
        (select m.lane, m.low, m.raised_at from {{.schema}}.mark m
          where m.lane >= queue_lanes.queue_id << 16 and m.lane <= (queue_lanes.queue_id << 16) + 65535
          order by m.lane, m.low desc
          limit 1)
        union all
        select n.lane, n.low, n.raised_at
          from k
         cross join lateral (
            select m.lane, m.low, m.raised_at from {{.schema}}.mark m
             where m.lane > k.lane and m.lane <= (queue_lanes.queue_id << 16) + 65535
             order by m.lane, m.low desc
             limit 1) n
    )
    select k.lane, k.low, k.raised_at from k;
end
$$;
comment on function {{.schema}}.queue_lanes(bigint) is 'The lanes of a queue with their newest marks.';
