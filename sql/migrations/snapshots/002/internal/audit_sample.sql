-- The first of the jobs that oq_audit found, as a text. Where there are queues that the caller may not observe (hidden),
-- without their jobs, and without ids that belong to no job: nobody can tell whose those are.
-- Index: job_N_pk.
create or replace function {{.schema}}.audit_sample(ids bigint[], hidden bigint[])
returns text
language plpgsql
stable
as $$
#variable_conflict use_column
begin
    if hidden is null then
        return array_to_string(ids[1:5], ', ');
    end if;
    return (
        select string_agg(s.id::text, ', ' order by s.nth)
          from (
            select i.id, i.nth
              from unnest(ids[1:1000]) with ordinality i(id, nth)
             where (select j.queue_id <> all (hidden) from {{.schema}}.job j where j.job_id = i.id limit 1)
             order by i.nth
             limit 5) s);
end
$$;
comment on function {{.schema}}.audit_sample(bigint[], bigint[]) is
    'A few of the ids that oq_audit found, of those that the caller may see.';
