-- What oq_update and oq_redrive may change of a job, and oq_watch say of its jobs, checked and typed. Whether a key
-- is there is for the caller to ask: null is a value of run_at, max_retries and headers. prefix: as in job_options.
create or replace function {{.schema}}.check_patch(
    patch  jsonb,
    prefix text default 'patch.',
    out priority    int,
    out run_at      timestamptz,
    out max_retries int,
    out payload     jsonb,
    out headers     jsonb
)
language plpgsql
as $$
declare
    v_key   text;
    v_value text;
begin
    if patch is null or jsonb_typeof(patch) <> 'object' then
        perform {{.schema}}.fail(rtrim(prefix, '.'), patch::text, 'a JSON object');
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(patch) e loop
        case v_key
        when 'priority' then
            if v_value is null or v_value !~ '^-?[0-9]{1,5}$'
                or v_value::int not between -32768 and 32767
            then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'between -32768 and 32767');
            end if;
            priority := v_value::int;
        when 'run_at' then
            begin
                run_at := v_value::timestamptz;
            exception when data_exception then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'a timestamp with time zone');
            end;
            if run_at = 'infinity' then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'a finite timestamp');
            end if;
        when 'max_retries' then
            if v_value is not null and (v_value !~ '^[0-9]{1,5}$' or v_value::int > 32767) then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'between 0 and 32767');
            end if;
            max_retries := v_value::int;
        when 'payload' then
            payload := patch -> v_key;
        when 'headers' then
            headers := nullif(patch -> v_key, 'null');
            if jsonb_typeof(headers) <> 'object' or octet_length(v_value) > 65536 then
                perform {{.schema}}.fail(prefix || v_key, v_value, 'a JSON object of at most 65536 bytes');
            end if;
        else
            raise exception '% must not have the key %', rtrim(prefix, '.'), quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'priority, run_at, max_retries, payload, headers';
        end case;
    end loop;
end
$$;
comment on function {{.schema}}.check_patch(jsonb, text) is 'The patch of a job, checked and typed.';
