-- The lanes from first to last, all where nothing is said, each with its newest mark, by jumping from lane to lane
-- in the index: superseded marks and dead rows are not walked. Index: mark_lane_idx.
create or replace function {{.schema}}.lanes(first bigint default 0, last bigint default 9223372036854775807)
returns table (lane bigint, low bigint, raised_at timestamptz, seen_at timestamptz)
language plpgsql
stable
as $$
#variable_conflict use_column
begin
    return query
    with recursive k as (
        (select m.lane, m.low, m.raised_at, m.seen_at from {{.schema}}.mark m
          where m.lane >= lanes.first and m.lane <= lanes.last
          order by m.lane, m.low desc
          limit 1)
        union all
        select n.lane, n.low, n.raised_at, n.seen_at
          from k
         cross join lateral (
            select m.lane, m.low, m.raised_at, m.seen_at from {{.schema}}.mark m
             where m.lane > k.lane and m.lane <= lanes.last
             order by m.lane, m.low desc
             limit 1) n
    )
    select k.lane, k.low, k.raised_at, k.seen_at from k;
end
$$;
comment on function {{.schema}}.lanes(bigint, bigint) is 'Lanes with their newest marks.';
