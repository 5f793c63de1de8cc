-- Lets a paused queue be leased from again.
-- Calls: set_paused, wake_sleepers.
-- Locks, Index: as set_paused.
create or replace function {{.api_schema}}.oq_resume(queue_name text)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
begin
    perform wake_sleepers(set_paused(oq_resume.queue_name, false));
end
$$;
comment on function {{.api_schema}}.oq_resume(text) is
'Leases from this queue again, after oq_pause.
Wakes workers that sleep on it. Errors: OQ001, OQ003.';
