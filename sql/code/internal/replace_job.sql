-- Makes a job that nobody holds what another enqueue of its unique key says: payload, headers, priority,
-- max_retries, run_at. latest bounds a debounced run_at. False where the job is leased or over, or an
-- open transaction is leasing it.
-- Calls: oq_update. Locks: as oq_update.
create or replace function {{.schema}}.replace_job(
    job_id bigint, said {{.schema}}.new_job, element jsonb, latest timestamptz)
returns boolean
language plpgsql
as $$
begin
    return {{.api_schema}}.oq_update(job_id, jsonb_build_object(
        'payload', coalesce(element -> 'payload', '{}'),
        'headers', nullif(element -> 'headers', 'null'),
        'priority', 32767 - (said.lane & 65535),
        'max_retries', said.max_retries,
        'run_at', least(said.run_at, latest)));
exception when lock_not_available then
    return false;
end
$$;
comment on function {{.schema}}.replace_job(bigint, {{.schema}}.new_job, jsonb, timestamptz) is
    'Makes a job that nobody holds what another enqueue says.';
