-- The first instant at which a zone has the offset that it has at high; its clocks change once in between.
create or replace function {{.schema}}.zone_change(timezone text, low timestamptz, high timestamptz)
returns timestamptz
language plpgsql
immutable strict
as $$
declare
    v_low  timestamptz := date_trunc('second', low);
    v_high timestamptz := date_trunc('second', high);
    v_new  interval := (high at time zone timezone) - (high at time zone 'UTC');
    v_mid  timestamptz;
begin
    while v_high - v_low > interval '1 second' loop
        v_mid := date_trunc('second', v_low + (v_high - v_low) / 2);
        if (v_mid at time zone timezone) - (v_mid at time zone 'UTC') = v_new then
            v_high := v_mid;
        else
            v_low := v_mid;
        end if;
    end loop;
    return v_high;
end
$$;
comment on function {{.schema}}.zone_change(text, timestamptz, timestamptz) is 'When the clocks of a zone change between two instants.';
