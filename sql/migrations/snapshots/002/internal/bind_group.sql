-- Holds what has been let in of a group against its limits, which may be younger: what is ready above max_running goes
-- back to the head of the line, the last first; what was let in without a slot of the rate takes one, where it is ready
-- still and there is none goes back as well. The caller holds the group's lock. Returns how many went back, 1000 at most.
-- Calls: group_slots, rate_slots, use_slots, line_head. Locks: ready rows (skip locked), rate slots (try).
-- Index: group_slot_idx, limit_slot_idx, leased_pk, ready_returned_idx.
create or replace function {{.schema}}.bind_group(group_id bigint, queue_id bigint, max_running int, slots int, time_window interval)
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_holder bigint := -1 - bind_group.group_id;
    v_ready  bigint[];
    v_begun  bigint[];
    v_counts bigint[];
    v_tokens bigint[];
    v_slots  int[];
    v_keep   int;
    v_back   {{.schema}}.ready[];
begin
    select array_agg(s.job_id order by r.position) filter (where r.position is not null),
        array_agg(s.job_id) filter (where r.position is null and l.token is not null)
      into v_ready, v_begun
      from {{.schema}}.group_slots(bind_group.group_id, bind_group.max_running) s
      left join lateral (
        select r.position from {{.schema}}.ready r where r.job_id = s.job_id and r.position <> r.job_id limit 1) r on true
      left join lateral (
        select l.token from {{.schema}}.leased l where l.job_id = s.job_id limit 1) l on true
     where s.busy;
    v_keep := greatest(least(bind_group.max_running - coalesce(cardinality(v_begun), 0), coalesce(cardinality(v_ready), 0)), 0);
    if bind_group.slots is not null then
        v_counts := array(
            select x.job_id
              from generate_series(0, bind_group.slots - 1) n(slot)
             cross join lateral (
                select x.job_id, x.token from {{.schema}}.limit_slot x
                 where x.holder = v_holder and x.slot = n.slot
                 order by x.version desc
                 limit 1) x
             where x.job_id = any (v_begun) or x.token < 0 and x.job_id = any (v_ready));
        select array_agg(l.job_id), array_agg(-l.token) into v_begun, v_tokens
          from {{.schema}}.leased l
         where l.job_id = any (v_begun) and l.job_id <> all (v_counts);
        if v_begun is not null then
            v_slots := {{.schema}}.rate_slots(v_holder, bind_group.slots, bind_group.time_window, cardinality(v_begun));
            perform {{.schema}}.use_slots(v_holder, v_slots, v_begun[:cardinality(v_slots)], v_tokens[:cardinality(v_slots)]);
        end if;
        -- Those that have a slot first.
        select array_agg(u.job_id order by u.job_id = any (v_counts) desc, u.ord), array_agg(-1 - r.token order by u.ord)
            filter (where u.job_id <> all (v_counts))
          into v_ready, v_tokens
          from unnest(v_ready) with ordinality u(job_id, ord)
         cross join lateral (
            select r.token from {{.schema}}.ready r where r.job_id = u.job_id and r.position <> r.job_id limit 1) r;
        v_slots := '{}';
        select count(*) filter (where u.job_id = any (v_counts)), array_agg(u.job_id order by u.ord)
            filter (where u.job_id <> all (v_counts))
          into v_keep, v_begun
          from unnest(v_ready[:v_keep]) with ordinality u(job_id, ord);
        if v_begun is not null then
            v_slots := {{.schema}}.rate_slots(v_holder, bind_group.slots, bind_group.time_window, cardinality(v_begun));
            perform {{.schema}}.use_slots(v_holder, v_slots, v_begun[:cardinality(v_slots)], v_tokens[:cardinality(v_slots)]);
        end if;
        v_keep := v_keep + cardinality(v_slots);
    end if;
    v_ready := v_ready[v_keep + 1:v_keep + 1000];
    if coalesce(cardinality(v_ready), 0) = 0 then
        return 0;
    end if;
    with gone as (
        delete from {{.schema}}.ready r
         where r.ctid = any (array(
            select x.ctid
              from unnest(v_ready) u(job_id)
             cross join lateral (
                select r.ctid from {{.schema}}.ready r
                 where r.job_id = u.job_id and r.position <> r.job_id
                   for update skip locked) x))
        returning r.*
    )
    select array_agg(row(g.*)::{{.schema}}.ready order by g.position) into v_back from gone g;
    -- Who is just leasing one may roll back: the tick looks again.
    if cardinality(v_ready) > coalesce(cardinality(v_back), 0) or cardinality(v_ready) = 1000 then
        insert into {{.schema}}.todo (kind, id, queue_id, due_at)
        values ('group', bind_group.group_id, bind_group.queue_id, clock_timestamp() + interval '200 ms');
    end if;
    if v_back is null then
        return 0;
    end if;
    perform {{.schema}}.line_head(bind_group.group_id, v_back);
    return cardinality(v_back);
end
$$;
comment on function {{.schema}}.bind_group(bigint, bigint, int, int, interval) is
    'Holds what has been let in of a group against its limits.';
