-- Raises the low marks of lanes of jobs, each to its first row. A mark that would hardly move stays: a hundred dead rows
-- cost a lease next to nothing. What was drawn since is spread over the lanes that are empty and in use; an empty one
-- that had no job for ten seconds has no dead rows either, and the lease that finds its next job raises it.
-- last_drawn: the position up to which all are drawn; cap: no mark is raised above it; capped: as in advance. Returns how many moved,
-- and the lanes whose mark stands above the lowest open epoch, as they are from here on: nobody else raises one as far.
-- Calls: lanes. Locks: mark and ready rows (skip locked). Index: ready_pk, mark_lane_idx, epoch_open_epoch_idx.
create or replace function {{.schema}}.raise_lanes(
    capped        boolean,
    cap           bigint,
    low_epoch     bigint,
    current_epoch bigint,
    last_drawn    bigint,
    out moved      bigint,
    out late_lanes bigint[],
    out late_lows  bigint[]
)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_least bigint;
    v_rows  record;
    v_stuck bigint;
    v_free  bigint;
    v_mark  bigint;
begin
    moved := 0;
    v_least := (
        select min(e.lo) from {{.schema}}.epoch_open e
         where e.epoch >= raise_lanes.low_epoch and e.epoch < raise_lanes.current_epoch);
    for v_rows in
        with k as materialized (select * from {{.schema}}.lanes()),
        looked as materialized (
            select k.lane, k.low, k.seen_at, r.position is null as is_empty,
                -- A time in the future is that of a clock that was ahead.
                k.raised_at not between v_now - interval '1 second' and v_now + interval '5 seconds' as is_old, r.locked,
                r.position is not null
                    or k.seen_at between v_now - interval '10 seconds' and v_now + interval '5 seconds' as in_use,
                least(r.position, raise_lanes.last_drawn + 1, raise_lanes.cap) as new_low
              from k
              left join lateral (
                select r.position, r.xmax <> xid '0' as locked from {{.schema}}.ready r
                 where r.lane = k.lane and r.position >= k.low
                 order by r.position
                 limit 1) r on true
        ), first as materialized (
            select l.*, case when l.is_empty then count(*) filter (where l.is_empty and l.in_use) over () else 1 end as spread
              from looked l
        ), raised as (
            insert into {{.schema}}.mark (lane, low, seen_at)
            select f.lane, f.new_low, case when f.is_empty then f.seen_at else v_now end from first f
             where f.in_use
               and (f.new_low >= f.low + 100 * f.spread or f.new_low > f.low and f.is_old)
            returning lane
        ), dropped as (
            delete from {{.schema}}.mark m
             where m.ctid = any (array(
                select x.ctid
                  from first f
                 cross join lateral (
                    select x.ctid from {{.schema}}.mark x
                     where x.lane = f.lane and x.low = f.low
                       for update skip locked) x
                 -- By case, lest it become a join, of all lanes with all that have moved.
                 where case when f.lane in (select n.lane from raised n) then true end))
        )
        select f.lane, f.low, f.new_low, f.moved, f.held
          from (
            select f.lane, f.low, f.new_low, f.is_old and f.new_low = f.low and f.locked as held,
                f.lane in (select n.lane from raised n) as moved
              from first f
            offset 0) f
         where f.moved or f.held or f.low > v_least
    loop
        if v_rows.moved then
            moved := moved + 1;
            v_rows.low := v_rows.new_low;
        end if;
        if v_rows.low > v_least then
            late_lanes := late_lanes || v_rows.lane::bigint;
            late_lows := late_lows || v_rows.low::bigint;
        end if;
        continue when v_rows.moved or not v_rows.held or raise_lanes.capped;
        -- The first row has been there for a second. If an open lease holds it, the mark passes over
        -- what is locked and remembers it.
        v_stuck := null;
        v_free := null;
        select r.position into v_stuck
          from {{.schema}}.ready r
         where r.lane = v_rows.lane and r.position >= v_rows.low
         order by r.position
         limit 1;
        continue when v_stuck is null;
        select r.position into v_free
          from {{.schema}}.ready r
         where r.lane = v_rows.lane and r.position >= v_rows.low
         order by r.position
         limit 1
           for update skip locked;
        continue when v_free = v_stuck;
        with held as (
            select r.position from {{.schema}}.ready r
             where r.lane = v_rows.lane and r.position >= v_rows.low
               and r.position < coalesce(v_free, raise_lanes.last_drawn + 1)
             order by r.position
             limit 10000
        ), noted as (
            insert into {{.schema}}.passed (lane, position)
            select v_rows.lane, h.position from held h
        )
        insert into {{.schema}}.mark (lane, low)
        select v_rows.lane, case when count(*) = 10000 then max(h.position) + 1
            else least(coalesce(v_free, raise_lanes.last_drawn + 1), raise_lanes.last_drawn + 1) end
          from held h
        having count(*) > 0
        returning low into v_mark;
        if found and v_rows.low > v_least then
            late_lows[cardinality(late_lows)] := v_mark;
        elsif found and v_mark > v_least then
            late_lanes := late_lanes || v_rows.lane::bigint;
            late_lows := late_lows || v_mark;
        end if;
        moved := moved + 1;
    end loop;
end
$$;
comment on function {{.schema}}.raise_lanes(boolean, bigint, bigint, bigint, bigint) is 'Raises the low marks of lanes of jobs.';
