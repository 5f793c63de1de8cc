-- What became of the jobs on which a job depends, for its worker.
-- Calls: may. Index: job_N_pk, finished_N_pk, dead_pk, leased_pk, scheduled_pk, waiting_pk, queue_id_idx,
-- attempt_N_pk.
create or replace function {{.api_schema}}.oq_parents(job_id bigint)
returns table (parent_id bigint, state text, result jsonb, error text)
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
begin
    return query
    select d.parent_id,
        case when s.may_read and f.shown is not false then coalesce(f.outcome::text, case
            when s.died then 'dead'
            when exists (select from leased l where l.job_id = d.parent_id) then 'leased'
            when exists (select from scheduled c where c.job_id = d.parent_id) then 'scheduled'
            when exists (select from waiting w where w.job_id = d.parent_id) then 'waiting'
            when s.queue_id is not null then 'ready' end) end,
        case when s.may_read and f.shown is not false then f.result end,
        case when s.may_read and f.shown is not false then coalesce(f.error, s.died_of) end
      from (
        select j.queue_id, j.depends_on from job j where j.job_id = oq_parents.job_id limit 1) c
     cross join lateral unnest(c.depends_on) d(parent_id)
      left join lateral (
        -- As oq_jobs has it: what had finished when the queue was dropped went with it.
        select f.queue_id, f.outcome, f.result, coalesce(f.error, case when f.outcome <> 'completed' then (
                select a.error from attempt a
                 where a.job_id = f.job_id
                 order by a.attempt desc limit 1) end) as error, f.kept and f.finished_at >= (
                select q.created_at from queue q
                 where q.queue_id = f.queue_id
                 order by q.version desc, q.row_id
                 limit 1) as shown
          from finished f
         where f.job_id = d.parent_id
         limit 1) f on true
      left join lateral (select j.queue_id from job j where j.job_id = d.parent_id limit 1) p on true
      left join lateral (select x.error from dead x where x.job_id = d.parent_id) x on true
     cross join lateral (
        select coalesce(f.queue_id, p.queue_id) as queue_id, x.error as died_of,
            exists (select from dead y where y.job_id = d.parent_id) as died,
            coalesce(may(coalesce(f.queue_id, p.queue_id), 'observe')
                or may(coalesce(f.queue_id, p.queue_id), 'consume'), true) as may_read
        offset 0) s
     where may(c.queue_id, 'observe') or may(c.queue_id, 'consume')
     order by d.parent_id;
end
$$;
comment on function {{.api_schema}}.oq_parents(bigint) is
'The jobs on which a job depends: state, result and error of each.
One row a parent, by depends_on or depends_on_refs, in the order of their ids. State, result and error are
null where the parent is past its retention, or in a restricted queue that the caller may neither
consume nor observe. No row where that holds for the job itself.';
