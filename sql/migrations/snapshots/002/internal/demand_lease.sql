-- May the caller work on the leases of this restricted queue? True, or 42501.
-- Calls: demand. Index: queue_id_idx.
create or replace function {{.schema}}.demand_lease(queue_id bigint)
returns boolean
language plpgsql
as $$
begin
    perform {{.schema}}.demand(demand_lease.queue_id, (
        select q.queue_name from {{.schema}}.queue q
         where q.queue_id = demand_lease.queue_id
         order by q.version desc, q.row_id
         limit 1), 'consume');
    return true;
end
$$;
comment on function {{.schema}}.demand_lease(bigint) is 'Raises 42501 unless the caller may consume from the queue.';
