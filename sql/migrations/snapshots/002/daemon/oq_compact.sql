-- Narrow tables that are mostly dead while a held snapshot keeps VACUUM from helping: lock for an
-- instant, take out the few live rows, truncate, put them back. Not MVCC-safe: an older snapshot sees
-- the table empty, which ack, nack, release and heartbeat answer with 40001.
-- Or leased, which is read as a whole each second, when most of it is empty.
-- Or narrow tables whose indexes are all empty pages: before PostgreSQL 16 VACUUM gives none back while anybody
-- holds a snapshot in another database, or a logical slot lags. These are built anew, which old snapshots bear.
-- One a call; where its lock is not had, or it fails, the next is tried, three at most, so that a table that somebody
-- keeps for hours does not keep the others from their turn.
-- And the table of wake-ups, whose rows nobody reads.
-- Calls: verify_instance, rewrite.
-- Locks: access exclusive on one table or its indexes, waited for 20 ms at most, then not again for 5 s.
create or replace function {{.api_schema}}.oq_compact()
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '20ms'
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_table record;
begin
    perform verify_instance('oq_compact');
    -- Further off than it is ever set it is of a clock that was ahead.
    if pg_sequence_last_value('compact_after'::regclass) - (date_part('epoch', v_now) * 1000)::bigint between 1 and 5000
        or not pg_try_advisory_xact_lock(hashtext('{{.schema}}:compact'), 0)
    then
        return 0;
    end if;
    if pg_relation_size('wakeup'::regclass) > 8388608 then
        perform setval('compact_after', (date_part('epoch', v_now) * 1000)::bigint + 5000);
        begin
            -- TRUNCATE refuses a table that has triggers to fire: what this transaction has to say is said now.
            set constraints {{.schema}}.wakeup_notify immediate;
            set constraints {{.schema}}.wakeup_notify deferred;
            lock table wakeup in access exclusive mode;
            truncate wakeup;
            return 1;
        exception when lock_not_available then null;
        end;
    end if;
    for v_table in
        select n.relname, n.dead
          from (
            select c.relname, pg_stat_get_dead_tuples(c.oid) as dead_rows,
                (pg_stat_get_dead_tuples(c.oid) > t.few and pg_stat_get_dead_tuples(c.oid) > 10 * pg_stat_get_live_tuples(c.oid)
                    or c.relname = 'leased' and c.relpages > greatest(8192, pg_stat_get_live_tuples(c.oid) / 8, c.reltuples / 8))
                and pg_stat_get_live_tuples(c.oid) < 500000 as dead, (
                    select sum(i.relpages) from pg_index x join pg_class i on i.oid = x.indexrelid
                     where x.indrelid = c.oid) > greatest(8192, 8 * c.relpages) as hollow
              from (
                select u.name, 200000 as few
                  from unnest(array['ready', 'scheduled', 'waiting', 'leased', 'ttl']) u(name)
                union all
                select u.name, 20000
                  from unnest(array['mark', 'epoch_open', 'passed', 'group_slot', 'limit_slot', 'throttled', 'todo']) u(name)) t
              join pg_class c on c.relnamespace = '{{.schema}}'::regnamespace and c.relname = t.name) n
         where n.dead or n.hollow
         order by n.dead desc, n.dead_rows desc
         limit 3
    loop
        perform setval('compact_after', (date_part('epoch', v_now) * 1000)::bigint + 5000);
        begin
            if v_table.dead then
                perform rewrite(v_table.relname);
            else
                execute format('reindex table {{.schema}}.%I', v_table.relname);
            end if;
            return 1;
        exception
            when lock_not_available then null;
            when others then
                raise warning 'compaction of % failed: % (%)', v_table.relname, sqlerrm, sqlstate;
        end;
    end loop;
    return 0;
end
$$;
comment on function {{.api_schema}}.oq_compact() is
'Gives back the space of dead rows and index pages where VACUUM can''t.
Returns how many tables it rewrote.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
