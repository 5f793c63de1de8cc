-- A cron expression as the sets of its fields: one text of 0 and 1 each for seconds, minutes, hours, days
-- of month, months and days of week; then "repeating" or "fixed", which daylight saving asks for; then
-- "and" or "or", how the two kinds of day go together. An interval is {every,seconds}.
create or replace function {{.schema}}.cron_parse(cron text)
returns text[]
language plpgsql
immutable
as $$
declare
    c_names  constant text[] := '{second,minute,hour,day of month,month,day of week}'::text[];
    c_low    constant int[] := '{0,0,0,1,1,0}'::int[];
    c_high   constant int[] := '{59,59,23,31,12,6}'::int[];
    c_months constant text[] := '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'::text[];
    c_days   constant text[] := '{sun,mon,tue,wed,thu,fri,sat}'::text[];
    c_hints  constant text[] := array[
        '0 to 59', '0 to 59', '0 to 23', '1 to 31', '1 to 12 or jan to dec', '0 to 7 or sun to sat'];
    v_text   text := lower(btrim(regexp_replace(cron, '[[:space:]]+', ' ', 'g')) collate "C");
    v_fields text[];
    v_result text[] := '{}'::text[];
    v_bits   text;
    v_item   text;
    v_part   text[];
    v_ends   int[];
    v_end    int;
    v_step   int;
    v_days   boolean[] := '{f,f,f,f,f,f}'::boolean[];
    v_hours  boolean := false;
    v_total  numeric := 0;
    v_unit   numeric;
begin
    if cron is null then
        perform {{.schema}}.fail('cron', null, 'a cron expression, such as 0 3 * * *');
    elsif length(cron) > 1000 then
        perform {{.schema}}.fail('cron', length(cron) || ' characters long', 'at most 1000 characters');
    end if;

    if v_text ~ '^@?every ' then
        v_text := regexp_replace(regexp_replace(v_text, '^@?every ', ''), '^([a-z])', E'1 \\1');
        if v_text ~ '^([0-9]{1,9}([.][0-9]{1,6})? ?[a-z]+ ?)+$' then
            for v_part in
                select m from regexp_matches(v_text, '([0-9.]+) ?([a-z]+)', 'g') m
            loop
                v_unit := case
                    when v_part[2] in ('s', 'sec', 'secs', 'second', 'seconds') then 1
                    when v_part[2] in ('m', 'min', 'mins', 'minute', 'minutes') then 60
                    when v_part[2] in ('h', 'hr', 'hrs', 'hour', 'hours') then 3600
                    when v_part[2] in ('d', 'day', 'days') then 86400
                    when v_part[2] in ('w', 'week', 'weeks') then 604800 end;
                v_total := v_total + v_part[1]::numeric * v_unit;
            end loop;
        end if;
        if v_total is null or v_total not between 1 and 316224000 or v_total <> trunc(v_total) then
            perform {{.schema}}.fail('cron', cron, 'every and a time in seconds, minutes, hours, days or weeks, '
                'such as every 90 seconds or @every 1h30m: whole seconds, at most ten years');
        end if;
        return array['every', trunc(v_total)::text];
    end if;

    v_text := case v_text
        when '@yearly' then '0 0 1 1 *' when '@annually' then '0 0 1 1 *' when '@monthly' then '0 0 1 * *'
        when '@weekly' then '0 0 * * 0' when '@daily' then '0 0 * * *' when '@midnight' then '0 0 * * *'
        when '@hourly' then '0 * * * *' else v_text end;
    v_fields := string_to_array(v_text, ' ');
    if cardinality(v_fields) = 5 then
        v_fields := array['0'] || v_fields;
    elsif cardinality(v_fields) <> 6 then
        perform {{.schema}}.fail('cron', quote_literal(cron),
            'five fields (minute, hour, day of month, month, day of week), before them one for seconds if '
            'you like; @yearly, @monthly, @weekly, @daily or @hourly; or every 90 seconds');
    end if;

    for v_field in 1..6 loop
        v_bits := repeat('0', c_high[v_field] - c_low[v_field] + 1);
        foreach v_item in array string_to_array(v_fields[v_field], ',') loop
            -- {from, to, step}
            v_part := regexp_match(v_item,
                '^([*]|[?]|[a-z]{3}|[0-9]{1,2})(?:-([a-z]{3}|[0-9]{1,2}))?(?:/([0-9]{1,3}))?$');
            v_step := coalesce(v_part[3]::int, 1);
            v_ends := null;
            if v_part[1] = '*' or v_part[1] = '?' and v_field in (4, 6) then
                if v_part[2] is null then
                    v_ends := array[c_low[v_field], c_high[v_field]];
                    v_days[v_field] := v_days[v_field] or v_step = 1;
                end if;
            elsif v_part is not null then
                for i in 1..2 loop
                    v_end := case
                        when v_part[i] ~ '^[0-9]' then v_part[i]::int
                        when v_field = 5 then array_position(c_months, v_part[i])
                        when v_field = 6 then array_position(c_days, v_part[i]) - 1 end;
                    -- To sunday is to the end of the week. One value with a step goes on to the last.
                    if i = 2 and v_field = 6 and v_part[i] = 'sun' and v_ends[1] > 0 then
                        v_end := 7;
                    elsif i = 2 and v_part[i] is null then
                        v_end := case when v_part[3] is null then v_ends[1] else c_high[v_field] end;
                    end if;
                    v_ends := v_ends || v_end;
                end loop;
            end if;
            -- A larger step than the field is long would be another time than it looks like.
            if v_ends is null or v_ends[1] is null or v_ends[2] is null or v_ends[1] > v_ends[2]
                or v_ends[1] < c_low[v_field]
                or v_ends[2] > c_high[v_field] + (v_field = 6)::int
                or v_step not between 1 and length(v_bits)
            then
                perform {{.schema}}.fail('cron', format('%s (%s: %s)', left(cron, 100), c_names[v_field],
                    left(v_fields[v_field], 50)), format('%s, ranges a-b, steps */n or a-b/n with n from 1 to %s, '
                    'lists of these', c_hints[v_field], length(v_bits)));
            end if;
            for v_value in v_ends[1]..v_ends[2] by v_step loop
                v_bits := overlay(v_bits placing '1'
                    from case when v_field = 6 then v_value % 7 else v_value - c_low[v_field] end + 1 for 1);
            end loop;
            v_hours := v_hours
                or v_field = 3 and (v_part[1] = '*' or v_part[3] is not null or v_bits !~ '0');
        end loop;
        if v_bits !~ '1' then
            perform {{.schema}}.fail('cron', format('%s (%s: nothing)', left(cron, 100), c_names[v_field]),
                c_hints[v_field]);
        end if;
        v_result := v_result || v_bits;
    end loop;

    -- Where only the day of month decides, one of the months must have such a day.
    if v_days[6] and not exists (
        select from generate_series(1, 12) m
         where substr(v_result[5], m, 1) = '1'
           and left(v_result[4], case when m = 2 then 29 when m in (4, 6, 9, 11) then 30 else 31 end) ~ '1')
    then
        perform {{.schema}}.fail('cron', format('%s (day of month: %s, which month %s never has)', left(cron, 100),
            left(v_fields[4], 50), left(v_fields[5], 50)), 'a day that comes');
    end if;
    return v_result || case when v_hours then 'repeating' else 'fixed' end
        || case when v_days[4] or v_days[6] then 'and' else 'or' end;
end
$$;
comment on function {{.schema}}.cron_parse(text) is 'A cron expression as the sets of its fields, or OQ001.';
