-- Resolves up to 20 closed epochs: what their members committed below a mark goes to the end of its lane; what is
-- due is promoted or expired. late_lanes, late_lows: the lanes to look at, and their marks (raise_lanes).
-- Calls: own_locks, note_leavers, enter, time_low, promote_due, expire_due.
-- Locks: epochs (session, try); epoch_open, ready and scheduled rows (skip locked).
-- Index: epoch_open_epoch_idx, ready_pk.
create or replace function {{.schema}}.resolve_epochs(
    low_epoch     bigint,
    current_epoch bigint,
    last_drawn    bigint,
    late_lanes    bigint[],
    late_lows     bigint[]
)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    -- A closed epoch whose lock is free has no members left, and no later one: who locks it now reads the epoch again
    -- and moves on. So the lock is tried, not kept. Our own shared locks would not refuse us: the epochs of this
    -- transaction are left to the next tick.
    v_own   bigint[] := {{.schema}}.own_locks('epoch');
    v_since timestamptz := clock_timestamp();
    v_epoch record;
    v_width bigint;
    v_high  bigint;
    v_step  bigint;
    v_left  boolean;
    v_more  boolean;
    v_los   bigint[];
    v_lane  bigint;
    v_from  timestamptz;
    v_until timestamptz;
    v_end   timestamptz;
    v_span  interval;
    v_first timestamptz;
    v_last  timestamptz;
    v_count bigint := 0;
begin
    perform {{.schema}}.note_leavers(low_epoch, current_epoch, v_own);
    for v_epoch in
        select e.row_id, e.epoch, e.lo, e.lo_scheduled, e.lo_ttl
          from {{.schema}}.epoch_open e
         where e.epoch >= resolve_epochs.low_epoch and e.epoch < resolve_epochs.current_epoch
           and case when e.departed then true
               when e.epoch & 2147483647 = any (v_own) then false
               else {{template "internal/epoch_free.sql" dict "schema" .schema "epoch" "e.epoch"}} end
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
                    select from unnest(late_lanes, late_lows) k(lane, low)
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
                  from unnest(late_lanes, late_lows) k(lane, low)
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
        select l.lane, nextval('{{.schema}}.position'), l.job_id, coalesce(l.token, 0), coalesce(l.attempt, 0),
            coalesce(l.failed, 0), coalesce(l.lost, 0), l.expires_at
          from (select * from late order by position) l;
        get diagnostics v_step = row_count;
        v_count := v_count + v_step;
        -- What is locked is noted, as where a mark passes over it: else it would keep this epoch, and twenty such all that
        -- come later, from being resolved.
        if v_step < 10000 then
            insert into {{.schema}}.passed (lane, position)
            select k.lane, r.position
              from unnest(late_lanes, late_lows) k(lane, low)
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
        v_los := array[v_epoch.lo_scheduled, v_epoch.lo_ttl];
        for v_nth in 1..2 loop
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
            v_last := v_until - interval '1 microsecond';
            if v_lane = -1 then
                v_step := {{.schema}}.promote_due(v_from, v_last, 1000, null);
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
            else
                -- Of a job that is held the timer goes on to a later time.
                v_count := v_count + {{.schema}}.expire_due(v_from, v_last, 1000);
                v_left := v_left or exists (
                    select from {{.schema}}.ttl t where t.expires_at >= v_from and t.expires_at < v_until);
            end if;
        end loop;

        -- More below a mark than fits in one call keeps the epoch open; so does what is still to be looked at, soon.
        continue when v_left;
        if v_more then
            update {{.schema}}.epoch_open e
               set lo = least(v_high, resolve_epochs.last_drawn), lo_scheduled = v_los[1], lo_ttl = v_los[2]
             where e.row_id = v_epoch.row_id;
            v_count := v_count + 1;
        else
            delete from {{.schema}}.epoch_open e where e.row_id = v_epoch.row_id;
        end if;
    end loop;
    return v_count;
end
$$;
comment on function {{.schema}}.resolve_epochs(bigint, bigint, bigint, bigint[], bigint[]) is 'Resolves closed epochs.';
