-- When the next slot of a rate is free: no earlier than that where its job has still to begin. Who waits for that
-- looks again soon, but not all the time.
-- Calls: slot_start (groups). Index: limit_slot_idx.
create or replace function {{.schema}}.slot_due(holder bigint, slots int, time_window interval)
returns timestamptz
language plpgsql
as $$
#variable_conflict use_column
begin
    return (
        select min(case when s.slot is null then '-infinity'
                when s.token < 0
                then coalesce({{.schema}}.slot_start(s.job_id, s.token, s.taken_at), clock_timestamp() + interval '20 ms')
                when s.taken_at <= clock_timestamp() + interval '5 seconds' then s.taken_at
                else '-infinity' end) + slot_due.time_window
          from generate_series(0, slot_due.slots - 1) n(slot)
          left join lateral (
            select x.slot, x.job_id, x.token, x.taken_at from {{.schema}}.limit_slot x
             where x.holder = slot_due.holder and x.slot = n.slot
             order by x.version desc
             limit 1) s on true);
end
$$;
comment on function {{.schema}}.slot_due(bigint, int, interval) is 'When the next slot of a rate is free.';
