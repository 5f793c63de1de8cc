-- Wakes whoever sleeps on a queue with ready jobs, however lately it was done before.
-- Calls: wake_ready.
create or replace function {{.api_schema}}.oq_wake()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
begin
    return wake_ready(false);
end
$$;
comment on function {{.api_schema}}.oq_wake() is
'Wakes sleeping workers of queues that have ready jobs.
Returns how many queues.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
