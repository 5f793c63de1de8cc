-- Wakes the sleepers of a queue, if there are any: for calls that make many jobs ready.
-- Calls: queue_now, wake_at_commit. Locks: sleeper (try, dropped at once). Index: queue_id_idx.
create or replace function {{.schema}}.wake_sleepers(queue_id bigint)
returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    if {{template "internal/to_wake.sql" dict "schema" .schema "queue" "wake_sleepers.queue_id"}} then
        perform {{.schema}}.wake_at_commit(q.queue_id, q.queue_name, q.limited or q.paused)
           from {{.schema}}.queue_now q
          where q.queue_id = wake_sleepers.queue_id and q.notify = 'wake';
    end if;
end
$$;
comment on function {{.schema}}.wake_sleepers(bigint) is
    'Wakes the sleepers of a queue, if there are any.';
