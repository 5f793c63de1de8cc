-- Makes this transaction a member of the current epoch, before it draws a position or reads the
-- clock for a due time. Once a transaction: every later position is above the first epoch's lo as
-- well, so an hour-long transaction holds one lock, not one an epoch. The note of it is a setting
-- that ends, like the lock, with the transaction or the savepoint.
-- The second read: an epoch that moved between read and lock may be resolved already.
-- Locks: epoch shared, till the end of the transaction (memory only).
create or replace function {{.schema}}.enter()
returns void
language plpgsql
as $$
declare
    v_epoch bigint;
    v_none  boolean;
begin
    if coalesce(current_setting('{{.schema}}.entered', true), '') <> '' then
        return;
    end if;
    for i in 1..1000 loop
        v_epoch := pg_sequence_last_value('{{.schema}}.epoch'::regclass);
        v_none := pg_advisory_xact_lock_shared(
            hashtext('{{.schema}}:epoch'), (v_epoch & 2147483647)::int) is null;
        if v_epoch = pg_sequence_last_value('{{.schema}}.epoch'::regclass) then
            v_none := set_config('{{.schema}}.entered', '1', true) is null;
            return;
        end if;
    end loop;
    raise exception 'the epoch moved a thousand times while it was being locked'
        using errcode = '40001';
end
$$;
comment on function {{.schema}}.enter() is 'Makes the transaction a member of the current epoch.';
