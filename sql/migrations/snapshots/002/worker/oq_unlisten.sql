-- The end of oq_listen: no more wake-ups, and producers no longer pay for one.
-- Calls: check_queue_name, own_locks. Locks: gives back sleeper shared (session).
create or replace function {{.api_schema}}.oq_unlisten(
    queue_name text
)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
begin
    perform check_queue_name(oq_unlisten.queue_name);
    execute format('unlisten %I', 'oq:' || oq_unlisten.queue_name);
    select q.queue_id into v_queue_id
      from queue q
     where q.queue_name = oq_unlisten.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    v_queue_id := coalesce(v_queue_id, hashtextextended(oq_unlisten.queue_name collate "C", 0) & 140737488355327);
    if v_queue_id & 2147483647 = any (own_locks('sleeper')) then
        perform pg_advisory_unlock_shared(
            hashtext('{{.schema}}:sleeper'), (v_queue_id & 2147483647)::int);
    end if;
end
$$;
comment on function {{.api_schema}}.oq_unlisten(text) is
'The end of oq_listen: this session is not woken for the queue any more.
As with oq_listen a rollback does not take the mark back: the session would listen without it, and not be
woken, so call it outside a transaction.';
