-- "Retry after". Rows are only added, so that workers that are told so at once do not wait for each other.
-- Calls: require_queue, demand, tell_queue, enter, group_slots, admit, wake_sleepers.
-- Locks: scheduled and ready rows (skip locked), as admit. Index: throttled_idx, scheduled_due_idx, job_N_pk.
create or replace function {{.api_schema}}.oq_throttle(
    queue_name text,
    until      timestamptz,
    group_key  text default null
)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_group_id bigint := 0;
    v_now      timestamptz := clock_timestamp();
begin
    if until is null or until = 'infinity' then
        perform fail('until', until::text, 'a finite time; one that has passed lifts it');
    end if;
    if length(group_key) not between 1 and 1000 then
        perform fail('group_key', group_key, 'null, or 1 to 1000 characters');
    end if;
    v_queue_id := require_queue(oq_throttle.queue_name);
    perform demand(v_queue_id, oq_throttle.queue_name, 'consume');
    if group_key is not null then
        v_group_id := hashtextextended(group_key collate "C", v_queue_id) & 9223372036854775807;
    end if;
    insert into throttled (queue_id, group_id, until) values (v_queue_id, v_group_id, oq_throttle.until);
    if group_key is null then
        if until > v_now then
            perform tell_queue(v_queue_id, 'limited');
        else
            perform wake_sleepers(v_queue_id);
        end if;
        return;
    end if;
    perform tell_queue(v_queue_id, 'linked');
    -- What was parked until a later time is due earlier now, whether it has a slot or came due meanwhile.
    perform enter();
    v_now := clock_timestamp();
    update scheduled s
       set due_at = greatest(oq_throttle.until, v_now)
     where s.ctid = any (array(
        select x.ctid
          from (
            select distinct t.until from throttled t
             where t.queue_id = v_queue_id and t.group_id = v_group_id
               and t.until > greatest(oq_throttle.until, v_now)) t
         cross join lateral (
            select s.ctid
              from scheduled s
             where s.due_at = t.until and s.lane between v_queue_id << 16 and (v_queue_id << 16) + 65535
               and (
                select hashtextextended(j.group_key, v_queue_id) & 9223372036854775807
                  from job j where j.job_id = s.job_id limit 1) = v_group_id
               for update skip locked) x));
    -- What has been let in, here and not by admit, which an older snapshot keeps from looking, and anybody who has the
    -- group's lock.
    if oq_throttle.until > v_now then
        with parked as (
            delete from ready r
             where r.ctid = any (array(
                select x.ctid
                  from group_slots(v_group_id, 1) s
                 cross join lateral (
                    select r.ctid from ready r
                     where r.job_id = s.job_id and r.position <> r.job_id
                       for update skip locked) x
                 where s.busy))
            returning r.*
        )
        insert into scheduled (due_at, job_id, lane, token, attempt, failed, lost, expires_at)
        select oq_throttle.until, p.job_id, p.lane, p.token, p.attempt, p.failed, p.lost, p.expires_at from parked p;
    end if;
    perform admit(array[v_group_id], array[v_queue_id]);
end
$$;
comment on function {{.api_schema}}.oq_throttle(text, timestamptz, text) is
'Nobody gets jobs of this queue, or of this group, until then.
For a server that said "retry after". Costs no attempt: release the job that was told so. What is
leased goes on. A later call replaces the time; one that has passed (''-infinity'') lifts it. Jobs of the
group that were ready stand in scheduled until then. Errors: OQ001, OQ003, 42501.';
