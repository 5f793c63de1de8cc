-- Every lease of a job that counted: the recorded ones, the one that ended it, the one that runs.
-- Calls: oq_jobs (for the right to see it). Index: attempt_N_pk, finished_N_pk.
create or replace function {{.api_schema}}.oq_attempts(job_id bigint)
returns table (
    attempt   int,
    worker_id text,
    leased_at timestamptz,
    ended_at  timestamptz,
    outcome   text,
    error     text
)
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
begin
    return query
    select x.attempt, x.worker_id, x.leased_at, x.ended_at, x.outcome, x.error
      from {{.api_schema}}.oq_jobs j
     cross join lateral (
        select a.attempt, a.worker_id, a.leased_at, a.ended_at, a.outcome, a.error
          from attempt a
         where a.job_id = oq_attempts.job_id
        union all
        select j.attempt, j.worker_id, j.leased_at, j.finished_at, j.state,
            case when j.state = 'cancelled' then (select f.error from finished f where f.job_id = j.job_id limit 1) end
         where j.leased_at is not null) x
     where j.job_id = oq_attempts.job_id
     order by x.attempt;
end
$$;
comment on function {{.api_schema}}.oq_attempts(bigint) is
'The attempts of a job: who, when, how each ended, and its error.
outcome: failed, lost (the lease expired), completed, cancelled, or leased for the one that runs
now. Attempts given back by oq_release are not counted.';
