-- Everything that can keep a lease from going ahead, checked in order. False: there is nothing to lease.
-- Calls: check_queue_name, demand, verify_instance.
create or replace function {{.schema}}.may_lease(
    queue_name text, worker_id text, lease_seconds int, max_jobs int,
    queue_id bigint, restricted boolean, paused boolean
)
returns boolean
language plpgsql
as $$
#variable_conflict use_variable
begin
    if max_jobs is null or max_jobs not between 1 and 10000 then
        perform {{.schema}}.fail('max_jobs', max_jobs::text, 'between 1 and 10000');
    elsif lease_seconds not between 1 and 604800 then
        perform {{.schema}}.fail('lease_seconds', lease_seconds::text, 'between 1 and 604800');
    elsif length(worker_id) > 200 then
        perform {{.schema}}.fail('worker_id', worker_id, 'at most 200 characters');
    elsif queue_id is null then
        perform {{.schema}}.check_queue_name(queue_name);
        return false;
    end if;
    if restricted then
        perform {{.schema}}.demand(queue_id, queue_name, 'consume');
    end if;
    if paused then
        return false;
    end if;
    perform {{.schema}}.verify_instance();
    return true;
end
$$;
comment on function {{.schema}}.may_lease(text, text, int, int, bigint, boolean, boolean) is
'Checks the arguments of a lease; false where there is nothing to lease.';
