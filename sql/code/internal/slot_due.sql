-- When the next slot of a rate is free.
-- Index: limit_slot_idx.
create or replace function {{.schema}}.slot_due(holder bigint, slots int, time_window interval)
returns timestamptz
language plpgsql
as $$
#variable_conflict use_column
begin
    return (
        select min(coalesce(s.taken_at, '-infinity')) + slot_due.time_window
          from generate_series(0, slot_due.slots - 1) n(slot)
          left join lateral (
            select x.taken_at from {{.schema}}.limit_slot x
             where x.holder = slot_due.holder and x.slot = n.slot
             order by x.version desc
             limit 1) s on true);
end
$$;
comment on function {{.schema}}.slot_due(bigint, int, interval) is 'When the next slot of a rate is free.';
