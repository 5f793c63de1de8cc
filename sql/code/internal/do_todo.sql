-- What could not be looked at when it was time to. Readiness is derived again from what is true now; what
-- somebody else has under his hands stays for the next time. most: groups whose locks this transaction
-- may hold. Rows that came to stand below the low of their group, committed late, go to the end of the line.
-- duty: for the tick, whose transaction is short. A group that somebody keeps for long then has one todo left, later:
-- each enqueue into it leaves one, and the oldest are looked at first.
-- Calls: enter, admit. Locks: todo rows (skip locked), groups (try). Index: todo_group_idx,
-- todo_group_queue_idx, waiting_group_idx.
create or replace function {{.schema}}.do_todo(max_rows int, only_queue bigint, most int, duty boolean default false)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now    timestamptz := clock_timestamp();
    v_from   timestamptz := {{template "internal/todo_low.sql" dict "schema" .schema}};
    v_todo   record;
    v_low    bigint;
    v_groups bigint[];
    v_queues bigint[];
    v_done   bigint[];
    v_kept   bigint[];
    v_count  bigint;
    v_xact   bigint;
    v_late   boolean;
begin
    if {{template "internal/one_snapshot.sql"}} then
        return 0;
    end if;
    for v_todo in
        select t.id, min(t.queue_id) as queue_id, min(t.position) as position, min(t.due_at) as due_at,
            array_agg(t.todo_id) as todo_ids
          from (
            -- Of one queue by an index of its own: what others have left may be a hundred thousand.
            select a.* from (
                select t.todo_id, t.id, t.queue_id, t.position, t.due_at
                  from {{.schema}}.todo t
                 where do_todo.only_queue is null and t.kind = 'group' and t.due_at >= v_from and t.due_at <= v_now
                 order by t.due_at
                 limit do_todo.max_rows
                   for update skip locked) a
            union all
            select a.* from (
                select t.todo_id, t.id, t.queue_id, t.position, t.due_at
                  from {{.schema}}.todo t
                 where t.queue_id = do_todo.only_queue and t.kind = 'group' and t.due_at >= v_from and t.due_at <= v_now
                 order by t.due_at
                 limit do_todo.max_rows
                   for update skip locked) a) t
         group by t.id
         order by min(t.due_at), t.id
    loop
        exit when cardinality(v_groups) >= do_todo.most;
        if not pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (v_todo.id & 2147483647)::int) then
            if v_todo.due_at < v_now - interval '1 second' then
                v_kept := v_kept || v_todo.todo_ids;
            end if;
            continue;
        end if;
        v_groups := v_groups || v_todo.id;
        v_queues := v_queues || v_todo.queue_id;
        v_late := false;
        if v_todo.position is not null then
            v_low := {{template "internal/group_low.sql" dict "schema" .schema "group" "v_todo.id"}};
            v_late := exists (
                select from {{.schema}}.waiting w
                 where w.group_id = v_todo.id and w.position >= v_todo.position and w.position < v_low);
        end if;
        if v_late then
            perform {{.schema}}.enter();
            v_xact := pg_current_xact_id()::text::bigint;
            update {{.schema}}.waiting w
               set position = o.position, xact = v_xact
              from (
                select x.job_id, nextval('{{.schema}}.position') as position
                  from (
                    select w.job_id from {{.schema}}.waiting w
                     where w.group_id = v_todo.id and w.position >= v_todo.position and w.position < v_low
                     order by w.position
                     limit 1000
                       for update skip locked) x
                offset 0) o
             where w.job_id = o.job_id;
            -- Held by somebody, or more of them: the todo stays.
            v_late := exists (
                select from {{.schema}}.waiting w
                 where w.group_id = v_todo.id and w.position >= v_todo.position and w.position < v_low);
        end if;
        if not v_late then
            v_done := v_done || v_todo.todo_ids;
        end if;
    end loop;
    if duty and v_kept is not null then
        with gone as (
            delete from {{.schema}}.todo t where t.todo_id = any (v_kept)
            returning t.id, t.queue_id, t.position
        )
        insert into {{.schema}}.todo (kind, id, queue_id, position, due_at)
        select 'group', g.id, min(g.queue_id), min(g.position), v_now + interval '500 ms' from gone g group by g.id;
    end if;
    if v_groups is null then
        return 0;
    end if;
    v_count := cardinality(v_groups) + {{.schema}}.admit(v_groups, v_queues, do_todo.most);
    delete from {{.schema}}.todo t where t.todo_id = any (v_done);
    return v_count;
end
$$;
comment on function {{.schema}}.do_todo(int, bigint, int, boolean) is 'Does what could not be done when it was time to.';
