-- A job's arguments and options with run_at and expires_at as the instants that they are now and here: what is kept of a
-- definition means the same in every session, whatever its time zone. What is no time is left to whoever refuses it.
-- Calls: fixed_times.
create or replace function {{.schema}}.fixed_times(job jsonb)
returns jsonb
language plpgsql
as $$
declare
    v_key text;
begin
    foreach v_key in array array['run_at', 'expires_at'] loop
        begin
            if jsonb_typeof(job -> v_key) = 'string' then
                job := job || jsonb_build_object(v_key, (job ->> v_key)::timestamptz);
            end if;
        exception when data_exception then null;
        end;
    end loop;
    if jsonb_typeof(job -> 'options') = 'object' then
        job := job || jsonb_build_object('options', {{.schema}}.fixed_times(job -> 'options'));
    end if;
    return job;
end
$$;
comment on function {{.schema}}.fixed_times(jsonb) is 'A job with its times as instants, whatever the time zone.';
