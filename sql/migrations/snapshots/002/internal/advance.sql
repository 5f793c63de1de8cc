-- Opens the next epoch, raises the low marks, and resolves closed epochs: what their members committed
-- below a mark goes to the end of its lane. sql/DESIGN.md has the protocol. Another advance may have
-- begun in a transaction that is still open: nothing here waits for its rows.
-- capped: no mark above the lowest lo, below which nothing can be invisible. A mark that commits late
-- is not seen by those who resolve epochs meanwhile; so whoever does not hold the advance lock until
-- its commit is visible must cap.
-- Calls: raise_lanes, raise_time, return_passed, resolve_epochs.
-- Locks: epoch_open rows (skip locked), and as those. Index: epoch_open_epoch_idx, mark_lane_idx.
create or replace function {{.schema}}.advance(capped boolean)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now     timestamptz;
    v_low     bigint;
    v_top     record;
    v_current bigint;
    v_last    bigint;
    v_back    bigint;
    v_cap     bigint;
    v_raised  record;
    v_count   bigint;
begin
    -- Resolved epochs are dead rows while a snapshot is held: none is walked twice. What is committed
    -- as gone stays gone, so the register is right even if this transaction rolls back.
    v_low := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
    -- In a dump the register is younger than the rows: what was open then is looked for once a session, and has no
    -- members any more.
    if current_setting('{{.schema}}.epochs', true) is distinct from '1' then
        update {{.schema}}.epoch_open e
           set epoch = v_low
         where e.ctid = any (array(
            select x.ctid from {{.schema}}.epoch_open x where x.epoch < v_low for update skip locked));
        perform set_config('{{.schema}}.epochs', '1', false);
    end if;
    -- But for what this transaction has deleted itself, in an earlier advance, and may still bring back.
    if not exists (
        select from {{.schema}}.epoch_open e
         where e.epoch >= v_low and e.opened_at >= now())
    then
        v_low := coalesce((
            select e.epoch from {{.schema}}.epoch_open e where e.epoch >= v_low order by e.epoch limit 1), v_low);
        perform setval('{{.schema}}.epoch_low', v_low);
    end if;

    -- An advance that rolled back left epochs without a row, a crash or a dump any number of them: they begin no later
    -- than the one before. A row for the last speaks for all, but for those that somebody holds: it could be resolved
    -- while they are open. Nobody comes to hold another one, since the epoch has moved.
    v_current := pg_sequence_last_value('{{.schema}}.epoch'::regclass);
    select x.epoch, x.lo, x.lo_scheduled, x.lo_ttl into v_top
      from {{.schema}}.epoch_open x
     where x.epoch >= v_low
     order by x.epoch desc, x.lo
     limit 1;
    if v_top.epoch < v_current then
        insert into {{.schema}}.epoch_open (epoch, lo, lo_scheduled, lo_ttl)
        select g.epoch, v_top.lo, v_top.lo_scheduled, v_top.lo_ttl
          from (
            select v_current as epoch
            union
            select v_current - (v_current - k.objid::bigint & 2147483647)
              from pg_locks k
             where k.locktype = 'advisory' and k.objsubid = 2
               and k.database = (select d.oid from pg_database d where d.datname = current_database())
               and k.classid = (hashtext('{{.schema}}:epoch')::bigint & 4294967295)::oid) g
         where g.epoch > v_top.epoch and g.epoch <= v_current;
    end if;

    -- First what was drawn, then the next epoch: whoever draws later is a member of the next one or
    -- keeps an earlier one from being resolved.
    v_last := coalesce(pg_sequence_last_value('{{.schema}}.position'::regclass), 0);
    v_now := clock_timestamp();
    -- A clock that goes back by less than raise_time can see lets rows of time come to stand below their mark: the
    -- first epoch of each second looks for them.
    v_back := case when date_trunc('second', v_now) = (
            select date_trunc('second', e.opened_at) from {{.schema}}.epoch_open e
             where e.epoch >= v_low
             order by e.epoch desc
             limit 1) then 0 else 2500000 end;
    v_current := nextval('{{.schema}}.epoch');
    insert into {{.schema}}.epoch_open (epoch, lo, lo_scheduled, lo_ttl)
    select v_current, v_last,
        greatest((select m.low from {{.schema}}.mark m where m.lane = -1 order by m.lane, m.low desc limit 1) - v_back, 0),
        greatest((select m.low from {{.schema}}.mark m where m.lane = -2 order by m.lane, m.low desc limit 1) - v_back, 0);

    -- What is about to be committed stays above the marks, if it is not too much to walk through: else each import of a few
    -- milliseconds would be swept up after its commit, every row written twice, and behind what came later.
    v_cap := case when capped then (
        select coalesce(min(e.lo) + 1, 0) from {{.schema}}.epoch_open e where e.epoch >= v_low)
        else (
        select min(x.lo) + 1
          from (
            select e.epoch, e.lo, e.departed, lead(e.opened_at) over (order by e.epoch) as closed_at
              from (
                select e.epoch, e.lo, e.departed, e.opened_at
                  from {{.schema}}.epoch_open e
                 where e.epoch >= v_low
                 order by e.epoch desc
                 limit 20) e) x
         where x.epoch < v_current and not x.departed and x.lo > v_last - 10000
           and x.closed_at between v_now - interval '100 milliseconds' and v_now + interval '1 second'
           and {{template "internal/epoch_free.sql" dict "schema" .schema "epoch" "x.epoch"}} is false) end;
    v_raised := {{.schema}}.raise_lanes(capped, v_cap, v_low, v_current, v_last);
    perform {{.schema}}.raise_time(capped);
    v_count := v_raised.moved + {{.schema}}.return_passed();
    return v_count + {{.schema}}.resolve_epochs(v_low, v_current, v_last, v_raised.late_lanes, v_raised.late_lows);
end
$$;
comment on function {{.schema}}.advance(boolean) is 'Raises the low marks and resolves epochs.';
