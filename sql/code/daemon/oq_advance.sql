-- One advance at a time. The lock is the session's and given back at the end of the call, so that a
-- worker whose lease advanced, and whose transaction stays open, keeps nobody else from it.
-- Calls: advance. Locks: advance (session, try, until the end of the call).
create or replace function {{.api_schema}}.oq_advance()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
declare
    v_locked boolean := false;
    v_count  bigint := 0;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'oq_advance needs a READ COMMITTED transaction' using errcode = '25001';
    end if;
    perform verify_instance();
    begin
        v_locked := pg_try_advisory_lock(hashtext('{{.schema}}:advance'), 0);
        if v_locked then
            v_count := advance();
        end if;
    exception when others or query_canceled then
        if v_locked then
            perform pg_advisory_unlock(hashtext('{{.schema}}:advance'), 0);
        end if;
        raise;
    end;
    if v_locked then
        perform pg_advisory_unlock(hashtext('{{.schema}}:advance'), 0);
    end if;
    return v_count;
end
$$;
comment on function {{.api_schema}}.oq_advance() is
'Raises the low marks and sweeps up late commits; returns how much moved.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
