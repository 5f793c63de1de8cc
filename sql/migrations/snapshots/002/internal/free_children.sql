-- Children that have lost their edges from parent_ids (the highest of each, which this transaction deleted; 0: none)
-- are freed when no other edge is left. An edge that nobody is deleting (xmax = 0) will be deleted by somebody who
-- looks after this call did, so it is left to him. Where all that is left is just being deleted by others, that
-- can't be told from here: a todo, due after delay, looks again. So of any number that end at once the last to look
-- leaves a todo at least, and nobody waits. The edges above come first: those below are the dead ones. Where jobs end
-- from the last to the first it is the other way: the lowest edge, once found, is remembered by the session.
-- duty: the transaction is short. It tells who is deleting an edge from who was, and rolled back, by a lock.
-- Calls: enter, place_jobs, fire_batch. Locks: edges (duty) and waiting rows (skip locked), batch (try).
-- Index: dependency_child_idx, waiting_pk.
create or replace function {{.schema}}.free_children(
    child_ids bigint[], parent_ids bigint[], delay interval, duty boolean default false)
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_free  bigint[];
    v_again bigint[];
    v_jobs  {{.schema}}.ready[];
    v_batch bigint;
    v_wait  interval;
    v_since timestamptz;
    v_count int := 0;
    v_hint  text := current_setting('{{.schema}}.edge', true);
    v_edge  bigint := case when v_hint ~ '^[0-9]{1,18}$' then v_hint::bigint end;
    v_below bigint;
begin
    select array_agg(c.child_id order by c.child_id) filter (where c.state = 'free'),
        array_agg(c.child_id) filter (where c.state = 'in doubt'), max(c.below)
      into v_free, v_again, v_below
      from (
        select u.child_id, b.parent_id as below,
            case when a.held or b.parent_id is not null then 'held'
                when (select true from {{.schema}}.dependency d where d.child_id = u.child_id limit 1) then 'in doubt'
                else 'free' end as state
          from unnest(free_children.child_ids, free_children.parent_ids) u(child_id, parent_id)
         cross join lateral (
            select coalesce((
                    select true from {{.schema}}.dependency d
                     where d.parent_id = v_edge and d.child_id = u.child_id and d.xmax = 0
                     limit 1), (
                    select true from {{.schema}}.dependency d
                     where d.child_id = u.child_id and d.parent_id > u.parent_id and d.xmax = 0
                     limit 1), false) as held) a
          left join lateral (
            select d.parent_id
              from {{.schema}}.dependency d
             where not a.held and d.child_id = u.child_id and d.parent_id < u.parent_id and d.xmax = 0
             order by d.child_id, d.parent_id
             limit 1) b on true) c;
    if v_below is not null then
        perform set_config('{{.schema}}.edge', v_below::text, false);
    end if;
    -- Or it would look again five times a second for as long as the parent is open.
    if duty and v_again is not null then
        v_again := array(
            select u.child_id
              from unnest(v_again) u(child_id)
             where not exists (
                select from (
                    select from {{.schema}}.dependency d
                     where d.child_id = u.child_id
                     limit 1
                       for update skip locked) d));
    end if;
    if v_free is not null then
        perform {{.schema}}.enter();
        with gone as (
            delete from {{.schema}}.waiting w
             where w.ctid = any (array(
                select x.ctid from {{.schema}}.waiting x
                 where x.job_id = any (v_free) and x.holder = 'parent'
                 order by x.job_id
                   for update skip locked))
            returning w.*
        )
        select array_agg(row(g.lane, 0, g.job_id, g.token, g.attempt, g.failed, g.lost,
            g.expires_at)::{{.schema}}.ready order by g.job_id) into v_jobs
          from gone g;
        if v_jobs is not null then
            v_count := cardinality(v_jobs);
            perform {{.schema}}.place_jobs(v_jobs);
        end if;
        -- Somebody has it under his hands: to change it, to cancel it, or to free it as well.
        v_again := v_again || array(
            select w.job_id from {{.schema}}.waiting w where w.job_id = any (v_free) and w.holder = 'parent');
        -- Each may wait for a lock: after some, the others are left to the next time, whichever they are then.
        v_since := clock_timestamp();
        for v_batch in select -u.child_id from unnest(v_free) u(child_id) where u.child_id < 0 order by random() loop
            v_wait := case when clock_timestamp() > v_since + interval '100 ms' then interval '0'
                else {{.schema}}.fire_batch(v_batch) end;
            if v_wait is null then
                v_count := v_count + 1;
            else
                insert into {{.schema}}.todo (kind, id, queue_id, due_at)
                values ('child', -v_batch, 0, clock_timestamp() + greatest(v_wait, free_children.delay));
            end if;
        end loop;
    end if;
    if cardinality(v_again) > 0 then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'child', u.child_id, coalesce(w.lane >> 16, 0), clock_timestamp() + free_children.delay
          from unnest(v_again) u(child_id)
          left join {{.schema}}.waiting w on w.job_id = u.child_id;
    end if;
    return v_count;
end
$$;
comment on function {{.schema}}.free_children(bigint[], bigint[], interval, boolean) is
    'Frees children that wait for nobody any more.';
