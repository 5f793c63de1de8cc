-- Where jobs of linked queues go that may run as far as they themselves are concerned, in the order of the
-- array: to scheduled until their time has come or their group's throttle ends, in line with their group,
-- else to ready. One that has its group's slot still goes past the line: what came from a lease has, and
-- what waited for a retry, where one runs at a time; to the head of the line where as many as may run stand before it. It
-- begins again, so where its group has a rate it needs a slot of that, too: else to scheduled until there is one.
-- came_from: leased, scheduled, ready, waiting, elsewhere.
-- position is not read; lanes are open, the caller has entered the epoch and has taken them out of where they stood.
-- Calls: limit_of, group_slots, line_head, rate_slots, use_slots, slot_due, wake_sleepers.
-- Locks: group_slot rows (skip locked). Index: job_N_pk, group_slot_idx, ready_returned_idx.
create or replace function {{.schema}}.place_jobs(jobs {{.schema}}.ready[], came_from text default 'elsewhere')
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now    timestamptz := clock_timestamp();
    v_xact   bigint := pg_current_xact_id()::text::bigint;
    v_queues bigint[];
    v_rated  bigint[];
    v_back   {{.schema}}.ready[];
    v_group  record;
    v_jobs   bigint[];
    v_tokens bigint[];
    v_slots  int[];
begin
    with named as materialized (
        select u.ord, u.lane, u.job_id, u.token, u.attempt, u.failed, u.lost, u.expires_at, j.group_id, j.max_running,
            greatest(j.run_at, j.until, case when c.in_doubt then v_now + interval '100 ms' end) as due_at, j.slots,
            j.group_id is null or came_from in ('leased', 'ready') or c.mine is true as had_slot
          from unnest(place_jobs.jobs) with ordinality
            u(lane, position, job_id, token, attempt, failed, lost, expires_at, ord)
          left join lateral (
            select j.run_at, g.group_id, l.max_running, l.until, l.slots
              from (
                select j.run_at, j.group_key from {{.schema}}.job j where j.job_id = u.job_id limit 1) j
              left join lateral (
                select hashtextextended(j.group_key, u.lane >> 16) & 9223372036854775807 as group_id
                 where j.group_key is not null) g on true
              left join lateral (
                select l.max_running, l.until, l.slots
                  from (select 1 where g.group_id is not null offset 0) x
                 cross join lateral {{.schema}}.limit_of(u.lane >> 16, g.group_id) l) l on true) j on true
          left join lateral (
            -- One that is dead gives its slot up to whoever has the group's lock. If that one's transaction is open, and the job
            -- came back meanwhile, its slot is just being replaced: whose it is shows later.
            select s.mine, s.mine and (
                select case when x.xmax <> 0 then not exists (
                        select from {{.schema}}.group_slot y where y.ctid = x.slot_row for update skip locked) end
                  from (
                    select x.ctid as slot_row, x.xmax from {{.schema}}.group_slot x
                     where x.group_id = j.group_id and x.slot = s.slot
                     order by x.version desc
                     limit 1) x) as in_doubt
              from (
                select bool_and(s.job_id = u.job_id) filter (where s.busy or s.job_id = u.job_id) as mine,
                    max(s.slot) filter (where s.job_id = u.job_id) as slot
                  from (select 1 where came_from = 'scheduled' and j.max_running = 1 offset 0) x
                 cross join lateral {{.schema}}.group_slots(j.group_id, 1) s) s) c on true
    ), asked as materialized (
        -- The limit may have been lowered since, so that fewer run than have a slot; those of the call stand nowhere.
        select n.*, n.had_slot and (
                n.group_id is null or place_jobs.came_from = 'ready' or n.later or n.nth <= n.max_running - case
                when exists (select from {{.schema}}.group_slot x where x.group_id = n.group_id and x.slot > 0) then (
                    select count(*) from {{.schema}}.group_slots(n.group_id, 2) s where s.busy) else 0 end) as has_slot
          from (
            select n.*, n.due_at is not null and n.due_at > v_now as later, row_number() over (
                partition by n.group_id, n.had_slot, n.due_at is not null and n.due_at > v_now order by n.ord) as nth
              from named n) n
    ), later as (
        insert into {{.schema}}.scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
        select a.due_at, a.job_id, a.lane, a.token, a.attempt, a.failed, a.lost, a.expires_at
          from asked a
         where a.due_at > v_now
    ), in_line as (
        insert into {{.schema}}.waiting (job_id, lane, holder, group_id, position, token, attempt, failed, lost,
            expires_at, xact, first)
        select a.job_id, a.lane, 'group', a.group_id, a.position, a.token, a.attempt, a.failed, a.lost,
            a.expires_at, v_xact, row_number() over (partition by a.group_id order by a.position) = 1
          from (
            select x.*, nextval('{{.schema}}.position') as position
              from (
                select * from asked
                 where not had_slot and (due_at is null or due_at <= v_now)
                 order by ord) x
            offset 0) a
         order by a.position
    ), at_once as (
        insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
        select a.lane, nextval('{{.schema}}.position'), a.job_id, a.token, a.attempt, a.failed, a.lost,
            a.expires_at
          from (select * from asked where has_slot and (due_at is null or due_at <= v_now) order by ord) a
        returning lane
    )
    select array_agg(distinct o.lane >> 16), (
            select array_agg(a.job_id order by a.ord) from asked a
             where a.slots is not null and a.has_slot and (a.due_at is null or a.due_at <= v_now)
               and place_jobs.came_from <> 'ready'), (
            select array_agg(row(a.lane, 0, a.job_id, a.token, a.attempt, a.failed, a.lost, a.expires_at)::{{.schema}}.ready
                order by a.ord)
              from asked a
             where a.had_slot and not a.has_slot)
      into v_queues, v_rated, v_back
      from at_once o;
    if v_back is not null then
        -- Others may have ended meanwhile: the tick looks.
        for v_group in
            select hashtextextended(j.group_key, b.queue_id) & 9223372036854775807 as group_id, b.queue_id,
                array_agg(b.job order by b.ord) as jobs
              from (
                select u.lane >> 16 as queue_id, u.job_id, u.ord,
                    row(u.lane, 0, u.job_id, u.token, u.attempt, u.failed, u.lost, u.expires_at)::{{.schema}}.ready as job
                  from unnest(v_back) with ordinality
                    u(lane, position, job_id, token, attempt, failed, lost, expires_at, ord)) b
             cross join lateral (select j.group_key from {{.schema}}.job j where j.job_id = b.job_id limit 1) j
             group by 1, 2
             order by 1
        loop
            perform {{.schema}}.line_head(v_group.group_id, v_group.jobs);
            insert into {{.schema}}.todo (kind, id, queue_id, due_at) values ('group', v_group.group_id, v_group.queue_id, v_now);
        end loop;
    end if;
    if v_rated is not null then
        for v_group in
            select g.group_id, g.queue_id, g.job_ids, g.tokens, l.slots, l.time_window
              from (
                select j.queue_id, hashtextextended(j.group_key, j.queue_id) & 9223372036854775807 as group_id,
                    array_agg(u.job_id order by u.ord) as job_ids, array_agg(-1 - r.token order by u.ord) as tokens
                  from unnest(v_rated) with ordinality u(job_id, ord)
                 cross join lateral (
                    select j.queue_id, j.group_key from {{.schema}}.job j where j.job_id = u.job_id limit 1) j
                 cross join lateral (
                    select r.token from {{.schema}}.ready r where r.job_id = u.job_id and r.position <> r.job_id limit 1) r
                 group by 1, 2
                 order by 2) g
             cross join lateral {{.schema}}.limit_of(g.queue_id, g.group_id) l
        loop
            -- Who was parked before it began has its slot still.
            select array_agg(u.job_id order by u.ord), array_agg(u.token order by u.ord) into v_jobs, v_tokens
              from unnest(v_group.job_ids, v_group.tokens) with ordinality u(job_id, token, ord)
             where (u.job_id, u.token) not in (
                select x.job_id, x.token
                  from generate_series(0, v_group.slots - 1) n(slot)
                 cross join lateral (
                    select x.job_id, x.token from {{.schema}}.limit_slot x
                     where x.holder = -1 - v_group.group_id and x.slot = n.slot
                     order by x.version desc
                     limit 1) x);
            continue when v_jobs is null;
            v_slots := {{.schema}}.rate_slots(-1 - v_group.group_id, v_group.slots, v_group.time_window,
                cardinality(v_jobs));
            perform {{.schema}}.use_slots(-1 - v_group.group_id, v_slots, v_jobs[:cardinality(v_slots)],
                v_tokens[:cardinality(v_slots)]);
            with parked as (
                delete from {{.schema}}.ready r
                 where r.job_id = any (v_jobs[cardinality(v_slots) + 1:]) and r.position <> r.job_id
                returning r.*
            )
            insert into {{.schema}}.scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
            select greatest(v_now + interval '20 ms', {{.schema}}.slot_due(-1 - v_group.group_id, v_group.slots,
                v_group.time_window)), p.job_id, p.lane, p.token, p.attempt, p.failed, p.lost, p.expires_at
              from parked p;
            -- Who is next in line has a slot now, and waits for the rate as well.
            if cardinality(v_jobs) > cardinality(v_slots) then
                insert into {{.schema}}.todo (kind, id, queue_id, due_at)
                values ('group', v_group.group_id, v_group.queue_id, v_now);
            end if;
        end loop;
    end if;
    if v_queues is not null then
        perform {{.schema}}.wake_sleepers(u.queue_id) from unnest(v_queues) u(queue_id);
    end if;
end
$$;
comment on function {{.schema}}.place_jobs({{.schema}}.ready[], text) is 'Puts jobs of linked queues where they may run.';
