-- Wakes the sleepers of a queue before the commit (wakeup_notify). The caller has just found that there are some, by
-- nobody_sleeps, which tries their lock. Said once while it is the same queue.
-- Locks: row exclusive on wakeup.
create or replace function {{.schema}}.wake_at_commit(queue_name text)
returns void
language plpgsql
as $$
begin
    if current_setting('{{.schema}}.waking', true) is distinct from wake_at_commit.queue_name collate "C" then
        perform set_config('{{.schema}}.waking', wake_at_commit.queue_name, true);
        insert into {{.schema}}.wakeup (queue_name) values (wake_at_commit.queue_name);
    end if;
end
$$;
comment on function {{.schema}}.wake_at_commit(text) is 'Wakes the sleepers of a queue before the commit.';
