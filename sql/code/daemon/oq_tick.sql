-- Every duty once. A duty that fails says so in a warning and does not keep the others from their work;
-- each is bounded and goes on at the next tick.
-- Calls: verify_instance, oq_advance, oq_promote, oq_reap, oq_expire, oq_run_schedules, do_links, sweep_links,
-- do_todo, sweep_groups, oq_rotate, oq_compact, wake_ready, time_low, queue_gate, lanes.
create or replace function {{.api_schema}}.oq_tick(max_rows int default 1000)
returns table (duty text, done bigint)
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_ms    bigint := (date_part('epoch', clock_timestamp()) * 1000)::bigint;
    v_beat  bigint := pg_sequence_last_value('beat'::regclass);
    v_epoch bigint := pg_sequence_last_value('epoch_low'::regclass);
    v_current bigint;
    v_moved boolean;
    v_done  bigint;
    v_busy  boolean := false;
    v_led   bigint;
    v_low   timestamptz;
    v_next  timestamptz;
    v_due   timestamptz;
    v_duty  text;
    v_noted text := coalesce(current_setting('{{.schema}}.failing', true), '');
    v_left  text[] := array[]::text[]; -- duties that fail, left out for now
    v_pause int := 0;
    v_fails text[] := array[]::text[];
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        perform fail('max_rows', max_rows::text, 'between 1 and 100000');
    end if;
    perform verify_instance('oq_tick');
    perform setval('beat', v_ms);
    if current_setting('{{.schema}}.leads', true) = '1' then
        v_led := v_ms - v_ms % 2 + {{template "internal/quiet.sql" dict "schema" .schema "ms" "v_ms"}}::int;
        if pg_sequence_last_value('led'::regclass) not between v_led - 999 and v_led + 5000
            or (pg_sequence_last_value('led'::regclass) - v_led) % 2 <> 0
        then
            perform setval('led', v_led);
        end if;
    end if;
    -- Has anything been enqueued or put back since the last tick? Its epoch began at the last position.
    select coalesce(pg_sequence_last_value('position'::regclass), 0) > e.lo into v_moved
      from epoch_open e
     where e.epoch >= v_epoch
     order by e.epoch desc
     limit 1;

    -- Where looks at todo begin until the next second: at the first, or five seconds ago, since what is written now may be
    -- committed later. What takes longer is found then.
    if v_ms / 1000 > v_beat / 1000 then
        v_low := least((select t.due_at from todo t where t.kind = 'group' order by t.due_at limit 1), (
            select t.due_at from todo t where t.kind <> 'group' order by t.due_at limit 1));
        perform setval('todo_low', greatest((date_part('epoch', least(v_low, v_now)) * 1000)::bigint - 5000, 0));
    end if;

    -- A duty that fails is tried again after a pause that doubles up to a second: where the disk is full, its warnings would fill the
    -- logs as well. Noted are the last pause, when it ends, and of which duties.
    if v_noted ~ '^[0-9]{1,4} [0-9]{1,15} [{][a-z,]*[}]$' then
        v_pause := split_part(v_noted, ' ', 1)::int;
        if split_part(v_noted, ' ', 2)::bigint - v_ms between 1 and v_pause then
            v_left := split_part(v_noted, ' ', 3)::text[];
        end if;
    end if;

    -- Advance first: its transaction is no member of an epoch yet.
    foreach v_duty in array array[
        'advance', 'promote', 'reap', 'expire', 'schedules', 'links', 'groups', 'rotate', 'compact', 'wake']
    loop
        -- Space is looked after once a second.
        continue when v_duty in ('rotate', 'compact') and v_ms / 1000 = v_beat / 1000 or v_duty = any (v_left);
        v_done := 0;
        begin
            case v_duty
            when 'promote' then v_done := {{.api_schema}}.oq_promote(max_rows);
            when 'reap' then
                if {{template "internal/leases_due.sql" dict "schema" .schema "late" "0" "at" "v_now"}} then
                    v_done := {{.api_schema}}.oq_reap(max_rows);
                end if;
            when 'expire' then v_done := {{.api_schema}}.oq_expire(max_rows);
            when 'advance' then v_done := {{.api_schema}}.oq_advance();
            when 'schedules' then
                select s.due_at into v_due
                  from schedule s
                 where s.due_at >= time_low(-10)
                 order by s.due_at
                 limit 1;
                if v_due <= v_now then
                    v_done := {{.api_schema}}.oq_run_schedules();
                    -- What is still due has been left for the next tick.
                    select s.due_at into v_due
                      from schedule s
                     where s.due_at > v_now
                     order by s.due_at
                     limit 1;
                end if;
            when 'links' then
                v_done := do_links(max_rows, null, true);
                if v_ms / 1000 > v_beat / 1000 then
                    v_done := v_done + sweep_links(1000);
                end if;
            when 'groups' then
                v_done := do_todo(least(max_rows, 1000), null, 200, true);
                if v_ms / 1000 > v_beat / 1000 then
                    v_done := v_done + sweep_groups(1000);
                end if;
            when 'rotate' then v_done := {{.api_schema}}.oq_rotate();
            when 'compact' then v_done := {{.api_schema}}.oq_compact();
            when 'wake' then v_done := wake_ready(true);
            end case;
        exception when others then
            raise warning 'duty % failed: % (%)', v_duty, sqlerrm, sqlstate;
            v_fails := v_fails || v_duty;
        end;
        v_busy := v_busy or v_done > 0;
        duty := v_duty;
        done := v_done;
        return next;
    end loop;

    if v_fails <> '{}' then
        v_pause := least(greatest(2 * v_pause, 20), 1000);
        perform set_config('{{.schema}}.failing', concat_ws(' ', v_pause, v_ms + v_pause, v_left || v_fails), false);
    elsif v_noted <> '' and v_left = '{}' then
        perform set_config('{{.schema}}.failing', '', false);
    end if;

    -- While things move: soon, to catch the wake-up that slips. Else when the next is due.
    duty := 'sleep_ms';
    done := 1000;
    if v_busy or v_moved then
        -- A tick over thousands of lanes leaves as much time as it took to others.
        done := greatest(20, least(100, (date_part('epoch', clock_timestamp() - v_now) * 1000)::bigint));
    else
        v_low := time_low(-1);
        select s.due_at into v_next
          from scheduled s
         where s.due_at >= v_low and s.due_at <= v_now + interval '1 second'
         order by s.due_at
         limit 1;
        done := least(done, ceil(date_part('epoch', v_next - clock_timestamp()) * 1000)::bigint);
        done := least(done, greatest(pg_sequence_last_value('reap_after'::regclass) - v_ms, 20));
        done := least(done, ceil(date_part('epoch', v_due - clock_timestamp()) * 1000)::bigint);
        v_low := {{template "internal/todo_low.sql" dict "schema" .schema}};
        select least(min(x.due_at), (
            select min(t.until) from throttled t where t.group_id = 0 and t.until > v_now), (
            -- Jobs that wait for the rate of their queue.
            select min(g.until)
              from limit_rule r
             cross join lateral queue_gate(r.queue_id) g
             where r.group_id = 0 and r.rate is not null and g.gate = 'rate' and exists (
                select from lanes(r.queue_id << 16, (r.queue_id << 16) + 65535) k
                 cross join lateral (
                    select from ready x where x.lane = k.lane and x.position >= k.low limit 1) x))) into v_next
          from (
            (select t.due_at from todo t
              where t.kind = 'group' and t.due_at >= v_low
              order by t.due_at
              limit 1)
            union all
            (select t.due_at from todo t
              where t.kind <> 'group' and t.due_at >= v_low
              order by t.due_at
              limit 1)) x;
        done := least(done, ceil(date_part('epoch', v_next - clock_timestamp()) * 1000)::bigint);
        -- What somebody has under his hands is tried again soon, or a little later.
        done := greatest(done, case when v_next < v_now - interval '1 second' then 200
            when v_next <= v_now then 20 else 1 end);
        -- What an open transaction commits below a mark is found by the next tick: no later than after a tenth of the time that the
        -- transaction took. An epoch begins up to a second before its members.
        v_current := pg_sequence_last_value('epoch'::regclass);
        select e.opened_at into v_next
          from epoch_open e
         where e.epoch >= v_epoch and e.epoch < v_current
         order by e.epoch desc
         limit 1;
        if v_next is not null then
            done := least(done, greatest(20,
                (date_part('epoch', clock_timestamp() - interval '1 second' - v_next) * 100)::bigint));
        end if;
    end if;
    -- A wake-up that was left to the tick may be of a transaction that is still committing.
    if pg_sequence_last_value('unsaid'::regclass) between v_ms - 1000 and v_ms + 1000 then
        done := least(done, 20);
        v_moved := true;
    end if;
    perform set_config('{{.schema}}.ticked', v_ms::text, false);
    if v_busy or v_moved or coalesce(current_setting('{{.schema}}.moved', true), '') = '' then
        perform set_config('{{.schema}}.moved', v_ms::text, false);
    end if;
    return next;
end
$$;
comment on function {{.api_schema}}.oq_tick(int) is
'Runs every duty once; a row for each.
rotate and compact run in the first tick of each second only. A duty that fails says so in a warning and has no row
in the next ticks, for a pause that doubles up to a second. While sleepers take nothing, wake wakes them
after pauses that grow to a second. The last row, sleep_ms, says how long until the next is due, if nothing
comes due meanwhile, which oq_idle tells. The daemon calls it in time; pg_cron, or anybody by hand, can as well, at
once or twice. Commit at once: while the transaction is open nobody else moves the low marks. max_rows bounds
each duty, 1 to 100000. Errors: OQ001; 55000 in a restored copy.';
