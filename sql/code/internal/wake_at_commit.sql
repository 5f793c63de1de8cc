-- Wakes the sleepers of a queue, if there are any, before the commit (wakeup_notify). Noted once a transaction and queue:
-- the names are listed between commas, which none has; a list that is too long begins anew. bound: the queue has limits or is paused.
-- Locks: row exclusive on wakeup.
create or replace function {{.schema}}.wake_at_commit(queue_id bigint, queue_name text, bound boolean)
returns void
language plpgsql
as $$
declare
    v_noted text;
begin
    if strpos(coalesce(current_setting('{{.schema}}.waking', true), ''), ',' || wake_at_commit.queue_name || ',') = 0 then
        v_noted := current_setting('{{.schema}}.waking', true);
        v_noted := set_config('{{.schema}}.waking',
            case when length(v_noted) between 1 and 4000 then v_noted else ',' end || wake_at_commit.queue_name || ',', true);
        insert into {{.schema}}.wakeup (queue_id, queue_name, bound)
        values (wake_at_commit.queue_id, wake_at_commit.queue_name, wake_at_commit.bound);
    end if;
end
$$;
comment on function {{.schema}}.wake_at_commit(bigint, text, boolean) is
    'Wakes the sleepers of a queue, if there are any, before the commit.';
