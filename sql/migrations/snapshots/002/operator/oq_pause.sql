-- Nothing is leased from a paused queue. What is held goes on.
-- Calls: set_paused.
-- Locks, Index: as set_paused.
create or replace function {{.api_schema}}.oq_pause(queue_name text)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
begin
    perform set_paused(oq_pause.queue_name, true);
end
$$;
comment on function {{.api_schema}}.oq_pause(text) is
'No more leases from this queue, until oq_resume.
Producers go on, and so do workers with what they hold. Errors: OQ001, OQ003.';
