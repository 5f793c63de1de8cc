-- Ready rows of this very transaction that marks went by since it put them there: invisible to
-- whoever raised the marks, and swept up only after the commit. A lease in the same transaction moves them
-- to the end of their lanes, where it finds them. The caller has entered an epoch.
-- Calls: own_locks, lanes. Locks: ready rows (skip locked). Index: epoch_open_epoch_idx, ready_pk.
create or replace function {{.schema}}.take_up_own(queue_id bigint, wanted int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_own   bigint[] := {{.schema}}.own_locks('epoch');
    v_epoch bigint := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
    v_lo    bigint;
    v_count bigint;
begin
    select min(e.lo) into v_lo
      from {{.schema}}.epoch_open e
     where e.epoch >= v_epoch
       and e.epoch & 2147483647 = any (v_own);
    with own as (
        delete from {{.schema}}.ready r
         where r.ctid = any (array(
            select x.ctid
              from {{.schema}}.lanes(take_up_own.queue_id << 16, (take_up_own.queue_id << 16) + 65535) k
             cross join lateral (
                select r.ctid from {{.schema}}.ready r
                 where r.lane = k.lane and r.position > v_lo and r.position < k.low
                   and r.position <= v_lo + 200000
                 order by r.position
                 limit take_up_own.wanted
                   for update skip locked) x))
           and not exists (
            select from {{.schema}}.passed p where p.lane = r.lane and p.position = r.position)
        returning r.*
    )
    insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
    select o.lane, nextval('{{.schema}}.position'), o.job_id, o.token, o.attempt, o.failed, o.lost, o.expires_at
      from (select * from own order by lane, position) o;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function {{.schema}}.take_up_own(bigint, int) is
    'Moves rows of this transaction below the marks to the end of their lanes.';
