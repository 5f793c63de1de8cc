-- Raises the low mark of a lane to its first visible row, or behind the last position drawn where it
-- has none: read before the snapshot that looks for rows. Never above the lowest lo of the open epochs:
-- the worker's transaction may commit long after they were resolved by somebody who can't see this mark.
-- Index: mark_lane_idx, ready_pk, epoch_open_epoch_idx.
create or replace function {{.schema}}.raise_lane(lane bigint)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_last bigint := coalesce(pg_sequence_last_value('{{.schema}}.position'::regclass), 0);
    v_epoch bigint := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
    v_low  bigint;
    v_new  bigint;
begin
    -- A snapshot older than the read above can't tell what is gone.
    if {{template "internal/one_snapshot.sql"}} then
        return;
    end if;
    select m.low into v_low
      from {{.schema}}.mark m
     where m.lane = raise_lane.lane
     order by m.lane, m.low desc
     limit 1;
    select least(v_last + 1, (
            select r.position from {{.schema}}.ready r
             where r.lane = raise_lane.lane and r.position >= v_low
             order by r.position
             limit 1), (
            select coalesce(min(e.lo) + 1, 0) from {{.schema}}.epoch_open e where e.epoch >= v_epoch))
      into v_new;
    if v_new > v_low then
        insert into {{.schema}}.mark (lane, low) values (raise_lane.lane, v_new);
    end if;
end
$$;
comment on function {{.schema}}.raise_lane(bigint) is 'Raises the low mark of a lane to its first visible row.';
