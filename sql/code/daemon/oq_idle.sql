-- What has come due since this session's last tick, such as a retry of less than a second or what an ack left to the tick; and
-- whether a wake-up was left to it within a second, by a transaction that may still be committing. Not whether positions were
-- drawn: a tick in the middle of an enqueue's transaction raises the marks over its jobs, so that they come with the next one.
-- Index: scheduled_due_idx, todo_group_idx, todo_link_idx.
create or replace function {{.api_schema}}.oq_idle()
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
declare
    v_tick  text := current_setting('{{.schema}}.ticked', true);
    v_now   timestamptz := clock_timestamp();
    v_since timestamptz;
begin
    if v_tick ~ '^[0-9]{1,18}$'
        and pg_sequence_last_value('unsaid'::regclass) - (date_part('epoch', v_now) * 1000)::bigint not between -1000 and 1000
    then
        v_since := timestamptz 'epoch' + v_tick::bigint * interval '1 millisecond';
        return not exists (select from scheduled s where s.due_at > v_since and s.due_at <= v_now)
            and not exists (select from todo t where t.kind = 'group' and t.due_at > v_since and t.due_at <= v_now)
            and not exists (select from todo t where t.kind <> 'group' and t.due_at > v_since and t.due_at <= v_now);
    end if;
    return false;
end
$$;
comment on function {{.api_schema}}.oq_idle() is
'Has nothing come due or been left to the tick since this session''s last?
The daemon asks every 50 ms while the next tick is not due: false, and it ticks at once. Not
for what was enqueued, which needs no tick, and not for a lease that ends.';
