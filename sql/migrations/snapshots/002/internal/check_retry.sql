-- A retry policy, checked and with its defaults filled in: what is stored is whole.
create or replace function {{.schema}}.check_retry(policy jsonb, prefix text default '')
returns jsonb
language plpgsql
as $$
declare
    v_result jsonb := jsonb
        '{"kind": "exponential", "base": "1 s", "factor": 2, "max": "1 h", "jitter": 0.1}';
    v_key    text;
    v_value  text;
    v_time   interval;
begin
    if policy is null or jsonb_typeof(policy) <> 'object' then
        perform {{.schema}}.fail(prefix || 'retry', left(policy::text, 100),
            'a JSON object, such as {"kind": "exponential", "base": "1 s", "max": "1 h"}');
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(policy) e loop
        case v_key
        when 'kind' then
            if v_value is null or v_value not in ('exponential', 'linear', 'fixed') then
                perform {{.schema}}.fail(prefix || 'retry.kind', v_value, 'exponential, linear or fixed');
            end if;
        when 'base', 'max' then
            begin
                v_time := v_value::interval;
            exception when data_exception then
                v_time := null;
            end;
            if v_time is null or v_time < interval '0' or v_time > interval '3660 days' then
                perform {{.schema}}.fail(prefix || 'retry.' || v_key, v_value,
                    'an interval between 0 and 10 years');
            end if;
            v_result := v_result || jsonb_build_object(v_key, v_time::text);
            continue;
        when 'factor' then
            if jsonb_typeof(policy -> v_key) <> 'number'
                or v_value::numeric not between 1 and 1000
            then
                perform {{.schema}}.fail(prefix || 'retry.factor', v_value, 'a number between 1 and 1000');
            end if;
        when 'jitter' then
            if jsonb_typeof(policy -> v_key) <> 'number'
                or v_value::numeric not between 0 and 1
            then
                perform {{.schema}}.fail(prefix || 'retry.jitter', v_value, 'a number between 0 and 1');
            end if;
        else
            raise exception '%retry must not have the key %', prefix, quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'kind, base, factor, max, jitter';
        end case;
        v_result := v_result || jsonb_build_object(v_key, policy -> v_key);
    end loop;
    return v_result;
end
$$;
comment on function {{.schema}}.check_retry(jsonb, text) is
    'A retry policy, checked and with its defaults filled in.';
