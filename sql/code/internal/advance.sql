-- Opens the next epoch, raises the low marks, and resolves closed epochs: what their members committed
-- below a mark goes to the end of its lane. sql/DESIGN.md has the protocol. Another advance may have
-- begun in a transaction that is still open: nothing here waits for its rows.
-- capped: no mark above the lowest lo, below which nothing can be invisible. A mark that commits late
-- is not seen by those who resolve epochs meanwhile; so whoever does not hold the advance lock until
-- its commit is visible must cap.
-- Calls: raise_time, lanes, own_locks, enter, time_low, promote_due, reap_expired, expire_due.
-- Locks: ready, scheduled, leased, mark, epoch_open and passed rows (skip locked). Index: ready_pk, mark_lane_idx.
create or replace function {{.schema}}.advance(capped boolean)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now       timestamptz;
    v_current   bigint;
    v_low       bigint;
    v_last      bigint;
    v_rows      record;
    v_top       record;
    v_epoch     record;
    v_own       bigint[];
    v_count     bigint := 0;
    v_step      bigint;
    v_left      boolean;
    v_more      boolean;
    v_lane      bigint;
    -- The lanes with a mark above the lowest open epoch, as they are from here on: nobody else raises one as far.
    v_least     bigint;
    v_lanes     bigint[];
    v_lows      bigint[];
    v_mark      bigint;
    v_los       bigint[];
    v_high      bigint;
    v_width     bigint;
    v_since     timestamptz;
    v_from      timestamptz;
    v_until     timestamptz;
    v_end       timestamptz;
    v_first     timestamptz;
    v_span      interval;
    v_last_due  timestamptz;
    v_stuck     bigint;
    v_free      bigint;
    v_back      bigint;
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
    select x.epoch, x.lo, x.lo_scheduled, x.lo_leased, x.lo_ttl into v_top
      from {{.schema}}.epoch_open x
     where x.epoch >= v_low
     order by x.epoch desc, x.lo
     limit 1;
    if v_top.epoch < v_current then
        insert into {{.schema}}.epoch_open (epoch, lo, lo_scheduled, lo_leased, lo_ttl)
        select g.epoch, v_top.lo, v_top.lo_scheduled, v_top.lo_leased, v_top.lo_ttl
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
    insert into {{.schema}}.epoch_open (epoch, lo, lo_scheduled, lo_leased, lo_ttl)
    select v_current, v_last,
        greatest((select m.low from {{.schema}}.mark m where m.lane = -1 order by m.lane, m.low desc limit 1) - v_back, 0),
        greatest((select m.low from {{.schema}}.mark m where m.lane = -2 order by m.lane, m.low desc limit 1) - v_back, 0),
        greatest((select m.low from {{.schema}}.mark m where m.lane = -3 order by m.lane, m.low desc limit 1) - v_back, 0);

    -- Raise. A mark that would hardly move stays: a hundred dead rows cost a lease next to nothing. What was drawn since is
    -- spread over the lanes that are empty and in use; an empty one that had no job for ten seconds has no dead rows either,
    -- and the lease that finds its next job raises it.
    v_least := (
        select min(e.lo) from {{.schema}}.epoch_open e where e.epoch >= v_low and e.epoch < v_current);
    for v_rows in
        with k as materialized (select * from {{.schema}}.lanes()),
        looked as materialized (
            select k.lane, k.low, k.seen_at, r.position is null as is_empty,
                -- A time in the future is that of a clock that was ahead.
                k.raised_at not between v_now - interval '1 second' and v_now + interval '5 seconds' as is_old, r.locked,
                r.position is not null
                    or k.seen_at between v_now - interval '10 seconds' and v_now + interval '5 seconds' as in_use,
                least(coalesce(r.position, v_last + 1), v_last + 1,
                case when advance.capped then (
                    select coalesce(min(e.lo) + 1, 0) from {{.schema}}.epoch_open e where e.epoch >= v_low) end)
                as new_low
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
            v_count := v_count + 1;
            v_rows.low := v_rows.new_low;
        end if;
        if v_rows.low > v_least then
            v_lanes := v_lanes || v_rows.lane::bigint;
            v_lows := v_lows || v_rows.low::bigint;
        end if;
        continue when v_rows.moved or not v_rows.held or advance.capped;
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
               and r.position < coalesce(v_free, v_last + 1)
             order by r.position
             limit 10000
        ), noted as (
            insert into {{.schema}}.passed (lane, position)
            select v_rows.lane, h.position from held h
        )
        insert into {{.schema}}.mark (lane, low)
        select v_rows.lane, case when count(*) = 10000 then max(h.position) + 1
            else least(coalesce(v_free, v_last + 1), v_last + 1) end
          from held h
        having count(*) > 0
        returning low into v_mark;
        if found and v_rows.low > v_least then
            v_lows[cardinality(v_lows)] := v_mark;
        elsif found and v_mark > v_least then
            v_lanes := v_lanes || v_rows.lane::bigint;
            v_lows := v_lows || v_mark;
        end if;
        v_count := v_count + 1;
    end loop;
    perform {{.schema}}.raise_time(capped);

    -- What a mark passed over: gone, come back, or still held.
    if exists (select from {{.schema}}.passed) then
        delete from {{.schema}}.passed p
         where p.ctid = any (array(
            select x.ctid from {{.schema}}.passed x
             -- Not by exists, which may become a hash of a whole table.
             where case x.lane
                when -1 then (
                    select true from {{.schema}}.scheduled s
                     where s.job_id = x.position and s.due_at < {{.schema}}.time_low(-1) limit 1)
                when -2 then (
                    select true from {{.schema}}.leased l
                     where l.job_id = x.position and l.expires_at < {{.schema}}.time_low(-2) limit 1)
                else (
                    select true from {{.schema}}.ready r
                     where r.lane = x.lane and r.position = x.position limit 1) end is null
               for update skip locked));
        perform {{.schema}}.enter();
        with back as (
            delete from {{.schema}}.ready r
             where r.ctid = any (array(
                select x.ctid
                  from {{.schema}}.passed p
                 cross join lateral (
                    select r.ctid from {{.schema}}.ready r
                     where r.lane = p.lane and r.position = p.position
                       for update skip locked) x
                 limit 10000))
            returning r.*
        ), forgotten as (
            delete from {{.schema}}.passed p using back b where p.lane = b.lane and p.position = b.position
        )
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select b.lane, nextval('{{.schema}}.position'), b.job_id, b.token, b.attempt, b.failed, b.lost, b.expires_at
          from (select * from back order by position) b;
        get diagnostics v_step = row_count;
        v_count := v_count + v_step;
        -- What is due is due now.
        with back as (
            update {{.schema}}.scheduled s
               set due_at = clock_timestamp()
             where s.ctid = any (array(
                select x.ctid
                  from {{.schema}}.passed p
                 cross join lateral (
                    select s.ctid from {{.schema}}.scheduled s
                     where s.job_id = p.position and s.due_at < {{.schema}}.time_low(-1)
                       for update skip locked) x
                 where p.lane = -1
                 limit 10000))
            returning s.job_id
        )
        delete from {{.schema}}.passed p using back b where p.lane = -1 and p.position = b.job_id;
        with back as (
            update {{.schema}}.leased l
               set expires_at = clock_timestamp()
             where l.ctid = any (array(
                select x.ctid
                  from {{.schema}}.passed p
                 cross join lateral (
                    select l.ctid from {{.schema}}.leased l
                     where l.job_id = p.position and l.expires_at < {{.schema}}.time_low(-2)
                       for update skip locked) x
                 where p.lane = -2
                 limit 10000))
            returning l.job_id
        )
        delete from {{.schema}}.passed p using back b where p.lane = -2 and p.position = b.job_id;
    end if;

    -- Resolve. A closed epoch whose lock is free has no members left, and no later one: who locks it
    -- now reads the epoch again and moves on. So the lock is tried, not kept. Our own shared locks would
    -- not refuse us: the epochs of this transaction are left to the next tick.
    v_own := {{.schema}}.own_locks('epoch');
    v_since := clock_timestamp();
    for v_epoch in
        select e.row_id, e.epoch, e.lo, e.lo_scheduled, e.lo_leased, e.lo_ttl
          from {{.schema}}.epoch_open e
         where e.epoch >= v_low and e.epoch < v_current
           and not e.epoch & 2147483647 = any (v_own)
           and case when pg_try_advisory_lock(hashtext('{{.schema}}:epoch'), (e.epoch & 2147483647)::int)
               then pg_advisory_unlock(hashtext('{{.schema}}:epoch'), (e.epoch & 2147483647)::int)
               else false end
         order by e.epoch
         limit 20
    loop
        -- Another advance, in a transaction that is still open, may have it.
        continue when not exists (
            select 1 from {{.schema}}.epoch_open e where e.row_id = v_epoch.row_id for update skip locked);
        -- Late commits, a bounded stretch of positions at a time: an epoch that was open for an hour
        -- has an hour of dead rows above it. But where nothing is, as after a day without a tick, a visit goes on.
        perform {{.schema}}.enter();
        v_width := 200000;
        loop
            v_high := v_epoch.lo + v_width;
            exit when v_high >= coalesce(pg_sequence_last_value('{{.schema}}.position'::regclass), 0)
                or clock_timestamp() > v_since + interval '20 milliseconds'
                or exists (
                    select from unnest(v_lanes, v_lows) k(lane, low)
                     cross join lateral (
                        select from {{.schema}}.ready r
                         where r.lane = k.lane and r.position > v_epoch.lo and r.position < k.low and r.position <= v_high
                         limit 1) x
                     where k.low > v_epoch.lo);
            v_epoch.lo := v_high;
            v_width := least(v_width * 2, 2000000);
        end loop;
        v_high := v_epoch.lo + 200000;
        with late as (
            delete from {{.schema}}.ready r
             where r.ctid = any (array(
                select x.ctid
                  from unnest(v_lanes, v_lows) k(lane, low)
                 cross join lateral (
                    select r.ctid from {{.schema}}.ready r
                     where r.lane = k.lane and r.position > v_epoch.lo and r.position < k.low
                       and r.position <= v_high
                     order by r.position
                     limit 10000
                       for update skip locked) x
                 where k.low > v_epoch.lo))
               and not exists (
                select from {{.schema}}.passed p where p.lane = r.lane and p.position = r.position)
            returning r.*
        )
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select l.lane, nextval('{{.schema}}.position'), l.job_id, l.token, l.attempt, l.failed, l.lost, l.expires_at
          from (select * from late order by position) l;
        get diagnostics v_step = row_count;
        v_count := v_count + v_step;
        -- What is locked is noted, as where a mark passes over it: else it would keep this epoch, and twenty such all that
        -- come later, from being resolved.
        if v_step < 10000 then
            insert into {{.schema}}.passed (lane, position)
            select k.lane, r.position
              from unnest(v_lanes, v_lows) k(lane, low)
             cross join lateral (
                select r.position from {{.schema}}.ready r
                 where r.lane = k.lane and r.position > v_epoch.lo and r.position < k.low
                   and r.position <= v_high
                   and not exists (
                    select from {{.schema}}.passed p where p.lane = r.lane and p.position = r.position)
                 limit 10000) r
             where k.low > v_epoch.lo
             limit 10000;
            get diagnostics v_step = row_count;
        end if;
        v_left := v_step >= 10000;
        -- The same in the time lanes, a minute of due times at a time, where a mark moved at all.
        v_more := v_high < coalesce(pg_sequence_last_value('{{.schema}}.position'::regclass), 0);
        v_los := array[v_epoch.lo_scheduled, v_epoch.lo_leased, v_epoch.lo_ttl];
        for v_nth in 1..3 loop
            v_lane := -v_nth;
            v_from := timestamptz 'epoch' + v_los[v_nth] * interval '1 microsecond';
            v_until := {{.schema}}.time_low(v_lane);
            continue when v_from >= v_until;
            if v_los[v_nth] > 0 then
                v_end := v_until;
                v_span := interval '1 minute';
                loop
                    v_until := least(v_from + v_span, v_end);
                    v_first := case v_lane
                        when -1 then (
                            select s.due_at from {{.schema}}.scheduled s
                             where s.due_at >= v_from and s.due_at < v_until order by s.due_at limit 1)
                        when -2 then (
                            select l.expires_at from {{.schema}}.leased l
                             where l.expires_at >= v_from and l.expires_at < v_until order by l.expires_at limit 1)
                        else (
                            select t.expires_at from {{.schema}}.ttl t
                             where t.expires_at >= v_from and t.expires_at < v_until order by t.expires_at limit 1) end;
                    exit when v_first is not null or v_until = v_end
                        or clock_timestamp() > v_since + interval '20 milliseconds';
                    v_from := v_until;
                    v_span := least(v_span * 2, interval '10 minutes');
                end loop;
                if v_first is not null then
                    v_from := v_first;
                    v_until := least(v_from + interval '1 minute', v_end);
                end if;
                v_more := v_more or v_until < v_end;
                v_los[v_nth] := (date_part('epoch', v_until) * 1000000)::bigint;
                continue when v_first is null;
            end if;
            -- Up to the mark and not with it: what stands there is for its own duty.
            v_last_due := v_until - interval '1 microsecond';
            if v_lane = -1 then
                v_step := {{.schema}}.promote_due(v_from, v_last_due, 1000, null);
                v_count := v_count + v_step;
                v_left := v_left or v_step >= 1000;
                if v_step < 1000 then
                    insert into {{.schema}}.passed (lane, position)
                    select -1, s.job_id
                      from {{.schema}}.scheduled s
                     where s.due_at >= v_from and s.due_at < v_until
                       and not exists (select from {{.schema}}.passed p where p.lane = -1 and p.position = s.job_id)
                     limit 10000;
                    get diagnostics v_step = row_count;
                    v_left := v_left or v_step >= 10000;
                end if;
            elsif v_lane = -2 then
                v_step := {{.schema}}.reap_expired(v_from, v_last_due, 1000, null);
                v_count := v_count + v_step;
                v_left := v_left or v_step >= 1000;
                if v_step < 1000 then
                    insert into {{.schema}}.passed (lane, position)
                    select -2, l.job_id
                      from {{.schema}}.leased l
                     where l.expires_at >= v_from and l.expires_at < v_until
                       and not exists (select from {{.schema}}.passed p where p.lane = -2 and p.position = l.job_id)
                     limit 10000;
                    get diagnostics v_step = row_count;
                    v_left := v_left or v_step >= 10000;
                end if;
            else
                -- Of a job that is held the timer goes on to a later time.
                v_count := v_count + {{.schema}}.expire_due(v_from, v_last_due, 1000);
                v_left := v_left or exists (
                    select from {{.schema}}.ttl t where t.expires_at >= v_from and t.expires_at < v_until);
            end if;
        end loop;

        -- More below a mark than fits in one call keeps the epoch open; so does what is still to be looked at, soon.
        continue when v_left;
        if v_more then
            update {{.schema}}.epoch_open e
               set lo = least(v_high, v_last), lo_scheduled = v_los[1], lo_leased = v_los[2], lo_ttl = v_los[3]
             where e.row_id = v_epoch.row_id;
            v_count := v_count + 1;
        else
            delete from {{.schema}}.epoch_open e where e.row_id = v_epoch.row_id;
        end if;
    end loop;
    return v_count;
end
$$;
comment on function {{.schema}}.advance(boolean) is 'Raises the low marks and resolves epochs.';
