-- One leader among many daemons, for economy only: every duty is safe to run twice. A leader whose last
-- tick is five seconds old is frozen or gone: then everybody leads until it beats again.
-- Locks: leader (session, try).
create or replace function {{.api_schema}}.oq_lead()
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
begin
    if 0 = any (own_locks('leader')) then
        return true;
    end if;
    return pg_try_advisory_lock(hashtext('{{.schema}}:leader'), 0)
        or pg_sequence_last_value('beat'::regclass)
            < (date_part('epoch', clock_timestamp()) * 1000)::bigint - 5000;
end
$$;
comment on function {{.api_schema}}.oq_lead() is
'Is this session to run the duties?
True for the holder of the leader''s lock.
The lock ends with its session. Also true for the others while the leader has not ticked for 5 s.';
