-- The first time on the clock's face after a given one that the fields of cron_parse have; null where none
-- comes for nine years. It jumps from field to field: month, day, hour, minute, second.
create or replace function {{.schema}}.cron_wall(fields text[], after timestamp)
returns timestamp
language plpgsql
immutable strict
as $$
declare
    v_from   timestamp := date_trunc('second', after) + interval '1 second';
    v_year   int := date_part('year', v_from);
    v_month  int := date_part('month', v_from);
    v_day    int := date_part('day', v_from);
    v_hour   int := date_part('hour', v_from);
    v_minute int := date_part('minute', v_from);
    v_second int := date_part('second', v_from);
    v_last   int := v_year + 9;
    v_first  date;
    v_length int;
    v_dom    text;
    v_dow    text;
    v_days   text;
    v_step   int;
begin
    <<months>>
    loop
        v_step := strpos(substr(fields[5], v_month), '1');
        if v_step <> 1 then
            if v_step = 0 then
                v_year := v_year + 1;
                exit when v_year > v_last;
                v_month := strpos(fields[5], '1');
            else
                v_month := v_month + v_step - 1;
            end if;
            v_day := 1;
            v_hour := 0;
            v_minute := 0;
            v_second := 0;
        end if;
        -- The days of this month, from day of month and day of week.
        v_first := make_date(v_year, v_month, 1);
        v_length := date_part('day', v_first + interval '1 month' - interval '1 day');
        v_dom := left(fields[4], v_length);
        v_dow := substr(repeat(fields[6], 6), date_part('dow', v_first)::int + 1, v_length);
        v_days := case fields[8]
            when 'and' then (v_dom::varbit & v_dow::varbit)::text
            else (v_dom::varbit | v_dow::varbit)::text end;
        loop
            v_step := strpos(substr(v_days, v_day), '1');
            exit when v_step = 0;
            if v_step > 1 then
                v_day := v_day + v_step - 1;
                v_hour := 0;
                v_minute := 0;
                v_second := 0;
            end if;
            loop
                v_step := strpos(substr(fields[3], v_hour + 1), '1');
                exit when v_step = 0;
                if v_step > 1 then
                    v_hour := v_hour + v_step - 1;
                    v_minute := 0;
                    v_second := 0;
                end if;
                v_step := strpos(substr(fields[2], v_minute + 1), '1');
                if v_step > 1 then
                    v_minute := v_minute + v_step - 1;
                    v_second := 0;
                end if;
                if v_step > 0 then
                    v_step := strpos(substr(fields[1], v_second + 1), '1');
                    if v_step > 0 then
                        return make_timestamp(v_year, v_month, v_day, v_hour, v_minute, v_second + v_step - 1);
                    end if;
                    v_minute := v_minute + 1;
                else
                    v_hour := v_hour + 1;
                    v_minute := 0;
                end if;
                v_second := 0;
            end loop;
            v_day := v_day + 1;
            v_hour := 0;
            v_minute := 0;
            v_second := 0;
        end loop;
        v_month := v_month + 1;
        v_day := 1;
        v_hour := 0;
        v_minute := 0;
        v_second := 0;
    end loop;
    return null;
end
$$;
comment on function {{.schema}}.cron_wall(text[], timestamp) is 'The next time on the clock''s face that cron fields have.';
