-- One rule a queue, group or '*'; a call replaces it. Limits bind what comes next: what runs goes on, and counts.
-- Calls: check_queue_name, require_queue, tell_queue, wake_sleepers, limit_of, group_slots, admit.
-- Locks: queue (advisory), the rule's row, as admit. Index: limit_rule_idx, limit_slot_idx, ready_returned_idx; leased is
-- scanned, for a group's rule waiting as well.
create or replace function {{.api_schema}}.oq_limit(
    queue_name  text,
    group_key   text     default null,
    max_running int      default null,
    rate        numeric  default null,
    per         interval default '1 second'
)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_group_id bigint;
    v_now      timestamptz := clock_timestamp();
    v_before   int;
    v_groups   bigint[];
begin
    perform check_queue_name(oq_limit.queue_name);
    if length(group_key) not between 1 and 1000 then
        perform fail('group_key', group_key, 'null, or 1 to 1000 characters');
    end if;
    if max_running not between 1 and 10000 then
        perform fail('max_running', max_running::text, 'between 1 and 10000, or null; oq_pause stops a queue');
    end if;
    if rate is not null and not (rate >= 0.000001 and rate <= 1000000) then
        perform fail('rate', rate::text, 'between 0.000001 and 1000000, or null');
    end if;
    if per is null or not (per >= interval '1 millisecond' and per <= interval '366 days') then
        perform fail('per', per::text, 'an interval between 1 millisecond and 1 year');
    end if;
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:queue'), hashtext(oq_limit.queue_name collate "C"));
    v_queue_id := require_queue(oq_limit.queue_name);
    v_group_id := case when group_key is null then 0
        else hashtextextended(group_key collate "C", v_queue_id) & 9223372036854775807 end;
    v_before := coalesce((
        select r.max_running from limit_rule r where r.queue_id = v_queue_id and r.group_id = v_group_id), 0);
    if max_running is null and rate is null then
        delete from limit_rule r where r.queue_id = v_queue_id and r.group_id = v_group_id;
    else
        insert into limit_rule (queue_id, group_id, group_key, max_running, rate, per)
        values (v_queue_id, v_group_id, oq_limit.group_key, oq_limit.max_running, oq_limit.rate, oq_limit.per)
        on conflict (queue_id, group_id) do update
           set max_running = excluded.max_running, rate = excluded.rate, per = excluded.per;
    end if;
    if group_key is null then
        if max_running is not null or rate is not null then
            perform tell_queue(v_queue_id, 'limited');
        end if;
        -- What began without a limit counts too: in slots above those that somebody may just be taking. Old rows are left
        -- to the sweep: who takes their slot would wait for them.
        if max_running is not null then
            insert into limit_slot (holder, slot, job_id, token, taken_at)
            select v_queue_id * 4, f.slot + row_number() over (order by l.job_id), l.job_id, l.token, v_now
              from (
                select greatest(coalesce(max(x.slot), -1), v_before - 1) as slot
                  from limit_slot x where x.holder = v_queue_id * 4) f
             cross join leased l
             where l.lane between v_queue_id << 16 and (v_queue_id << 16) + 65535
               and (l.job_id, l.token) not in (
                select x.job_id, x.token from limit_slot x where x.holder = v_queue_id * 4);
        end if;
        perform wake_sleepers(v_queue_id);
        return;
    end if;
    -- What has been let in and may not run any more goes back in line now, of a hundred groups. An older snapshot can't
    -- tell; of that, of the others, and where somebody is just letting in, the tick does.
    select array_agg(g.group_id) into v_groups
      from (
        select hashtextextended(j.group_key, v_queue_id) & 9223372036854775807 as group_id
          from (
            select r.job_id from ready r
             where r.lane between v_queue_id << 16 and (v_queue_id << 16) + 65535 and r.position <> r.job_id
            union all
            select l.job_id from leased l where l.lane between v_queue_id << 16 and (v_queue_id << 16) + 65535) p
         cross join lateral (
            select j.group_key from job j where j.job_id = p.job_id limit 1) j
         where j.group_key is not null
           and (oq_limit.group_key = '*' or hashtextextended(j.group_key, v_queue_id) & 9223372036854775807 = v_group_id)
         group by 1
         limit 10000) g
     cross join lateral limit_of(v_queue_id, g.group_id) l
     where l.slots is not null or (
        select count(*) > l.max_running from group_slots(g.group_id, l.max_running) s where s.busy);
    if v_groups is not null then
        perform admit(v_groups[:100], array_fill(v_queue_id, array[cardinality(v_groups[:100])]));
        insert into todo (kind, id, queue_id, due_at)
        select 'group', u.group_id, v_queue_id, v_now from unnest(v_groups[101:]) u(group_id);
    end if;
    -- More may be let in now. The rest, of a queue with more groups, is found by the sweep.
    insert into todo (kind, id, queue_id, due_at)
    select 'group', w.group_id, v_queue_id, v_now
      from waiting w
     where w.holder = 'group' and w.lane between v_queue_id << 16 and (v_queue_id << 16) + 65535
       and (oq_limit.group_key = '*' or w.group_id = v_group_id)
     group by w.group_id
     limit 10000;
end
$$;
comment on function {{.api_schema}}.oq_limit(text, text, int, numeric, interval) is
'Limits how many jobs of a queue or group run at once, or start in a time.
group_key: null for the queue, a key for that group, ''*'' for every group that has no rule of its own.
max_running, 1 to 10000: leases of a queue at once, across all workers; for a group how many run at
once instead of one, then in no strict order. rate, per: at most that many begin in any time of that
length. A call replaces the rule, null takes a limit away, without both the rule goes. What runs goes
on, and counts. A queue with limits leases in READ COMMITTED transactions only (25001). Errors: OQ001, OQ003; 55P03
where another open transaction is changing the same queue.';
