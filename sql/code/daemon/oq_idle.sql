-- Whether the last position is that of this session's last tick, and no wake-up was left to the tick within a second, by a
-- transaction that may still be committing. Two sequences: no more, since the leader asks twenty times a second.
create or replace function {{.api_schema}}.oq_idle()
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
begin
    return coalesce(current_setting('{{.schema}}.ticked_at', true) = coalesce(pg_sequence_last_value('position'::regclass), 0)::text, false)
        and pg_sequence_last_value('unsaid'::regclass) - (date_part('epoch', clock_timestamp()) * 1000)::bigint
            not between -1000 and 1000;
end
$$;
comment on function {{.api_schema}}.oq_idle() is
'Has nothing moved since this session''s last oq_tick?
The daemon asks every 50 ms while the next tick is not due: false, and it ticks at once. A
job that was enqueued, put back or promoted moves; an ack, or what comes due, does not.';
