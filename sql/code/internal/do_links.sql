-- What dependents and batches could not do when it was time to. Whether a parent is over and a child free is
-- derived again from what is true now. A parent that is open is done with when nobody is just moving it:
-- whoever ends it later sees its edges. If its lease is older than its first dependent, the lease is told to look.
-- duty: the transaction is short, so that it may lock a lease for its length, or where else the parent stands.
-- Calls: job_ends, settle_parents, free_children. Locks: todo and place rows (skip locked), then as these.
-- Index: todo_link_idx, todo_link_queue_idx, leased_pk, and as job_ends.
create or replace function {{.schema}}.do_links(max_rows int, only_queue bigint, duty boolean)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now      timestamptz := clock_timestamp();
    v_from     timestamptz := {{template "internal/todo_low.sql" dict "schema" .schema}};
    v_todos    bigint[];
    v_parents  bigint[];
    v_children bigint[];
    v_over     bigint[];
    v_open     bigint[];
    v_told     bigint[];
    v_moving   bigint[];
    v_count    bigint;
begin
    if {{template "internal/one_snapshot.sql"}} then
        return 0;
    end if;
    select count(*), array_agg(x.todo_id), array_agg(distinct x.id) filter (where x.kind = 'parent'),
        array_agg(distinct x.id) filter (where x.kind = 'child')
      into v_count, v_todos, v_parents, v_children
      from (
        select a.* from (
            select t.todo_id, t.id, t.kind
              from {{.schema}}.todo t
             where do_links.only_queue is null and t.kind <> 'group' and t.due_at >= v_from and t.due_at <= v_now
             order by t.due_at
             limit do_links.max_rows
               for update skip locked) a
        union all
        select a.*
          from unnest(array[0, do_links.only_queue]) q(queue_id)
         cross join lateral (
            select t.todo_id, t.id, t.kind
              from {{.schema}}.todo t
             where do_links.only_queue is not null and t.queue_id = q.queue_id and t.kind <> 'group'
               and t.due_at >= v_from and t.due_at <= v_now
             order by t.due_at
             limit do_links.max_rows
               for update skip locked) a) x;
    if v_todos is null then
        return 0;
    end if;
    -- Against a compaction between snapshot and look.
    lock table {{.schema}}.waiting, {{.schema}}.leased, {{.schema}}.ready, {{.schema}}.scheduled in access share mode;
    if v_parents is not null then
        select array_agg(e.job_id) filter (where e.ended is distinct from 'open'),
            array_agg(e.job_id) filter (where e.ended = 'open') into v_over, v_open
          from {{.schema}}.job_ends(v_parents) e;
        if v_over is not null then
            perform {{.schema}}.settle_parents(v_over, interval '200 ms');
        end if;
        if v_open is not null then
            if duty then
                with told as (
                    update {{.schema}}.leased l
                       set linked = true
                     where l.ctid = any (array(
                        select x.ctid from {{.schema}}.leased x
                         where x.job_id = any (v_open) and not x.linked
                         order by x.job_id
                           for update skip locked))
                    returning l.job_id
                )
                select array_agg(t.job_id) into v_told from told t;
            end if;
            v_moving := array(
                select u.job_id
                  from unnest(v_open) u(job_id)
                  left join lateral (
                    select (j.queue_id << 16) + 32767 - j.priority as lane
                      from {{.schema}}.job j where j.job_id = u.job_id limit 1) j on true
                 where exists (select from {{.schema}}.dependency d where d.parent_id = u.job_id)
                   and not exists (
                    select from {{.schema}}.leased l where l.job_id = u.job_id and l.linked and l.xmax = 0)
                   and u.job_id <> all (coalesce(v_told, '{}'))
                   and not exists (
                    select from {{.schema}}.ready r
                     where r.lane = j.lane and r.position = u.job_id and r.xmax = 0)
                   and not exists (
                    select from {{.schema}}.ready r
                     where r.job_id = u.job_id and r.position <> r.job_id and r.xmax = 0)
                   and not exists (select from {{.schema}}.scheduled s where s.job_id = u.job_id and s.xmax = 0)
                   and not exists (select from {{.schema}}.waiting w where w.job_id = u.job_id and w.xmax = 0));
            -- Or is it a lock of somebody who rolled back? Then nobody is moving it.
            if duty and cardinality(v_moving) > 0 then
                v_moving := array(
                    select u.job_id
                      from unnest(v_moving) u(job_id)
                      left join lateral (
                        select (j.queue_id << 16) + 32767 - j.priority as lane
                          from {{.schema}}.job j where j.job_id = u.job_id limit 1) j on true
                     where not exists (
                        select from (
                            select from {{.schema}}.leased l
                             where l.job_id = u.job_id and l.linked
                               for update skip locked) l)
                       and not exists (
                        select from (
                            select from {{.schema}}.ready r
                             where r.lane = j.lane and r.position = u.job_id
                               for update skip locked) r)
                       and not exists (
                        select from (
                            select from {{.schema}}.ready r
                             where r.job_id = u.job_id and r.position <> r.job_id
                               for update skip locked) r)
                       and not exists (
                        select from (
                            select from {{.schema}}.scheduled s
                             where s.job_id = u.job_id
                               for update skip locked) s)
                       and not exists (
                        select from (
                            select from {{.schema}}.waiting w
                             where w.job_id = u.job_id
                               for update skip locked) w));
            end if;
            update {{.schema}}.todo t
               set due_at = v_now + interval '200 ms'
             where t.todo_id = any (v_todos) and case when t.kind = 'parent' then true end and t.id = any (v_moving);
        end if;
    end if;
    if v_children is not null then
        perform {{.schema}}.free_children(v_children, array_fill(0::bigint, array[cardinality(v_children)]),
            interval '200 ms', duty);
    end if;
    delete from {{.schema}}.todo t
     where t.todo_id = any (v_todos) and not (t.kind = 'parent' and t.id = any (coalesce(v_moving, '{}')));
    return v_count - coalesce(cardinality(v_moving), 0);
end
$$;
comment on function {{.schema}}.do_links(int, bigint, boolean) is
    'Does for dependents and batches what was left to do.';
