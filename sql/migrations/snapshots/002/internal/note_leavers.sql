-- An epoch that somebody holds for an hour is not resolved for as long, and others may have left it: what they have
-- committed below a mark would wait as well. So each time that the holders of an epoch are others than before, a row is added
-- that has no members, which resolve_epochs takes next, by a snapshot of later. One for all, from where the lowest begins.
-- Only of epochs that are older than 100 ms: by then most have ended. own: those of this transaction, which are left to others.
-- Locks: epoch_open rows (skip locked). Index: epoch_open_epoch_idx.
create or replace function {{.schema}}.note_leavers(low_epoch bigint, current_epoch bigint, own bigint[])
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_until timestamptz := clock_timestamp() - interval '100 ms';
begin
    if not exists (
        select from {{.schema}}.epoch_open e
         where e.epoch >= note_leavers.low_epoch and e.epoch < note_leavers.current_epoch
           and not e.departed and e.opened_at < v_until and not e.epoch & 2147483647 = any (own))
    then
        return;
    end if;
    with held as materialized (
        select k.objid::bigint as key, array_agg(k.virtualtransaction order by k.virtualtransaction) as holders
          from pg_locks k
         where k.locktype = 'advisory' and k.granted and k.objsubid = 2
           and k.database = (select d.oid from pg_database d where d.datname = current_database())
           and k.classid = (hashtext('{{.schema}}:epoch')::bigint & 4294967295)::oid
           and not k.objid::bigint = any (own)
         group by k.objid
    ), changed as materialized (
        select x.ctid as row, h.holders
          from held h
         cross join lateral (
            select x.ctid, x.holders from {{.schema}}.epoch_open x
             where x.epoch >= note_leavers.low_epoch and x.epoch < note_leavers.current_epoch
               and x.epoch & 2147483647 = h.key and not x.departed and x.opened_at < v_until) x
         where x.holders is distinct from h.holders
    ), noted as (
        update {{.schema}}.epoch_open e
           set holders = c.holders
          from changed c
         where e.ctid = c.row and e.ctid = any (array(
            select x.ctid from changed c
             cross join lateral (
                select x.ctid from {{.schema}}.epoch_open x where x.ctid = c.row for update skip locked) x))
        returning e.*
    )
    insert into {{.schema}}.epoch_open (epoch, lo, lo_scheduled, lo_ttl, departed)
    select min(n.epoch), min(n.lo), min(n.lo_scheduled), min(n.lo_ttl), true
      from noted n
    having count(*) > 0;
end
$$;
comment on function {{.schema}}.note_leavers(bigint, bigint, bigint[]) is 'Has looked for what those committed who have left an epoch.';
