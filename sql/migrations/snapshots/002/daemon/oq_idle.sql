-- What has come due since this session's last tick, such as a retry of less than a second or what an ack left to the tick; and
-- whether a wake-up was left to it within a second, by a transaction that may still be committing. Not whether positions were
-- drawn: a tick in the middle of an enqueue's transaction raises the marks over its jobs, so that they come with the next one.
-- Where nothing has moved for ten seconds nothing is left to the tick either (led), and it is asked less often.
-- Index: scheduled_due_idx, todo_group_idx, todo_link_idx.
create or replace function {{.api_schema}}.oq_idle()
returns bigint
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
        return case
            when exists (select from scheduled s where s.due_at > v_since and s.due_at <= v_now)
                or exists (select from todo t where t.kind = 'group' and t.due_at > v_since and t.due_at <= v_now)
                or exists (select from todo t where t.kind <> 'group' and t.due_at > v_since and t.due_at <= v_now)
            then 0
            when {{template "internal/quiet.sql" dict "schema" .schema "ms" "v_tick::bigint"}} then 250
            else 50 end;
    end if;
    return 0;
end
$$;
comment on function {{.api_schema}}.oq_idle() is
'How many milliseconds the daemon may sleep on; 0: something needs a tick.
That has come due since this session''s last tick, or was left to it. The daemon asks while the next tick is
not due. 50 ms, or 250 where nothing has moved for ten seconds. Not for what was enqueued, which needs no tick, and not for a
lease that ends.';
