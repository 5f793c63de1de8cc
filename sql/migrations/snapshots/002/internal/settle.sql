-- Jobs of linked or limited queues that are over for now: completed, dead, cancelled, expired or deleted.
-- What they held is given on. Their place is gone already, their job rows are still there.
-- Calls: admit, wake_sleepers, settle_parents. Locks: as admit. Index: job_N_pk, queue_id_idx.
create or replace function {{.schema}}.settle(job_ids bigint[])
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_groups  bigint[];
    v_queues  bigint[];
    v_limited bigint[];
begin
    select array_agg(g.group_id), array_agg(g.queue_id),
        array_agg(distinct g.queue_id) filter (where g.limited)
      into v_groups, v_queues, v_limited
      from (
        select j.queue_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 as group_id, (
                select q.limited from {{.schema}}.queue q
                 where q.queue_id = j.queue_id
                 order by q.version desc, q.row_id
                 limit 1) as limited
          from unnest(settle.job_ids) i(job_id)
         cross join lateral (
            select j.queue_id, j.group_key from {{.schema}}.job j where j.job_id = i.job_id limit 1) j) g
     where g.group_id is not null or g.limited;
    if v_groups is not null then
        perform {{.schema}}.admit(u.group_ids, u.queue_ids)
           from (
            select array_agg(g.group_id) as group_ids, array_agg(g.queue_id) as queue_ids
              from unnest(v_groups, v_queues) g(group_id, queue_id)
             where g.group_id is not null) u
          where u.group_ids is not null;
        -- A slot of the queue is free.
        if v_limited is not null then
            perform {{.schema}}.wake_sleepers(u.queue_id) from unnest(v_limited) u(queue_id);
        end if;
    end if;
    perform {{.schema}}.settle_parents(settle.job_ids);
end
$$;
comment on function {{.schema}}.settle(bigint[]) is 'Gives on what jobs held that are over.';
