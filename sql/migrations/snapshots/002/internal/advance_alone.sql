-- The advance of a lease, where no daemon does it: at most once a second, by whoever comes first. The lock
-- is the session's and given back in the expression that does the work: the worker's transaction may
-- stay open for an hour and must keep nobody else from it. So its marks are capped.
-- Calls: advance, own_locks. Locks: advance (session, try, until the end of the call).
create or replace function {{.schema}}.advance_alone()
returns bigint
language plpgsql
as $$
declare
    v_epoch bigint := pg_sequence_last_value('{{.schema}}.epoch'::regclass);
    v_count bigint := 0;
begin
    if {{template "internal/ticking.sql" .schema}}
        or {{template "internal/one_snapshot.sql"}}
        or exists (
            select from {{.schema}}.epoch_open e
             where e.epoch = v_epoch
               and e.opened_at between clock_timestamp() - interval '1 second' and clock_timestamp() + interval '5 seconds')
    then
        return 0;
    end if;
    begin
        -- Between statements a cancel could fall and leak the lock.
        v_count := case
            when pg_try_advisory_lock(hashtext('{{.schema}}:advance'), 0)
            then {{.schema}}.advance(true)
                + (not pg_advisory_unlock(hashtext('{{.schema}}:advance'), 0))::int
            else 0 end;
    exception when others or query_canceled then
        if 0 = any ({{.schema}}.own_locks('advance')) then
            perform pg_advisory_unlock(hashtext('{{.schema}}:advance'), 0);
        end if;
        raise;
    end;
    return v_count;
end
$$;
comment on function {{.schema}}.advance_alone() is 'The advance of a lease, where no daemon does it.';
