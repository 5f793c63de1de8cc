-- The parents and batches of jobs that are being enqueued: refs become ids, edges are made, and who has to wait goes
-- to waiting, who is cancelled at once to finished: held. elements and became tell what each element of the
-- call became; news are those that are new. A parent that somebody else may just be ending gets a
-- todo, which is seen when both have committed: neither waits for the other. Hash joins: the arrays can be long.
-- Calls: job_ends, demand, may, tell_queue. Locks: batch (shared, try). Index: dependency_pk, and as job_ends.
create or replace function {{.schema}}.place_children(
    elements jsonb, inout news {{.schema}}.new_job[], became bigint[],
    now timestamptz, single boolean, out held boolean[], out over bigint[])
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_nestloop = off
set enable_hashjoin = on
set jit = off
as $$
#variable_conflict use_column
declare
    v_children bigint[];
    v_parents  bigint[];
    v_own      boolean[];
    v_known    bigint[];
    v_queues   bigint[];
    v_ends     text[];
    v_news     {{.schema}}.new_job[];
    v_bad      record;
    v_batch    bigint;
    v_sealed   boolean;
    v_blind    boolean := {{template "internal/one_snapshot.sql"}};
begin
    -- own: the parent is made by the same call, so that nobody can be ending it.
    with new as materialized (
        select n.job_id, n.ord, n.depends_on
          from unnest(place_children.news) n
    ), element as materialized (
        select e.ord, e.job ->> 'ref' as ref, e.job -> 'depends_on_refs' as refs
          from jsonb_array_elements(place_children.elements) with ordinality e(job, ord)
         where e.job ?| '{ref,depends_on_refs}'
    ), wanted as materialized (
        select n.job_id, r.ref
          from element e
          join new n on n.ord = e.ord
         cross join lateral jsonb_array_elements_text(e.refs) r(ref)
         where jsonb_typeof(e.refs) = 'array'
    )
    select array_agg(p.job_id order by p.job_id, p.parent_id), array_agg(p.parent_id order by p.job_id, p.parent_id),
        array_agg(p.own order by p.job_id, p.parent_id)
      into v_children, v_parents, v_own
      from (
        select x.job_id, x.parent_id, bool_or(x.own) as own
          from (
            select n.job_id, d.parent_id, false as own from new n cross join lateral unnest(n.depends_on) d(parent_id)
            union all
            select w.job_id, place_children.became[e.ord], p.job_id is not null
              from wanted w
              join element e on e.ref = w.ref
              left join new p on p.job_id = place_children.became[e.ord]) x
         group by x.job_id, x.parent_id) p;

    select array_agg(e.job_id), array_agg(e.queue_id), array_agg(e.ended) into v_known, v_queues, v_ends
      from {{.schema}}.job_ends(array(
        select distinct u.parent_id from unnest(v_parents, v_own) u(parent_id, own) where not u.own)) e;
    select n.ord, p.parent_id into v_bad
      from unnest(v_children, v_parents) p(job_id, parent_id)
      join unnest(v_known, v_ends) k(job_id, ended) on k.job_id = p.parent_id
      join unnest(place_children.news) n on n.job_id = p.job_id
     where k.ended is null
     order by n.ord, p.parent_id
     limit 1;
    if v_bad.ord is not null then
        perform {{.schema}}.fail(case when single then 'options.' else 'jobs[' || v_bad.ord - 1 || '].' end
            || 'depends_on', v_bad.parent_id::text, 'the id of a job that is unfinished, or still kept');
    end if;
    -- Whether a job ended is not for everybody to learn.
    perform {{.schema}}.demand(q.queue_id, null, 'produce')
       from (select distinct u.queue_id from unnest(v_queues) u(queue_id)) q
      where not {{.schema}}.may(q.queue_id, 'observe') and not {{.schema}}.may(q.queue_id, 'consume');

    for v_batch in select distinct j.batch_id from unnest(news) j where j.batch_id is not null order by 1 loop
        -- Shared until the commit is visible: nobody takes the batch for complete meanwhile.
        v_sealed := not pg_try_advisory_xact_lock_shared(
            hashtext('{{.schema}}:batch'), (v_batch & 2147483647)::int);
        if not v_sealed then
            v_sealed := not exists (
                select from {{.schema}}.dependency d where d.parent_id = 0 and d.child_id = -v_batch);
            if not v_sealed and v_blind then
                begin
                    -- What an old snapshot shows may be sealed: a row lock tells, for a moment.
                    perform from {{.schema}}.dependency d
                      where d.parent_id = 0 and d.child_id = -v_batch
                        for key share skip locked;
                    raise exception using errcode = 'OQ099';
                exception when sqlstate 'OQ099' then null;
                end;
            end if;
        end if;
        if v_sealed then
            select j.ord into v_bad from unnest(news) j where j.batch_id = v_batch order by j.ord limit 1;
            perform {{.schema}}.fail(case when single then 'options.' else 'jobs[' || v_bad.ord - 1 || '].' end
                || 'batch_id', v_batch::text, 'the id of a batch that is not sealed');
        end if;
    end loop;

    -- Ends are looked at from now on in the queues of parents, of members, and of those who wait.
    perform {{.schema}}.tell_queue(l.queue_id, 'linked')
       from (
        select u.queue_id from unnest(v_queues, v_ends) u(queue_id, ended) where u.ended in ('open', 'lost')
        union
        select j.queue_id from unnest(news) j where j.batch_id is not null
        union
        select j.queue_id
          from unnest(place_children.news) j
         where j.job_id in (select unnest(v_children || v_parents))
         order by 1) l;

    with child as materialized (
        select i.job_id, i.ord, i.lane, i.queue_id, i.expires_at, i.batch_id, p.parent_ids,
            case when p.parent_ids is not null then coalesce(i.on_parent_failure, 'cancel') end as on_parent_failure,
            case when coalesce(i.on_parent_failure, 'cancel') = 'cancel' then p.failed end as failed,
            coalesce(p.is_open, false) as is_open
          from unnest(place_children.news) i
          left join (
            select u.job_id, array_agg(u.parent_id order by u.parent_id) as parent_ids,
                min(u.parent_id) filter (where k.ended = 'failed') as failed,
                bool_or(u.own or k.ended in ('open', 'lost')) as is_open
              from unnest(v_children, v_parents, v_own) u(job_id, parent_id, own)
              left join unnest(v_known, v_ends) k(job_id, ended) on k.job_id = u.parent_id and not u.own
             group by u.job_id) p on p.job_id = i.job_id
    ), edges as (
        insert into {{.schema}}.dependency (parent_id, child_id)
        select u.parent_id, u.job_id
          from unnest(v_children, v_parents, v_own) u(job_id, parent_id, own)
          join child c on c.job_id = u.job_id
          left join unnest(v_known, v_ends) k(job_id, ended) on k.job_id = u.parent_id and not u.own
         where c.failed is null and (u.own or k.ended in ('open', 'lost'))
        union all
        select c.job_id, -c.batch_id from child c where c.batch_id is not null
    ), todos as (
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        select 'parent', u.parent_id, min(c.queue_id), place_children.now
          from unnest(v_children, v_parents, v_own) u(job_id, parent_id, own)
          join child c on c.job_id = u.job_id
          join unnest(v_known, v_ends) k(job_id, ended) on k.job_id = u.parent_id and not u.own
         where c.failed is null and k.ended in ('open', 'lost')
         group by u.parent_id
    ), waits as (
        insert into {{.schema}}.waiting (job_id, lane, holder, position, expires_at)
        select c.job_id, c.lane, 'parent', c.job_id, c.expires_at
          from child c
         where c.is_open and c.failed is null
    ), ends as (
        insert into {{.schema}}.finished (gen, job_id, queue_id, attempt, lost, finished_at, outcome, kept, error)
        select pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint, c.job_id, c.queue_id, 0, 0,
            place_children.now, 'cancelled', q.keep <> 'none', 'parent ' || c.failed || ' has failed'
          from child c
         cross join lateral (
            select q.keep from {{.schema}}.queue q
             where q.queue_id = c.queue_id
             order by q.version desc, q.row_id
             limit 1) q
         where c.failed is not null
    )
    select array_agg((c.is_open or c.failed is not null) order by c.ord),
        array_agg(c.job_id order by c.job_id) filter (where c.failed is not null),
        array_agg(row(n.ord, n.job_id, n.queue_id, n.lane, n.run_at, n.max_retries, n.expires_at, n.retry, n.tags,
            n.group_key, n.unique_key, n.unique_mode, n.unique_for, n.debounce_max, c.parent_ids,
            c.on_parent_failure, n.batch_id)::{{.schema}}.new_job order by n.ord)
      into held, over, v_news
      from child c
      join unnest(place_children.news) n on n.ord = c.ord;
    news := v_news;
end
$$;
comment on function {{.schema}}.place_children(
    jsonb, {{.schema}}.new_job[], bigint[], timestamptz, boolean) is
    'The parents and batches of jobs that are being enqueued.';
