-- The pause before the retry with that number: base * factor^(retry - 1) (exponential), base * retry
-- (linear) or base (fixed), spread by the jitter, at most max. Compared as logarithms: nothing overflows.
create or replace function {{.schema}}.backoff(policy jsonb, retries int)
returns interval
language plpgsql
as $$
declare
    v_base   float8 := extract(epoch from coalesce(policy ->> 'base', '1 s')::interval);
    v_max    float8 := extract(epoch from coalesce(policy ->> 'max', '1 h')::interval);
    v_factor float8 := coalesce((policy ->> 'factor')::float8, 2);
    v_jitter float8 := coalesce((policy ->> 'jitter')::float8, 0.1);
    v_delay  float8;
begin
    if v_base <= 0 or v_max <= 0 then
        return interval '0';
    end if;
    case coalesce(policy ->> 'kind', 'exponential')
    when 'fixed' then
        v_delay := v_base;
    when 'linear' then
        v_delay := v_base * retries;
    else
        if ln(v_base) + (retries - 1) * ln(v_factor) >= ln(v_max) then
            v_delay := v_max;
        else
            v_delay := v_base * power(v_factor, retries - 1);
        end if;
    end case;
    -- Where max binds, the jitter can only shorten: all at once again is what it is there to prevent.
    v_delay := least(v_delay, v_max);
    v_delay := least(v_delay * (1 + v_jitter * (2 * random() - 1)),
        v_max * (1 - case when v_delay < v_max then 0 else v_jitter * random() end));
    return v_delay * interval '1 second';
end
$$;
comment on function {{.schema}}.backoff(jsonb, int) is 'The pause before a retry.';
