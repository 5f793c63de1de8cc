-- What a lease that finds too little does for itself: true where there may be more to lease now.
-- While the daemon ticks, it is done for this queue only, so that a worker's long transaction hides
-- nothing of another's; without the daemon, for all, its own first, so that nobody's due jobs bar the way.
-- linked: what this transaction itself has put in line is let in as if it committed, so that it can lease it.
-- Calls: time_low, promote_due, reap_expired, expire_due, do_links, do_todo, lanes, advance_alone, own_locks,
-- take_up. Index: scheduled_due_idx, ttl_expires_idx, epoch_open_epoch_idx.
create or replace function {{.schema}}.tend(queue_id bigint, wanted int, linked boolean)
returns boolean
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now       timestamptz := clock_timestamp();
    v_alone     boolean := not {{template "internal/ticking.sql" .schema}};
    v_scheduled timestamptz;
    v_ttl       timestamptz;
    v_epoch     bigint := pg_sequence_last_value('{{.schema}}.epoch_low'::regclass);
    v_lo        bigint;
    v_own       bigint[];
    v_most      int := greatest(wanted, 1000);
    v_step      bigint;
    v_count     bigint := 0;
begin
    -- The first of each that is due, if any: an idle worker's poll ends with this one statement.
    select s.due_at into v_scheduled
      from {{.schema}}.scheduled s
     where s.due_at >= {{.schema}}.time_low(-1) and s.due_at <= v_now
     order by s.due_at
     limit 1;
    if v_alone then
        v_ttl := (
            select t.expires_at from {{.schema}}.ttl t
             where t.expires_at >= {{.schema}}.time_low(-2) and t.expires_at <= v_now
             order by t.expires_at limit 1);
    end if;
    -- Its own first: without a daemon the backlog of others must not bar the way.
    if v_scheduled is not null then
        v_count := {{.schema}}.promote_due(v_scheduled, null, v_most, tend.queue_id);
        if v_alone and v_count < v_most then
            v_count := v_count + {{.schema}}.promote_due(v_scheduled, null, v_most, null);
        end if;
    end if;
    -- Where somebody ticks it is his to look for what has expired, until he is late. Else one at a time does, since all leases are read.
    if {{template "internal/leases_due.sql" dict "schema" .schema "late" "200" "at" "v_now"}}
        or v_alone and {{template "internal/leases_due.sql" dict "schema" .schema "late" "0" "at" "v_now"}}
    then
        if v_alone and not {{template "internal/one_snapshot.sql"}} then
            perform setval('{{.schema}}.reap_after', (date_part('epoch', v_now) * 1000)::bigint + 100);
        end if;
        v_step := {{.schema}}.reap_expired(v_most, tend.queue_id);
        v_count := v_count + v_step;
        if v_alone and v_step < v_most then
            v_count := v_count + {{.schema}}.reap_expired(v_most, null);
        end if;
    end if;
    if v_ttl is not null then
        perform {{.schema}}.expire_due(v_ttl, null, 1000);
    end if;
    if linked then
        -- Its own first. Each group takes two locks until the commit, and the lock table is everybody's.
        for v_round in 1..case when v_alone then 5 else 1 end loop
            v_step := {{.schema}}.do_links(100, tend.queue_id, false);
            set constraints {{.schema}}.waiting_line_up immediate;
            set constraints {{.schema}}.waiting_line_up deferred;
            v_step := v_step + {{.schema}}.do_todo(100, tend.queue_id, 100 * v_round);
            v_count := v_count + v_step;
            exit when v_step = 0;
        end loop;
        if v_alone and v_step = 0 then
            v_count := v_count + {{.schema}}.do_links(100, null, false) + {{.schema}}.do_todo(100, null, 600);
        end if;
        -- What was let in just now by the first of these is not counted.
        v_count := v_count + exists (
            select from {{.schema}}.lanes(tend.queue_id << 16, (tend.queue_id << 16) + 65535) k
             cross join lateral (
                select from {{.schema}}.ready r where r.lane = k.lane and r.position >= k.low limit 1) r)::int;
    end if;
    -- Late commits below the marks.
    if v_alone then
        v_count := v_count + {{.schema}}.advance_alone();
    end if;
    -- This transaction's own jobs, where it is old enough for a mark to have gone by.
    if v_count = 0 and now() < v_now - interval '5 milliseconds' and pg_current_xact_id_if_assigned() is not null then
        v_own := {{.schema}}.own_locks('epoch');
        select min(e.lo) into v_lo
          from {{.schema}}.epoch_open e
         where e.epoch >= v_epoch and e.epoch & 2147483647 = any (v_own);
        v_count := {{.schema}}.take_up(queue_id, wanted, v_lo);
    end if;
    return v_count > 0;
end
$$;
comment on function {{.schema}}.tend(bigint, int, boolean) is 'The duties that a lease does for itself.';
