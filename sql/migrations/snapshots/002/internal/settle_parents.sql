-- What dependents and batches do when jobs are over: their edges go, a failure cancels who asked for that, and with
-- it those who depend on these, and who waits for nobody any more is freed. Set-based and bounded; what
-- somebody else has under his hands, or is too much, is left to a todo. A snapshot of an older time can't tell
-- who depends on these: a todo for all. Edges of an enqueue that is not committed yet come with a todo of their own.
-- Lists are asked as subqueries, which are hashed: as arrays they would be gone through for each edge.
-- Calls: job_ends, free_children. Locks: edges and waiting rows (skip locked).
-- Index: dependency_pk, dependency_child_idx, waiting_pk, job_N_pk, batch_failure_idx.
create or replace function {{.schema}}.settle_parents(job_ids bigint[], delay interval default '20 ms')
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_ids      bigint[];
    v_done     bigint[];
    v_failed   bigint[];
    v_over     bigint[];
    v_parents  bigint[];
    v_children bigint[];
    v_cancel   bigint[];
    v_gone     bigint[];
    v_kept     bigint[];
    v_highest  bigint[];
    v_count    int := 0;
begin
    if {{template "internal/one_snapshot.sql"}} then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'parent', u.job_id, 0, clock_timestamp() from unnest(job_ids) u(job_id);
        return 0;
    end if;
    v_ids := array(
        select distinct u.job_id
          from unnest(job_ids) u(job_id)
         where (select true from {{.schema}}.dependency d where d.parent_id = u.job_id limit 1)
            or (select true from {{.schema}}.dependency d where d.child_id = u.job_id limit 1));
    for v_round in 1..100 loop
        exit when cardinality(v_ids) = 0;
        select coalesce(array_agg(e.job_id) filter (where e.ended = 'completed'), '{}'),
            coalesce(array_agg(e.job_id) filter (where coalesce(e.ended, 'lost') in ('failed', 'lost')), '{}')
          into v_done, v_failed
          from {{.schema}}.job_ends(v_ids) e;
        v_over := v_done || v_failed;
        exit when cardinality(v_over) = 0;
        -- What is over waits for nobody.
        delete from {{.schema}}.dependency d
         where d.ctid = any (array(
            select x.ctid from {{.schema}}.dependency x
             where x.child_id = any (v_over)
             limit 100000
               for update skip locked));

        select array_agg(x.parent_id), array_agg(x.child_id) into v_parents, v_children
          from (
            select d.parent_id, d.child_id
              from {{.schema}}.dependency d
             where d.parent_id = any (v_over)
             order by d.parent_id, d.child_id
             limit 1000 + cardinality(v_over)
               for update skip locked) x;
        v_cancel := array[]::bigint[];
        v_gone := array[]::bigint[];
        v_kept := array[]::bigint[];
        if v_children is not null then
            if cardinality(v_failed) > 0 then
                insert into {{.schema}}.batch_failure (batch_id)
                select distinct -u.child_id
                  from unnest(v_parents, v_children) u(parent_id, child_id)
                 where u.child_id < 0 and case when u.parent_id in (select unnest(v_failed)) then true end
                   and not exists (select from {{.schema}}.batch_failure f where f.batch_id = -u.child_id);
                v_cancel := array(
                    select distinct u.child_id
                      from unnest(v_parents, v_children) u(parent_id, child_id)
                     cross join lateral (
                        select j.on_parent_failure from {{.schema}}.job j where j.job_id = u.child_id limit 1) j
                     where u.child_id > 0 and case when u.parent_id in (select unnest(v_failed)) then true end
                       and j.on_parent_failure = 'cancel');
            end if;
            if cardinality(v_cancel) > 0 then
                with gone as (
                    delete from {{.schema}}.waiting w
                     where w.ctid = any (array(
                        select x.ctid from {{.schema}}.waiting x
                         where x.job_id = any (v_cancel) and x.holder = 'parent'
                         order by x.job_id
                           for update skip locked))
                    returning w.job_id, w.lane, w.attempt, w.lost, w.token
                ), ended as (
                    insert into {{.schema}}.finished (gen, job_id, queue_id, attempt, lost, token, finished_at, outcome,
                        kept, error)
                    select pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint, g.job_id, g.lane >> 16,
                        g.attempt, g.lost, -nullif(g.token, 0), clock_timestamp(), 'cancelled', (
                            select q.keep <> 'none' from {{.schema}}.queue q
                             where q.queue_id = g.lane >> 16
                             order by q.version desc, q.row_id
                             limit 1), (
                            select 'parent ' || d.parent_id || ' has failed'
                              from {{.schema}}.dependency d
                             where d.child_id = g.job_id
                               and case when d.parent_id in (select unnest(v_failed)) then true end
                             order by d.child_id, d.parent_id
                             limit 1)
                      from gone g
                )
                select coalesce(array_agg(g.job_id), '{}') into v_gone from gone g;
                v_count := v_count + cardinality(v_gone);
                -- Held by somebody: their edges stay, and say what is still to do.
                v_kept := array(
                    select w.job_id from {{.schema}}.waiting w
                     where w.job_id = any (v_cancel) and w.holder = 'parent');
            end if;
            delete from {{.schema}}.dependency d
             using unnest(v_parents, v_children) u(parent_id, child_id)
             where d.parent_id = u.parent_id and d.child_id = u.child_id
               and (u.child_id not in (select unnest(v_kept)) or u.parent_id not in (select unnest(v_failed)));

            select array_agg(c.child_id), array_agg(c.parent_id) into v_children, v_highest
              from (
                select u.child_id, max(u.parent_id) as parent_id
                  from unnest(v_parents, v_children) u(parent_id, child_id)
                 where u.child_id not in (select unnest(v_gone)) and u.child_id not in (select unnest(v_kept))
                 group by u.child_id) c;
            v_count := v_count + {{.schema}}.free_children(v_children, v_highest, delay);
        end if;

        -- More of them, or held by somebody who may give them back.
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'parent', u.job_id, coalesce(d.queue_id, 0), clock_timestamp()
            + case when cardinality(v_parents) >= 1000 then interval '0' else settle_parents.delay end
          from unnest(v_over) u(job_id)
         cross join lateral (
            select w.lane >> 16 as queue_id
              from {{.schema}}.dependency d
              left join {{.schema}}.waiting w on w.job_id = d.child_id
             where d.parent_id = u.job_id
             limit 1) d;
        v_ids := v_gone;
    end loop;
    if cardinality(v_gone) > 0 then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'parent', u.job_id, 0, clock_timestamp() from unnest(v_gone) u(job_id);
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.settle_parents(bigint[], interval) is
    'What dependents and batches do when jobs are over.';
