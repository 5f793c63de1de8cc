-- Before the commit of a transaction that wakes sleepers. Commits that notify wait for each other, in all of the cluster, each
-- for the disk of the one before: with one worker asleep eight producers were a sixth as fast. So while two are on their
-- way nobody else joins them: who sleeps is about to look, and the next tick wakes whom they miss. Not at once in the
-- enqueue, whose transaction may stay open: it would keep the others from notifying for as long. Where the queue's gate is
-- closed nobody is woken either: its workers would look in vain, and who opens it wakes them.
-- Calls: queue_gate, wake. Locks: sleeper (try, dropped at once); notifier (try, till the commit is visible).
create or replace function {{.schema}}.wakeup_notify()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
declare
    v_do text;
begin
    -- Left to the leader where one looks every 50 ms (oq_idle): it then ticks on for a second, as this commit may take long.
    -- In one expression, as far as most come: each costs these commits a microsecond or more.
    v_do := case
        when {{template "internal/nobody_sleeps.sql" dict "schema" .schema "queue" "new.queue_id"}}
        then ''
        when pg_sequence_last_value('led'::regclass) - (date_part('epoch', clock_timestamp()) * 1000)::bigint not between -2000 and 5000
            or pg_sequence_last_value('led'::regclass) % 2 = 1
        then 'wake'
        when not pg_try_advisory_xact_lock(hashtext('{{.schema}}:notifier'), 0)
            and not pg_try_advisory_xact_lock(hashtext('{{.schema}}:notifier'), 1)
        then case
            when pg_sequence_last_value('unsaid'::regclass) - (date_part('epoch', clock_timestamp()) * 1000)::bigint between -100 and 0
            then '' else 'leave' end
        when new.bound then 'look' else 'wake' end;
    if v_do <> '' then
        if v_do = 'look' then
            v_do := case when exists (select from queue_gate(new.queue_id)) then 'leave' else 'wake' end;
        end if;
        if v_do = 'leave' then
            perform setval('unsaid', (date_part('epoch', clock_timestamp()) * 1000)::bigint);
        else
            perform wake(new.queue_name);
        end if;
    end if;
    return null;
end
$$;
comment on function {{.schema}}.wakeup_notify() is 'Wakes the sleepers of a queue before the commit.';

do $$
begin
    if not exists (
        select from pg_trigger t
         where t.tgrelid = '{{.schema}}.wakeup'::regclass and t.tgname = 'wakeup_notify')
    then
        create constraint trigger wakeup_notify after insert on {{.schema}}.wakeup
            deferrable initially deferred
            for each row execute function {{.schema}}.wakeup_notify();
    end if;
    -- In a session that loads data with session_replication_role = replica, too.
    alter table {{.schema}}.wakeup enable always trigger wakeup_notify;
end
$$;
