-- One advance at a time, until its commit is visible: else another could resolve an epoch without seeing
-- the marks that this one has raised over its members' rows.
-- Calls: verify_instance, advance. Locks: advance (try, until the end of the transaction).
create or replace function {{.api_schema}}.oq_advance()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
begin
    perform verify_instance('oq_advance');
    if not pg_try_advisory_xact_lock(hashtext('{{.schema}}:advance'), 0) then
        return 0;
    end if;
    return advance(false);
end
$$;
comment on function {{.api_schema}}.oq_advance() is
'Raises the low marks and sweeps up late commits; returns how much moved.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once. Commit at once:
while the transaction is open nobody else moves the low marks.';
