-- One leader among many daemons, for economy only: every duty is safe to run twice. A leader whose last
-- tick is five seconds old is frozen or gone: then everybody leads until it ticks again. Only its own ticks
-- count for that, which oq_tick knows by the setting: else those of who stands in would send him away.
-- A time in the future is that of a clock that was ahead. Calls: own_locks. Locks: leader (session, try).
create or replace function {{.api_schema}}.oq_lead()
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_ms bigint := (date_part('epoch', clock_timestamp()) * 1000)::bigint;
begin
    if 0 = any (own_locks('leader')) then
        perform set_config('{{.schema}}.leads', '1', false);
        return true;
    elsif pg_try_advisory_lock(hashtext('{{.schema}}:leader'), 0) then
        perform set_config('{{.schema}}.leads', '1', false), setval('led', v_ms);
        return true;
    end if;
    perform set_config('{{.schema}}.leads', '', false);
    return pg_sequence_last_value('led'::regclass) not between v_ms - 5000 and v_ms + 5000;
end
$$;
comment on function {{.api_schema}}.oq_lead() is
'Is this session to run the duties?
True for the holder of the leader''s lock.
The lock ends with its session. Also true for the others while the leader has not ticked for 5 s.';
