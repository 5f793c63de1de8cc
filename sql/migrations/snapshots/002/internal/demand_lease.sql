-- May the caller work on the leases of this restricted queue? True, or 42501, which does not name the
-- queue: the caller has named a job only.
-- Calls: demand.
create or replace function {{.schema}}.demand_lease(queue_id bigint)
returns boolean
language plpgsql
as $$
begin
    perform {{.schema}}.demand(demand_lease.queue_id, null, 'consume');
    return true;
end
$$;
comment on function {{.schema}}.demand_lease(bigint) is 'Raises 42501 unless the caller may consume from the queue.';
