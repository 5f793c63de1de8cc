-- The options of a job, checked and typed. Unknown keys are refused: nothing is silently ignored. prefix
-- is how the caller names them: 'options.', or 'jobs[3].' with names that may stand beside the options.
-- Calls: check_retry.
create or replace function {{.schema}}.job_options(
    options    jsonb,
    now        timestamptz,
    prefix     text,
    out run_at     timestamptz,
    out expires_at timestamptz,
    out retry      jsonb,
    out tags       text[],
    out unique_mode  text,
    out unique_for   interval,
    out debounce_max interval,
    out depends_on   bigint[],
    out on_parent_failure text,
    out batch_id     bigint
)
language plpgsql
as $$
declare
    v_key   text;
    v_value text;
    v_tag   jsonb;
    v_time  interval;
begin
    if jsonb_typeof(options) <> 'object' then
        perform {{.schema}}.fail(rtrim(prefix, '.'), left(options::text, 100), 'a JSON object');
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(options) e loop
        case v_key
        when 'delay', 'ttl', 'unique_for', 'debounce_max' then
            continue when v_value is null;
            begin
                v_time := v_value::interval;
                -- Together with a time: both can overflow.
                if v_key = 'delay' then
                    run_at := now + v_time;
                    v_time := case when isfinite(run_at) then v_time end;
                elsif v_key = 'ttl' then
                    expires_at := least(now + v_time, expires_at);
                    v_time := case when isfinite(expires_at) then v_time end;
                end if;
            exception when data_exception then
                v_time := null;
            end;
            if v_time is null or not isfinite(v_time) or v_time < interval '0'
                or v_key <> 'delay' and v_time = interval '0'
            then
                perform {{.schema}}.fail(prefix || v_key, v_value, case v_key when 'delay'
                    then 'an interval of 0 or more, such as "5 minutes"'
                    else 'an interval above 0, such as "1 hour"' end);
            elsif v_key in ('unique_for', 'debounce_max') and v_time > interval '100 years' then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'at most 100 years');
            end if;
            if v_key = 'unique_for' then
                unique_for := v_time;
            elsif v_key = 'debounce_max' then
                debounce_max := v_time;
            end if;
        when 'expires_at' then
            begin
                expires_at := least(v_value::timestamptz, expires_at);
            exception when data_exception then
                perform {{.schema}}.fail(prefix || 'expires_at', v_value, 'a timestamp with time zone');
            end;
            if not isfinite(v_value::timestamptz) then
                perform {{.schema}}.fail(prefix || 'expires_at', v_value, 'a finite timestamp');
            end if;
        when 'retry' then
            if v_value is not null then
                retry := {{.schema}}.check_retry(options -> 'retry', prefix);
            end if;
        when 'tags' then
            continue when v_value is null;
            if jsonb_typeof(options -> 'tags') <> 'array' or jsonb_array_length(options -> 'tags') > 32 then
                perform {{.schema}}.fail(prefix || 'tags', v_value, 'an array of at most 32 strings');
            end if;
            tags := '{}'::text[];
            for v_tag in select t.value from jsonb_array_elements(options -> 'tags') t loop
                if jsonb_typeof(v_tag) <> 'string' or length(v_tag #>> '{}') not between 1 and 100 then
                    perform {{.schema}}.fail(prefix || 'tags', v_tag::text, 'strings of 1 to 100 characters');
                end if;
                tags := tags || (v_tag #>> '{}');
            end loop;
        when 'unique_mode' then
            if v_value not in ('skip', 'replace', 'debounce', 'reject') then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'skip, replace, debounce or reject');
            end if;
            unique_mode := v_value;
        when 'on_parent_failure' then
            if v_value not in ('cancel', 'run') then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'cancel or run');
            end if;
            on_parent_failure := v_value;
        when 'depends_on' then
            continue when v_value is null;
            if jsonb_typeof(options -> v_key) = 'array' and jsonb_array_length(options -> v_key) <= 10000 then
                begin
                    depends_on := array(
                        select distinct e.value::bigint
                          from jsonb_array_elements_text(options -> v_key) e order by 1);
                exception when data_exception then null;
                end;
            end if;
            if depends_on is null or array_position(depends_on, null) is not null then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'an array of at most 10000 job ids');
            end if;
        when 'batch_id' then
            continue when v_value is null;
            -- As a string too: drivers give a bigint as one where theirs has no room for it.
            if v_value ~ '^[0-9]{1,18}$' then
                batch_id := v_value::bigint;
            else
                perform {{.schema}}.fail(prefix || v_key, v_value, 'the id of a batch');
            end if;
        else
            raise exception '% must not have the key %', rtrim(prefix, '.'), quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'delay, ttl, expires_at, retry, tags, unique_mode, unique_for, '
                    'debounce_max, depends_on, on_parent_failure, batch_id';
        end case;
    end loop;
end
$$;
comment on function {{.schema}}.job_options(jsonb, timestamptz, text) is 'The options of a job, checked and typed.';
