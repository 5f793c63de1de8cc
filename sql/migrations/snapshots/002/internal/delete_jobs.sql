-- What is left of jobs whose place the caller has deleted. oq_rotate may be moving a job's row to
-- another generation: then the new row is there for the next statement, and left alone it would be
-- a job without a place, which oq_repair puts back.
-- Locks: job rows. Index: job_N_pk, attempt_N_pk, ttl_job_idx.
create or replace function {{.schema}}.delete_jobs(job_ids bigint[])
returns void
language plpgsql
as $$
begin
    for v_round in 1..20 loop
        delete from {{.schema}}.job j where j.job_id = any (job_ids);
        exit when not exists (select from {{.schema}}.job j where j.job_id = any (job_ids));
    end loop;
    for v_round in 1..20 loop
        delete from {{.schema}}.attempt a where a.job_id = any (job_ids);
        exit when not exists (select from {{.schema}}.attempt a where a.job_id = any (job_ids));
    end loop;
    delete from {{.schema}}.ttl t where t.job_id = any (job_ids);
end
$$;
comment on function {{.schema}}.delete_jobs(bigint[]) is
    'Deletes what is left of jobs without a place.';
