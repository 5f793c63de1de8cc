-- What became of a job. Calls: oq_jobs.
create or replace function {{.api_schema}}.oq_result(job_id bigint)
returns table (state text, result jsonb, error text)
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
begin
    return query
    select j.state, j.result, j.error
      from {{.api_schema}}.oq_jobs j
     where j.job_id = oq_result.job_id;
end
$$;
comment on function {{.api_schema}}.oq_result(bigint) is
'The state of a job, the result of its ack, or its last error.
No row where the job is unknown, past its retention, or not for the caller.';
