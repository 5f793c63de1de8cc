-- The options of a job, checked and typed. Unknown keys, and those of features that are not built,
-- are refused: nothing is silently ignored.
-- Calls: fail, check_retry.
create or replace function {{.schema}}.job_options(
    options    jsonb,
    now        timestamptz,
    out run_at     timestamptz,
    out expires_at timestamptz,
    out retry      jsonb,
    out tags       text[]
)
language plpgsql
as $$
declare
    v_key   text;
    v_value text;
    v_tag   jsonb;
begin
    if jsonb_typeof(options) <> 'object' then
        perform {{.schema}}.fail('options', options::text, 'a JSON object');
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(options) e loop
        continue when v_value is null and v_key in ('delay', 'ttl', 'expires_at', 'retry', 'tags');
        case v_key
        when 'delay' then
            begin
                run_at := now + v_value::interval;
            exception when data_exception then
                perform {{.schema}}.fail('options.delay', v_value, 'an interval, such as "5 minutes"');
            end;
            if not isfinite(run_at) or v_value::interval < interval '0' then
                perform {{.schema}}.fail('options.delay', v_value, 'an interval of 0 or more');
            end if;
        when 'ttl' then
            begin
                expires_at := least(now + v_value::interval, expires_at);
            exception when data_exception then
                perform {{.schema}}.fail('options.ttl', v_value, 'an interval, such as "1 hour"');
            end;
            if v_value::interval <= interval '0' or not isfinite(v_value::interval) then
                perform {{.schema}}.fail('options.ttl', v_value, 'an interval above 0');
            end if;
        when 'expires_at' then
            begin
                expires_at := least(v_value::timestamptz, expires_at);
            exception when data_exception then
                perform {{.schema}}.fail('options.expires_at', v_value, 'a timestamp with time zone');
            end;
            if not isfinite(v_value::timestamptz) then
                perform {{.schema}}.fail('options.expires_at', v_value, 'a finite timestamp');
            end if;
        when 'retry' then
            retry := {{.schema}}.check_retry(options -> 'retry');
        when 'tags' then
            if jsonb_typeof(options -> 'tags') <> 'array' or jsonb_array_length(options -> 'tags') > 32 then
                perform {{.schema}}.fail('options.tags', v_value, 'an array of at most 32 strings');
            end if;
            tags := '{}'::text[];
            for v_tag in select t.value from jsonb_array_elements(options -> 'tags') t loop
                if jsonb_typeof(v_tag) <> 'string' or length(v_tag #>> '{}') not between 1 and 100 then
                    perform {{.schema}}.fail('options.tags', v_tag::text, 'strings of 1 to 100 characters');
                end if;
                tags := tags || (v_tag #>> '{}');
            end loop;
        when 'unique_mode', 'unique_for', 'debounce_max', 'depends_on', 'on_parent_failure', 'batch_id' then
            raise exception 'option % is not supported yet', v_key using errcode = '0A000';
        else
            raise exception 'options must not have the key %', quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'delay, ttl, expires_at, retry, tags';
        end case;
    end loop;
end
$$;
comment on function {{.schema}}.job_options(jsonb, timestamptz) is 'The options of a job, checked and typed.';
