-- One job by its id. Calls: oq_jobs.
create or replace function {{.api_schema}}.oq_get(job_id bigint)
returns setof {{.api_schema}}.oq_jobs
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
begin
    return query select j.* from {{.api_schema}}.oq_jobs j where j.job_id = oq_get.job_id;
end
$$;
comment on function {{.api_schema}}.oq_get(bigint) is
'A job as in oq_jobs: one row or none.
None where it is unknown, gone after its retention, or not for the caller.';
