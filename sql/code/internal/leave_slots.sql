-- Jobs of groups that are put off by hand give their slot up, so that others of their group go on. They are
-- counted in it still, or the caller's try for the lock was refused for 100 ms and they keep it: nobody takes it
-- at the same time. A short wait by trying again, as in replace_job: a producer has the lock while it commits, and the group
-- would stand still until the job is due. So does one whose lock is not tried, beyond a thousand groups.
-- Calls: group_slots. Locks: groups (try, ascending), group_slot rows (skip locked). Index: job_N_pk, group_slot_idx.
create or replace function {{.schema}}.leave_slots(job_ids bigint[])
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_jobs   bigint[];
    v_groups bigint[];
begin
    select array_agg(g.job_id order by g.group_id), array_agg(g.group_id order by g.group_id) into v_jobs, v_groups
      from (
        select i.job_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 as group_id
          from unnest(leave_slots.job_ids) i(job_id)
         cross join lateral (
            select j.queue_id, j.group_key from {{.schema}}.job j where j.job_id = i.job_id limit 1) j
         where exists (
            select from {{.schema}}.group_slot x
             where x.group_id = hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 and x.job_id = i.job_id)
         order by 2
         limit 1000) g;
    for v_round in 1..20 loop
        exit when v_jobs is null;
        with tried as materialized (
            select g.job_id, g.group_id,
                pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (g.group_id & 2147483647)::int) as got
              from unnest(v_jobs, v_groups) g(job_id, group_id)
        ), left_ as (
            insert into {{.schema}}.group_slot (group_id, slot, job_id, low, admitted_at)
            select t.group_id, s.slot, 0, s.low, clock_timestamp()
              from tried t
             cross join lateral {{.schema}}.group_slots(t.group_id, 1) s
             cross join lateral (
                -- Under the lock nobody changes it; one that was replaced since an older snapshot is 40001.
                select from {{.schema}}.group_slot x
                 where x.group_id = t.group_id and x.slot = s.slot and x.job_id = t.job_id
                 order by x.version desc
                 limit 1
                   for update skip locked) x
             where t.got and s.job_id = t.job_id
        )
        select array_agg(t.job_id), array_agg(t.group_id) into v_jobs, v_groups from tried t where not t.got;
        if v_jobs is not null and v_round < 20 then
            perform pg_sleep(0.005);
        end if;
    end loop;
end
$$;
comment on function {{.schema}}.leave_slots(bigint[]) is 'Jobs that are put off by hand give up the slot of their group.';
