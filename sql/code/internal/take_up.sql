-- This transaction's own jobs above lo that its lease does not see, since marks went by before its commit. They go to the end of
-- their lanes, as by the tick after it.
-- Calls: enter, lanes. Locks: epoch shared (memory), ready rows (skip locked). Index: ready_pk.
create or replace function {{.schema}}.take_up(queue_id bigint, wanted int, lo bigint)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_count bigint;
begin
    with late as (
        delete from {{.schema}}.ready r
         where r.ctid = any (array(
            select x.ctid
              from {{.schema}}.lanes(take_up.queue_id << 16, (take_up.queue_id << 16) + 65535) k
             cross join lateral (
                select r.ctid from {{.schema}}.ready r
                 where r.lane = k.lane and r.position > take_up.lo and r.position < k.low
                   and r.position <= take_up.lo + 200000
                 order by r.position
                 limit take_up.wanted
                   for update skip locked) x))
           and not exists (
            select from {{.schema}}.passed p where p.lane = r.lane and p.position = r.position)
        returning r.*
    )
    insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
    select l.lane, nextval('{{.schema}}.position'), l.job_id, coalesce(l.token, 0), coalesce(l.attempt, 0),
        coalesce(l.failed, 0), coalesce(l.lost, 0), l.expires_at
      from (select * from late order by lane, position) l
     -- Once, before the first position is drawn, and not where there is none.
     where case when l.job_id > 0 then (select {{.schema}}.enter()) end;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function {{.schema}}.take_up(bigint, int, bigint) is 'Moves ready jobs below the marks to the end of their lanes.';
