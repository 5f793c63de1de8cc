-- A schedule with the options that are named, checked; null puts one back to its default. What belongs to
-- the job is only looked at as far as its type: the enqueue knows the rest.
create or replace function {{.schema}}.check_schedule(options jsonb, schedule {{.schema}}.schedule)
returns {{.schema}}.schedule
language plpgsql
as $$
declare
    c_job   constant text[] := '{delay,ttl,expires_at,retry,tags,unique_mode,unique_for,debounce_max,depends_on,
        on_parent_failure,batch_id}'::text[];
    v_new   {{.schema}}.schedule := schedule;
    v_inner jsonb := coalesce(v_new.job -> 'options', '{}');
    v_key   text;
    v_value text;
    v_json  jsonb;
    v_time  timestamptz;
begin
    if options is null then
        return v_new;
    end if;
    if jsonb_typeof(options) <> 'object' then
        perform {{.schema}}.fail('options', options::text, 'a JSON object');
    end if;
    for v_key, v_json in select e.key, e.value from jsonb_each(options) e order by e.key = 'options' desc loop
        v_value := v_json #>> '{}';
        case
        when v_key = 'missed' then
            if v_value not in ('skip', 'one', 'all') then
                perform {{.schema}}.fail('options.missed', v_value, 'skip, one or all');
            end if;
            v_new.missed := coalesce(v_value, 'one');
        when v_key = 'overlap' then
            if v_value not in ('allow', 'skip') then
                perform {{.schema}}.fail('options.overlap', v_value, 'allow or skip');
            end if;
            v_new.overlap := coalesce(v_value, 'allow');
        when v_key = 'paused' then
            if jsonb_typeof(v_json) not in ('boolean', 'null') then
                perform {{.schema}}.fail('options.paused', v_json::text, 'true or false');
            end if;
            v_new.paused := coalesce(v_value::boolean, false);
        when v_key in ('start', 'end') then
            begin
                v_time := v_value::timestamptz;
            exception when data_exception then
                perform {{.schema}}.fail('options.' || v_key, v_value, 'a timestamp with time zone');
            end;
            if v_time not between '0001-01-01 00:00 UTC' and '9990-01-01 00:00 UTC' then
                perform {{.schema}}.fail('options.' || v_key, v_value, 'between the years 1 and 9989');
            end if;
            if v_key = 'start' then
                v_new.start_at := v_time;
            else
                v_new.end_at := v_time;
            end if;
        when v_key in ('priority', 'max_retries', 'unique_key', 'group_key', 'headers', 'options') or v_key = any (c_job)
        then
            if v_key in ('priority', 'max_retries') and v_value !~ '^-?[0-9]{1,5}$' then
                perform {{.schema}}.fail('options.' || v_key, v_value, case v_key
                    when 'priority' then 'between -32768 and 32767' else 'between 0 and 32767' end);
            elsif v_key in ('unique_key', 'group_key') and jsonb_typeof(v_json) not in ('string', 'null') then
                perform {{.schema}}.fail('options.' || v_key, v_json::text, 'a string');
            elsif v_key in ('headers', 'options') and jsonb_typeof(v_json) not in ('object', 'null') then
                perform {{.schema}}.fail('options.' || v_key, v_json::text, 'a JSON object');
            end if;
            -- Options of the job may stand beside the others, as in oq_enqueue_many.
            if v_key = any (c_job) and v_value is not null and options -> 'options' ->> v_key is not null then
                perform {{.schema}}.fail('options.' || v_key, v_json::text, 'either beside options or in it, not both');
            elsif v_key = 'options' then
                v_inner := coalesce(nullif(v_json, 'null'), '{}');
            elsif v_key = any (c_job) then
                v_inner := v_inner - v_key || case when v_value is null then '{}' else jsonb_build_object(v_key, v_json) end;
            else
                v_new.job := v_new.job - v_key
                    || case when v_value is null then '{}' else jsonb_build_object(v_key, v_json) end;
            end if;
        else
            raise exception 'options must not have the key %', quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'missed, overlap, start, end, paused, priority, max_retries, '
                    'unique_key, group_key, headers, options, or an option of a job';
        end case;
    end loop;
    v_new.job := v_new.job - 'options' || case when v_inner = '{}' then '{}' else jsonb_build_object('options', v_inner) end;
    if v_new.end_at < v_new.start_at then
        perform {{.schema}}.fail('options.end', v_new.end_at::text, 'not before start, ' || v_new.start_at::text);
    end if;
    return v_new;
end
$$;
comment on function {{.schema}}.check_schedule(jsonb, {{.schema}}.schedule) is
    'A schedule with the options that are named, checked.';
