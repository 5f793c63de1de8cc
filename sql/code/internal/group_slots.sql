-- The slots of a group as they are: who was let in last, and whether that job still counts. A job counts
-- while it is ready or leased; where one runs at a time also while it waits for a retry, so that nothing
-- overtakes it. A job that got another slot since counts there.
-- Index: group_slot_idx, leased_pk, ready_returned_idx, scheduled_pk.
create or replace function {{.schema}}.group_slots(group_id bigint, max_running int)
returns table (slot int, job_id bigint, low bigint, version bigint, busy boolean)
language plpgsql
as $$
#variable_conflict use_column
begin
    return query
    select n.slot, s.job_id, s.low, s.version,
        s.job_id is not null
            and row_number() over (partition by s.job_id order by s.version desc) = 1
            and (exists (select from {{.schema}}.leased l where l.job_id = s.job_id)
                or exists (
                    select from {{.schema}}.ready r where r.job_id = s.job_id and r.position <> r.job_id)
                or group_slots.max_running = 1
                    and exists (select from {{.schema}}.scheduled d where d.job_id = s.job_id))
      from generate_series(0, greatest(group_slots.max_running - 1, (
        select x.slot from {{.schema}}.group_slot x
         where x.group_id = group_slots.group_id
         order by x.slot desc
         limit 1))) n(slot)
      left join lateral (
        select x.job_id, x.low, x.version from {{.schema}}.group_slot x
         where x.group_id = group_slots.group_id and x.slot = n.slot
         order by x.version desc
         limit 1) s on true;
end
$$;
comment on function {{.schema}}.group_slots(bigint, int) is 'The slots of a group and who holds them.';
