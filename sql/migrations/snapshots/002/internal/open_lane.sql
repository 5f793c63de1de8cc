-- Gives a lane its first mark. Two transactions may both do it: the higher mark of a lane counts.
-- Index: mark_lane_idx.
create or replace function {{.schema}}.open_lane(lane bigint)
returns void
language plpgsql
as $$
begin
    -- A look at SERIALIZABLE would make two first uses fail each other.
    if current_setting('transaction_isolation') = 'serializable'
        or (select m.lane from {{.schema}}.mark m where m.lane = open_lane.lane order by m.lane, m.low desc limit 1) is null
    then
        insert into {{.schema}}.mark (lane, low) values (open_lane.lane, 0);
    end if;
end
$$;
comment on function {{.schema}}.open_lane(bigint) is 'Gives a lane its first mark.';
