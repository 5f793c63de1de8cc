-- The slots of a group as they are: who was let in last, and whether that job still counts. A job counts
-- while it is ready or leased; where one runs at a time also while it waits for a retry, so that nothing
-- overtakes it. A job that got another slot since counts there.
-- Index: group_slot_idx, leased_pk, ready_returned_idx, scheduled_pk.
create or replace function {{.schema}}.group_slots(group_id bigint, max_running int)
returns table (slot int, job_id bigint, low bigint, busy boolean)
language plpgsql
as $$
#variable_conflict use_column
begin
    return query
    with recursive s as (
        -- From slot to slot, each entered at its newest row: backwards would walk those that are gone.
        (select x.slot, x.job_id, x.low, x.version from {{.schema}}.group_slot x
          where x.group_id = group_slots.group_id
          order by x.slot, x.version desc
          limit 1)
        union all
        select n.slot, n.job_id, n.low, n.version
          from s
         cross join lateral (
            select x.slot, x.job_id, x.low, x.version from {{.schema}}.group_slot x
             where x.group_id = group_slots.group_id and x.slot > s.slot
             order by x.slot, x.version desc
             limit 1) n)
    select s.slot, s.job_id, s.low,
        row_number() over (partition by s.job_id order by s.version desc) = 1
            and coalesce(
                -- Not by exists, which may become a hash of a whole table.
                (select true from {{.schema}}.leased l where l.job_id = s.job_id limit 1),
                (select true from {{.schema}}.ready r
                  where r.job_id = s.job_id and r.position <> r.job_id limit 1),
                (select group_slots.max_running = 1 from {{.schema}}.scheduled d
                  where d.job_id = s.job_id limit 1), false)
      from s;
end
$$;
comment on function {{.schema}}.group_slots(bigint, int) is 'The slots of a group and who holds them.';
