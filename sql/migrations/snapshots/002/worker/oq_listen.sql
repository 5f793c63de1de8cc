-- LISTEN, and the shared session lock by which producers see that somebody sleeps. The lock is tried
-- for at most 50 ms: where it can't be had, the worker is not woken and its polling has to do. A queue that is not
-- there is not made, so that a wrong name leaves nothing: its id is the hash that open_queue will give it.
-- Calls: check_queue_name, demand, own_locks. Locks: sleeper shared (session). Index: queue_name_idx.
create or replace function {{.api_schema}}.oq_listen(
    queue_name text
)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_restricted boolean;
begin
    perform check_queue_name(oq_listen.queue_name);
    select q.queue_id, q.restricted into v_queue_id, v_restricted
      from queue q
     where q.queue_name = oq_listen.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    v_queue_id := coalesce(v_queue_id, hashtextextended(oq_listen.queue_name collate "C", 0) & 140737488355327);
    if v_restricted then
        perform demand(v_queue_id, oq_listen.queue_name, 'consume');
    end if;
    execute format('listen %I', 'oq:' || oq_listen.queue_name);
    -- Held once however often it is asked for. A probing producer holds it for an instant.
    if v_queue_id & 2147483647 = any (own_locks('sleeper')) then
        return;
    end if;
    for i in 1..50 loop
        exit when pg_try_advisory_lock_shared(
            hashtext('{{.schema}}:sleeper'), (v_queue_id & 2147483647)::int);
        perform pg_sleep(0.001);
    end loop;
end
$$;
comment on function {{.api_schema}}.oq_listen(text) is
'Lets this session be woken when the queue gets work.
LISTEN "oq:<queue>", and the sleeper''s mark. The queue is not created. Then lease once more,
wait for a notification or a poll time-out, and oq_unlisten while busy.
Needs a session of its own: behind a transaction pooler, poll. The sleeper''s mark is the session''s: a
rollback does not take it back, so call it outside a transaction.';
