-- Notifies the sleepers of a queue. The caller has just found that there are some, by
--     case when pg_try_advisory_lock(k) then pg_advisory_unlock(k) else false end
-- in one expression, so that no cancel falls between and leaks the lock.
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
