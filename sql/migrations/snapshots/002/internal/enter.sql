-- Makes this transaction a member of the current epoch, before it draws a position or reads the
-- clock for a due time. The second read: an epoch that moved between read and lock may be resolved.
-- A transaction older than a second enters once: every later position is above the first epoch's
-- lo as well, so one that writes for an hour holds some locks, not one an epoch. The note of it is a
-- setting that ends, like the lock, with the transaction or the savepoint.
-- Locks: epoch shared, till the end of the transaction (memory only). Index: epoch_open_epoch_idx.
create or replace function {{.schema}}.enter()
returns boolean
language plpgsql
as $$
declare
    v_epoch bigint;
    v_noted text;
begin
    if clock_timestamp() > now() + interval '1 second' then
        -- The setting is anybody's to make, so it is only believed of an epoch that is open and locked.
        v_noted := current_setting('{{.schema}}.entered', true);
        if v_noted ~ '^[0-9]{1,18}$' then
            v_epoch := v_noted::bigint;
            if pg_advisory_xact_lock_shared(
                    hashtext('{{.schema}}:epoch'), (v_epoch & 2147483647)::int) is not null
                and exists (select from {{.schema}}.epoch_open e where e.epoch = v_epoch and not e.departed)
            then
                return true;
            end if;
        end if;
    end if;
    for i in 1..1000 loop
        v_epoch := pg_sequence_last_value('{{.schema}}.epoch'::regclass);
        if pg_advisory_xact_lock_shared(hashtext('{{.schema}}:epoch'), (v_epoch & 2147483647)::int) is not null
            and v_epoch = pg_sequence_last_value('{{.schema}}.epoch'::regclass)
        then
            if clock_timestamp() > now() + interval '1 second' then
                perform set_config('{{.schema}}.entered', v_epoch::text, true);
            end if;
            return true;
        end if;
    end loop;
    raise exception 'the epoch moved a thousand times while it was being locked' using errcode = '40001';
end
$$;
comment on function {{.schema}}.enter() is 'Makes the transaction a member of the current epoch.';
