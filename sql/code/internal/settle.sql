-- Jobs of linked queues that are over for now: completed, dead, cancelled, expired or deleted. What they
-- held is given on. Their place is gone already, their job rows are still there.
-- Index: job_N_pk.
create or replace function {{.schema}}.settle(job_ids bigint[])
returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    -- SETTLE GROUPS: what a group does when one of its jobs ends.
    -- SETTLE DEPENDENTS: what dependents and batches do when a job ends.
    return;
end
$$;
comment on function {{.schema}}.settle(bigint[]) is 'Gives on what jobs held that are over.';
