-- Raises the marks of the time lanes to their first visible row, but never past the clock, read before
-- the snapshot, and not looked beyond: what is due later and dead already could be millions of rows.
-- capped: as in advance. Where the clock went back, marks in the future go, open epochs begin at the
-- beginning, and leases are looked at. Calls: time_low. Locks: a scheduled row, mark and epoch_open rows (skip locked).
-- Index: scheduled_due_idx, ttl_expires_idx, mark_lane_idx, epoch_open_epoch_idx.
create or replace function {{.schema}}.raise_time(capped boolean)
returns void
language plpgsql
as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_us    bigint;
    v_low   timestamptz;
    v_old   bigint;
    v_new   bigint;
    v_first timestamptz;
    v_free  timestamptz;
    v_held  bigint[];
    v_epoch bigint := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
begin
    v_us := (date_part('epoch', v_now) * 1000000)::bigint;
    for v_lane in reverse -1 .. -2 loop
        v_low := {{.schema}}.time_low(v_lane);
        v_old := (date_part('epoch', v_low) * 1000000)::bigint;
        if v_low > v_now + interval '1 second' then
            -- What another advance, in a transaction that is still open, has in hand is left to the next tick.
            delete from {{.schema}}.mark m
             where m.ctid = any (array(
                select x.ctid from {{.schema}}.mark x where x.lane = v_lane for update skip locked));
            insert into {{.schema}}.mark (lane, low) values (v_lane, 0);
            perform setval('{{.schema}}.reap_after', 0);
            update {{.schema}}.epoch_open e
               set lo_scheduled = 0, lo_ttl = 0
             where e.ctid = any (array(
                select x.ctid from {{.schema}}.epoch_open x where x.epoch >= v_epoch for update skip locked));
            continue;
        end if;
        if v_lane = -1 then
            select s.due_at into v_first from {{.schema}}.scheduled s
             where s.due_at >= v_low and s.due_at <= v_now order by s.due_at limit 1;
        else
            select t.expires_at into v_first from {{.schema}}.ttl t
             where t.expires_at >= v_low and t.expires_at <= v_now order by t.expires_at limit 1;
        end if;
        -- Held by an open transaction for a second: the mark passes over what is locked and notes it, as in advance. Else
        -- all that is dead from there on would be walked by every look.
        if not capped and v_lane = -1 and v_first < v_now - interval '1 second' then
            select s.due_at into v_free from {{.schema}}.scheduled s
             where s.due_at >= v_low and s.due_at <= v_now order by s.due_at limit 1 for update skip locked;
            if v_free is distinct from v_first and coalesce(v_free, v_now) >= v_low + interval '100 milliseconds' then
                v_free := coalesce(v_free, v_now);
                v_held := array(
                    select s.job_id from {{.schema}}.scheduled s
                     where s.due_at >= v_low and s.due_at < v_free order by s.due_at limit 10001);
                if cardinality(v_held) <= 10000 then
                    insert into {{.schema}}.passed (lane, position) select v_lane, h.job_id from unnest(v_held) h(job_id);
                    v_first := v_free;
                end if;
            end if;
        end if;
        v_new := least(v_us, (date_part('epoch', v_first) * 1000000)::bigint);
        if capped then
            select least(v_new, coalesce(min(
                case v_lane when -1 then e.lo_scheduled else e.lo_ttl end), 0))
              into v_new
              from {{.schema}}.epoch_open e
             where e.epoch >= v_epoch;
        end if;
        -- Ten times a second is enough: what lies between is walked by each look.
        if v_new >= v_old + 100000 then
            insert into {{.schema}}.mark (lane, low) values (v_lane, v_new);
            delete from {{.schema}}.mark m
             where m.ctid = any (array(
                select x.ctid from {{.schema}}.mark x
                 where x.lane = v_lane and x.low = v_old
                   for update skip locked));
        end if;
    end loop;
end
$$;
comment on function {{.schema}}.raise_time(boolean) is 'Raises the marks of the time lanes.';
