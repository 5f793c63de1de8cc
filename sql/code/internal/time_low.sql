-- The low mark of a time lane: -1 scheduled, -2 ttl. No visible row is due before it, but
-- those that members of an unresolved epoch have still to commit. Index: mark_lane_idx.
create or replace function {{.schema}}.time_low(lane bigint)
returns timestamptz
language plpgsql
stable
as $$
begin
    return (
        select timestamptz 'epoch' + m.low * interval '1 microsecond'
          from {{.schema}}.mark m
         where m.lane = time_low.lane
         order by m.lane, m.low desc
         limit 1);
end
$$;
comment on function {{.schema}}.time_low(bigint) is 'The low mark of a time lane.';
