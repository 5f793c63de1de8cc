-- Jobs of groups that are put off by hand give their slot up, so that others of their group go on. They are
-- counted in it still, or the caller's try for the lock was refused and they keep it: nobody takes it
-- at the same time. A thousand groups: one whose lock is not tried stands still until its job is due.
-- Calls: group_slots. Locks: groups (try, ascending). Index: job_N_pk, group_slot_idx.
create or replace function {{.schema}}.leave_slots(job_ids bigint[])
returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
    select g.group_id, s.slot, 0, s.low, clock_timestamp()
      from (
        select i.job_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 as group_id
          from unnest(leave_slots.job_ids) i(job_id)
         cross join lateral (
            select j.queue_id, j.group_key from {{.schema}}.job j where j.job_id = i.job_id limit 1) j
         where exists (
            select from {{.schema}}.group_slot x
             where x.group_id = hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 and x.job_id = i.job_id)
         order by 2
         limit 1000) g
     cross join lateral (
        select s.slot, s.low from {{.schema}}.group_slots(g.group_id, 1) s where s.job_id = g.job_id) s
     where pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (g.group_id & 2147483647)::int);
end
$$;
comment on function {{.schema}}.leave_slots(bigint[]) is 'Jobs that are put off by hand give up the slot of their group.';
