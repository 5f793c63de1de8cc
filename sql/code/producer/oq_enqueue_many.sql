-- Many jobs, each with its own arguments and options, set-based.
-- Calls: enqueue_jobs.
create or replace function {{.api_schema}}.oq_enqueue_many(jobs jsonb)
returns table (idx int, job_id bigint, inserted boolean)
language plpgsql
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
begin
    return query select e.idx, e.job_id, e.inserted from enqueue_jobs(jobs, false) e;
end
$$;
comment on function {{.api_schema}}.oq_enqueue_many(jsonb) is
'Enqueues many jobs, each with its own arguments; one row per element.
jobs: a JSON array of at most 100000 objects with queue_name and any other argument or option of
oq_enqueue by its name; ref names an element, and depends_on_refs those that must end before it.
idx counts from 0, in the order of jobs; inserted is false where a unique key gave the job that has it. All
of them or, with an error that names the element, none. Errors as oq_enqueue.';
