-- One advance at a time. The lock is the session's and given back at the end of the call, so that a
-- worker whose lease advanced, and whose transaction stays open, keeps nobody else from it.
-- Calls: advance. Locks: advance (session, try, until the end of the call).
create or replace function {{.api_schema}}.oq_advance()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
declare
    v_count bigint;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'oq_advance needs a READ COMMITTED transaction' using errcode = '25001';
    end if;
    perform verify_instance();
    begin
        -- Lock, work and unlock in one expression: between statements a cancel could fall and leak the lock.
        v_count := case
            when pg_try_advisory_lock(hashtext('{{.schema}}:advance'), 0)
            then advance() + (not pg_advisory_unlock(hashtext('{{.schema}}:advance'), 0))::int
            else 0 end;
    exception when others or query_canceled then
        perform pg_advisory_unlock(k.classid::bigint::bit(32)::int, k.objid::bigint::int)
           from pg_locks k
          where k.locktype = 'advisory' and k.pid = pg_backend_pid() and k.granted and k.objsubid = 2
            and k.database = (select d.oid from pg_database d where d.datname = current_database())
            and k.classid = (hashtext('{{.schema}}:advance')::bigint & 4294967295)::oid;
        raise;
    end;
    return v_count;
end
$$;
comment on function {{.api_schema}}.oq_advance() is
'Raises the low marks and sweeps up late commits; returns how much moved.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
