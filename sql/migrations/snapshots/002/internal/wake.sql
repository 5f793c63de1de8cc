-- Notifies the sleepers of a queue. The caller has just found that there are some: wake_ready in pg_locks, an
-- enqueue by nobody_sleeps, which tries their lock.
-- A full notification queue would fail the caller's commit: then polling has to do.
create or replace function {{.schema}}.wake(queue_name text)
returns void
language plpgsql
as $$
begin
    if pg_notification_queue_usage() < 0.5 then
        perform pg_notify('oq:' || queue_name, '');
    end if;
end
$$;
comment on function {{.schema}}.wake(text) is 'Notifies the sleepers of a queue.';
