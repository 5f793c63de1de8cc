-- Before the commit of a transaction that wakes sleepers. Commits that notify wait for each other, in all of the cluster, each
-- for the disk of the one before: with one worker asleep eight producers were a sixth as fast. So while two are on their
-- way nobody else joins them: who sleeps is about to look, and the next tick wakes whom they miss. Not at once in the
-- enqueue, whose transaction may stay open: it would keep the others from notifying for as long.
-- Calls: wake. Locks: notifier (try, till the commit is visible).
create or replace function {{.schema}}.wakeup_notify()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
begin
    if not {{template "internal/ticking.sql" .schema}}
        or pg_try_advisory_xact_lock(hashtext('{{.schema}}:notifier'), 0)
        or pg_try_advisory_xact_lock(hashtext('{{.schema}}:notifier'), 1)
    then
        perform wake(new.queue_name);
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
