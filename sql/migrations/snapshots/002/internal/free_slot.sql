-- A free slot of max_running whose lock can be had: its last lease is gone, and still is once the lock is
-- held, which it is until the transaction ends. Null: all are taken. Workers that
-- look at the same moment begin in different places.
-- Locks: slots (try, till the end of the transaction). Index: limit_slot_idx, leased_pk.
create or replace function {{.schema}}.free_slot(holder bigint, max_running int)
returns int
language plpgsql
as $$
#variable_conflict use_column
declare
    v_slot  int;
    v_most  int;
    v_last  int;
    v_busy  int[];
    v_from  int;
    v_tried int[] := array[]::int[];
begin
    -- Where the limit was higher before, what still runs in the slots above it counts: as many slots are used
    -- as leave room for what runs in all the others.
    v_most := free_slot.max_running;
    v_last := (
        with recursive s as (
            select free_slot.max_running - 1 as slot
            union all
            select n.slot
              from s
             cross join lateral (
                select x.slot from {{.schema}}.limit_slot x
                 where x.holder = free_slot.holder and x.slot > s.slot
                 order by x.slot, x.version desc
                 limit 1) n)
        select max(s.slot) from s);
    if v_last >= v_most then
        v_busy := array(
            select n.slot
              from generate_series(0, v_last) n(slot)
             cross join lateral (
                select x.job_id, x.token from {{.schema}}.limit_slot x
                 where x.holder = free_slot.holder and x.slot = n.slot
                 order by x.version desc
                 limit 1) s
             where exists (select from {{.schema}}.leased l where l.job_id = s.job_id and l.token = s.token));
        while v_most > 0
            and v_most + (select count(*) from unnest(v_busy) b(slot) where b.slot >= v_most) > free_slot.max_running
        loop
            v_most := v_most - 1;
        end loop;
    end if;
    v_from := floor(random() * v_most);
    for v_round in 1..20 loop
        select n.slot into v_slot
          from (
            select (v_from + i) % v_most as slot from generate_series(0, v_most - 1) i
            offset 0) n
          left join lateral (
            select x.job_id, x.token from {{.schema}}.limit_slot x
             where x.holder = free_slot.holder and x.slot = n.slot
             order by x.version desc
             limit 1) s on true
         where n.slot <> all (v_tried)
           -- Only what looks free is locked.
           and case (
                select true from {{.schema}}.leased l where l.job_id = s.job_id and l.token = s.token limit 1)
            when true then false
            else {{template "internal/slot_lock.sql" dict "schema" .schema "holder" "free_slot.holder" "slot" "n.slot"}} end
         limit 1;
        if v_slot is null then
            return null;
        end if;
        -- It may have been taken, and that committed, between the look and the lock.
        if not exists (
            select from (
                select x.job_id, x.token from {{.schema}}.limit_slot x
                 where x.holder = free_slot.holder and x.slot = v_slot
                 order by x.version desc
                 limit 1) s
              join {{.schema}}.leased l on l.job_id = s.job_id and l.token = s.token)
        then
            return v_slot;
        end if;
        v_tried := v_tried || v_slot;
    end loop;
    return null;
end
$$;
comment on function {{.schema}}.free_slot(bigint, int) is 'A free slot of max_running, locked.';
