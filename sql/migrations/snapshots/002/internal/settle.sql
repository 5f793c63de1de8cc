-- Jobs of linked or limited queues that are over for now: completed, dead, cancelled, expired, deleted, or scheduled
-- again; over: for good, so that nobody need look where they stand.
-- What they held is given on. Their place is gone already, their job rows are still there. leasing: the queue from which the
-- caller leases as many at once: what is given on there it takes itself, or could take, so no sleeper is woken for it.
-- With a worker more than there are slots, each of its turns would send the whole fleet to look in vain.
-- Calls: admit, admit_one, wake_sleepers, settle_parents. Locks: as admit.
-- Index: job_N_pk, queue_id_idx, dependency_pk, dependency_child_idx.
create or replace function {{.schema}}.settle(job_ids bigint[], over boolean default false,
    leasing text default null)
returns boolean
language plpgsql
as $$
#variable_conflict use_column
declare
    v_groups  bigint[];
    v_ended   bigint[];
    v_queues  bigint[];
    v_group   bigint;
    v_queue   bigint;
    v_limited bigint[];
    v_linked  boolean;
    v_done    boolean := false;
    v_waking  text;
begin
    if leasing is not null then
        -- For wake_at_commit as if it had been noted.
        v_waking := coalesce(current_setting('{{.schema}}.waking', true), '');
        perform set_config('{{.schema}}.waking', coalesce(nullif(v_waking, ''), ',') || settle.leasing || ',', true);
    end if;
    if {{template "internal/one_snapshot.sql"}} then
        v_linked := true;
    elsif cardinality(job_ids) = 1 then
        -- One job: a statement of its own, as short as it can be.
        select j.queue_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807, case when (
                select x.limited from {{.schema}}.queue x
                 where x.queue_id = j.queue_id
                 order by x.version desc, x.row_id
                 limit 1) then array[j.queue_id] end,
            exists (select from {{.schema}}.dependency d where d.parent_id = one.job_id)
                or exists (select from {{.schema}}.dependency d where d.child_id = one.job_id)
          into v_queue, v_group, v_limited, v_linked
          from (select job_ids[array_lower(job_ids, 1)] as job_id) one
          left join lateral (
            select j.queue_id, j.group_key from {{.schema}}.job j where j.job_id = one.job_id limit 1) j on true;
        if v_group is not null then
            v_done := {{.schema}}.admit_one(v_group, v_queue,
                case when over then job_ids[array_lower(job_ids, 1)] end);
        end if;
    end if;
    if v_queue is null then
        with ended as materialized (
            select i.job_id, j.queue_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 as group_id
              from unnest(settle.job_ids) i(job_id)
              left join lateral (
                select j.queue_id, j.group_key from {{.schema}}.job j where j.job_id = i.job_id limit 1) j on true
        )
        select array_agg(e.group_id) filter (where e.group_id is not null),
            array_agg(e.job_id) filter (where over and e.group_id is not null),
            array_agg(e.queue_id) filter (where e.group_id is not null), (
                select array_agg(q.queue_id)
                  from (select distinct e.queue_id from ended e) q
                 where (
                    select x.limited from {{.schema}}.queue x
                     where x.queue_id = q.queue_id
                     order by x.version desc, x.row_id
                     limit 1)),
            v_linked or bool_or(coalesce(
                (select true from {{.schema}}.dependency d where d.parent_id = e.job_id limit 1),
                (select true from {{.schema}}.dependency d where d.child_id = e.job_id limit 1), false))
          into v_groups, v_ended, v_queues, v_limited, v_linked
          from ended e;
        if v_groups is not null then
            v_done := {{.schema}}.admit(v_groups, v_queues, 100, v_ended) > 0;
        end if;
    end if;
    -- A slot of the queue is free.
    if v_limited is not null then
        perform {{.schema}}.wake_sleepers(u.queue_id) from unnest(v_limited) u(queue_id);
    end if;
    if leasing is not null then
        perform set_config('{{.schema}}.waking', v_waking, true);
    end if;
    -- An older snapshot can't tell whether somebody depends on them.
    if v_linked then
        v_done := {{.schema}}.settle_parents(settle.job_ids) > 0 or v_done;
    end if;
    return v_done;
end
$$;
comment on function {{.schema}}.settle(bigint[], boolean, text) is 'Gives on what jobs held that are over.';
