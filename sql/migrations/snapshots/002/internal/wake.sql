-- Notifies the sleepers of a queue. Its commit waits for those of all others that notify: see wakeup_notify.
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
