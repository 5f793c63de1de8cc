-- The first instant after a given one at which a schedule runs; null where none comes for nine years.
-- Clocks that go forward: fixed hours that fall into the gap run once, when it ends; repeating ones do not
-- run. Clocks that go back: fixed hours run the first time, repeating ones both times. So the time is walked
-- from one change of the clocks to the next; two days without one are a straight line.
-- anchor: an instant of the same rhythm, for intervals.
-- Calls: cron_wall, zone_change.
create or replace function {{.schema}}.next_run(
    fields   text[],
    timezone text,
    after    timestamptz,
    anchor   timestamptz
)
returns timestamptz
language plpgsql
immutable strict
as $$
declare
    c_span   constant interval := interval '48 hours';
    v_fixed  constant boolean := fields[7] = 'fixed';
    v_at     timestamptz := after;
    v_wall   timestamp := after at time zone timezone;
    v_next   timestamp;
    v_offset interval;
    v_other  interval;
    v_change timestamptz;
    v_until  timestamp;
begin
    if fields[1] = 'every' then
        return anchor + make_interval(secs => fields[2]::bigint
            * (floor((extract(epoch from after) - extract(epoch from anchor))::numeric / fields[2]::bigint) + 1)::float8);
    end if;
    for i in 1..100 loop
        v_offset := (v_at at time zone timezone) - (v_at at time zone 'UTC');
        if v_fixed then
            -- Are the clocks going over the same hour again?
            v_other := ((v_at - c_span) at time zone timezone) - ((v_at - c_span) at time zone 'UTC');
            if v_other > v_offset then
                v_change := {{.schema}}.zone_change(timezone, v_at - c_span, v_at);
                v_wall := greatest(v_wall,
                    (v_change at time zone 'UTC') + v_other - interval '1 microsecond');
            end if;
        end if;
        v_next := {{.schema}}.cron_wall(fields, v_wall);
        if v_next is null then
            return null;
        end if;
        v_other := ((v_at + c_span) at time zone timezone) - ((v_at + c_span) at time zone 'UTC');
        if v_other = v_offset then
            v_change := (v_next - v_offset) at time zone 'UTC';
            if v_change <= v_at + c_span then
                return v_change;
            end if;
            v_at := v_change - c_span;
            v_wall := v_at at time zone timezone;
            continue;
        end if;
        v_change := {{.schema}}.zone_change(timezone, v_at, v_at + c_span);
        v_until := (v_change at time zone 'UTC') + v_offset;
        if v_next < v_until then
            return (v_next - v_offset) at time zone 'UTC';
        elsif v_fixed and v_next < v_until + (v_other - v_offset) then
            return v_change;
        end if;
        v_at := v_change;
        v_wall := (v_change at time zone 'UTC') + v_other - interval '1 microsecond';
    end loop;
    return null;
end
$$;
comment on function {{.schema}}.next_run(text[], text, timestamptz, timestamptz) is 'The next instant at which a schedule runs.';
