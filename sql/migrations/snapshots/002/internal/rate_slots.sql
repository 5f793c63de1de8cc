-- Up to wanted free slots of a rate, each good for one job in any time_window: those whose lock can be had,
-- which is kept until the transaction ends, and which are free still once it is. So two never use the
-- same, and an open transaction keeps nobody from the others. The caller takes them by use_slots. A slot of a group,
-- whose job is let in before it begins, is not free until it has begun, which is written into it here. A time in the
-- future is that of a clock that was ahead.
-- Calls: slot_start (groups). Locks: limit_slot rows (skip locked), rate slots (try, till the end of the transaction).
-- Index: limit_slot_idx.
create or replace function {{.schema}}.rate_slots(holder bigint, slots int, time_window interval, wanted int)
returns int[]
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now  timestamptz := clock_timestamp();
    v_got  int[];
begin
    if rate_slots.holder < 0 then
        update {{.schema}}.limit_slot u
           set taken_at = {{.schema}}.slot_start(u.job_id, u.token, u.taken_at), token = 0
         where u.version = any (array(
            select x.version
              from generate_series(0, rate_slots.slots - 1) n(slot)
             cross join lateral (
                select x.version, x.job_id, x.token, x.taken_at from {{.schema}}.limit_slot x
                 where x.holder = rate_slots.holder and x.slot = n.slot
                 order by x.version desc
                 limit 1) s
             cross join lateral (
                select x.version from {{.schema}}.limit_slot x
                 where case when s.token < 0 then {{.schema}}.slot_start(s.job_id, s.token, s.taken_at) is not null end
                   -- Looked at again once it is locked: what is written already may be somebody's slot by now.
                   and x.version = s.version and x.token < 0
                   for update skip locked) x));
    end if;
    v_got := array(
        select f.slot
          from (
            select n.slot
              from generate_series(0, rate_slots.slots - 1) n(slot)
              left join lateral (
                select x.token, x.taken_at from {{.schema}}.limit_slot x
                 where x.holder = rate_slots.holder and x.slot = n.slot
                 order by x.version desc
                 limit 1) s on true
             where s.taken_at is null or s.token >= 0 and (s.taken_at <= v_now - rate_slots.time_window
                or s.taken_at > v_now + interval '5 seconds')
             order by s.taken_at nulls first
             offset 0) f
         where {{template "internal/slot_lock.sql" dict "schema" .schema "holder" "rate_slots.holder" "slot" "f.slot"}}
         limit rate_slots.wanted);
    return array(
        select u.slot
          from unnest(v_got) u(slot)
          left join lateral (
            select x.token, x.taken_at from {{.schema}}.limit_slot x
             where x.holder = rate_slots.holder and x.slot = u.slot
             order by x.version desc
             limit 1) s on true
         where s.taken_at is null or s.token >= 0 and (s.taken_at <= v_now - rate_slots.time_window
            or s.taken_at > v_now + interval '5 seconds'));
end
$$;
comment on function {{.schema}}.rate_slots(bigint, int, interval, int) is 'Free slots of a rate, locked.';
