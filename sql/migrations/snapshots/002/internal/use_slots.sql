-- Writes into slots of a limit who took them; the rows that this replaces go. The caller holds their locks.
-- tokens: of the leases; for the rate of a group as slot_start wants them.
-- Index: limit_slot_idx.
create or replace function {{.schema}}.use_slots(holder bigint, slots int[], job_ids bigint[], tokens bigint[])
returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    delete from {{.schema}}.limit_slot d
     where d.version = any (array(
        select x.version
          from unnest(use_slots.slots) u(slot)
         cross join lateral (
            select x.version from {{.schema}}.limit_slot x
             where x.holder = use_slots.holder and x.slot = u.slot
             order by x.version desc
             limit 1) x));
    insert into {{.schema}}.limit_slot (holder, slot, job_id, token, taken_at)
    select use_slots.holder, u.slot, coalesce(u.job_id, 0), coalesce(u.token, 0), clock_timestamp()
      from unnest(use_slots.slots, use_slots.job_ids, use_slots.tokens) u(slot, job_id, token)
     where u.slot is not null;
end
$$;
comment on function {{.schema}}.use_slots(bigint, int[], bigint[], bigint[]) is 'Notes who took slots of a limit.';
