-- Takes the lock under which the options of a queue change. Producers and workers never take it: they
-- read whichever row counts. Calls with options for the same queue wait for each other, at most as
-- long as the caller's lock_timeout.
-- Locks: queue (advisory, by name, till the end of the transaction).
create or replace function {{.schema}}.change_queue(queue_name text)
returns void
language plpgsql
as $$
begin
    perform {{.schema}}.check_queue_name(queue_name);
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:queue'), hashtext(queue_name));
end
$$;
comment on function {{.schema}}.change_queue(text) is 'Takes the lock under which the options of a queue change.';
