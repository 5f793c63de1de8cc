-- The safety net: goes round what is in line, a bounded number of groups at a time, and leaves a todo for those that look
-- free. And takes away what idle groups left in group_slot, slots of limits that neither a lease nor a rate needs any more,
-- and throttles that are over. All by blocks of their tables: a walk through an index would begin, each second, with all
-- that has died since VACUUM or oq_compact were last let in.
-- Calls: group_gates, slot_start. Locks: groups and slots (try), limit_slot and throttled rows (skip locked).
-- Index: waiting_group_idx, todo_id_idx, leased_pk, scheduled_pk, ready_returned_idx, limit_rule_idx, throttled_idx; the others by ctid.
create or replace function {{.schema}}.sweep_groups(max_rows int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_size  bigint := current_setting('block_size')::bigint;
    v_block bigint := pg_sequence_last_value('{{.schema}}.sweep'::regclass);
    v_turn  bigint := nextval('{{.schema}}.trim');
    v_count bigint;
    v_step  bigint;
begin
    with seen as materialized (
        select w.group_id, min(w.lane) >> 16 as queue_id, min(w.ctid) as place
          from {{.schema}}.waiting w
         where w.ctid >= format('(%s,0)', v_block)::tid and w.ctid < format('(%s,0)', v_block + 200)::tid
           and w.holder = 'group'
         group by w.group_id
         order by min(w.ctid)
         limit max_rows
    ), forgotten as (
        insert into {{.schema}}.todo (kind, id, queue_id, position, due_at)
        select 'group', s.group_id, s.queue_id, 0, v_now
          from seen s
         where case when (
                -- Most groups run one at a time, and their one is seen at a glance.
                select coalesce(
                    (select true from {{.schema}}.leased l where l.job_id = x.job_id limit 1),
                    (select true from {{.schema}}.ready r
                      where r.job_id = x.job_id and r.position <> r.job_id limit 1),
                    (select true from {{.schema}}.scheduled d where d.job_id = x.job_id limit 1))
                  from (
                    select x.job_id from {{.schema}}.group_slot x
                     where x.group_id = s.group_id and x.slot = 0
                     order by x.version desc
                     limit 1) x
                 where not exists (
                    select from {{.schema}}.limit_rule r where r.queue_id = s.queue_id and r.group_id > 0))
            then false
            -- One that is on the list already would only make the list longer than a tick's work. (Not by exists, which may
            -- become a hash of the whole list. The kind by case, lest the list be read by an index of the kind.)
            else coalesce((
                    select false from {{.schema}}.todo t
                     where t.id = s.group_id and case when t.kind = 'group' then true end
                     limit 1),
                not exists (select from {{.schema}}.group_gates(s.group_id, s.queue_id))) end
        returning 1
    )
    -- From the block of the last on where there are more, which is a later one: no block has a thousand rows.
    select (select count(*) from forgotten), case when count(*) = max_rows
            then greatest(v_block + 1, split_part(ltrim(max(s.place)::text, '('), ',', 1)::bigint) else v_block + 200 end
      into v_count, v_block
      from seen s;
    perform setval('{{.schema}}.sweep',
        case when v_block * v_size < pg_relation_size('{{.schema}}.waiting') then v_block else 0 end);

    v_block := v_turn % (pg_relation_size('{{.schema}}.group_slot') / v_size / 8 + 1) * 8;
    with idle as materialized (
        select s.ctid as slot_row, s.group_id
          from {{.schema}}.group_slot s
         where s.ctid >= format('(%s,0)', v_block)::tid and s.ctid < format('(%s,0)', v_block + 8)::tid
           and s.admitted_at < v_now - interval '10 minutes'
           and not exists (select from {{.schema}}.waiting w where w.group_id = s.group_id)
           and not exists (select from {{.schema}}.leased l where l.job_id = s.job_id)
           and not exists (select from {{.schema}}.scheduled c where c.job_id = s.job_id)
           and not exists (
            select from {{.schema}}.ready r where r.job_id = s.job_id and r.position <> r.job_id)
         limit 500
    )
    delete from {{.schema}}.group_slot d
     where d.ctid = any (array(
        -- Only what looks idle is locked.
        select i.slot_row
          from idle i
         where pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (i.group_id & 2147483647)::int)));
    get diagnostics v_step = row_count;
    v_count := v_count + v_step;

    v_block := v_turn % (pg_relation_size('{{.schema}}.limit_slot') / v_size / 8 + 1) * 8;
    with idle as materialized (
        select s.ctid as slot_row, s.holder, s.slot
          from {{.schema}}.limit_slot s
         where s.ctid >= format('(%s,0)', v_block)::tid and s.ctid < format('(%s,0)', v_block + 8)::tid
           and s.taken_at < v_now - interval '10 minutes'
           and not exists (select from {{.schema}}.leased l where l.job_id = s.job_id and l.token = s.token)
           -- As limit_of, or longer. Only asked where there is an old one.
           and case when s.token < 0 then coalesce({{.schema}}.slot_start(s.job_id, s.token, s.taken_at), 'infinity')
                else s.taken_at end < v_now - (
            select coalesce(max(least(extract(epoch from r.per) / least(r.rate, 1), 3e9)), 0) * interval '1 second'
              from {{.schema}}.limit_rule r
             where r.rate is not null and r.queue_id >= 0)
         limit 500
    )
    delete from {{.schema}}.limit_slot d
     where d.ctid = any (array(
        select x.slot_row
          from idle i
         cross join lateral (
            select l.ctid as slot_row from {{.schema}}.limit_slot l where l.ctid = i.slot_row for update skip locked) x
         where {{template "internal/slot_lock.sql" dict "schema" .schema "holder" "i.holder" "slot" "i.slot"}}));
    get diagnostics v_step = row_count;
    v_count := v_count + v_step;

    v_block := v_turn % (pg_relation_size('{{.schema}}.throttled') / v_size / 8 + 1) * 8;
    delete from {{.schema}}.throttled d
     where d.ctid = any (array(
        select t.ctid
          from {{.schema}}.throttled t
         where t.ctid >= format('(%s,0)', v_block)::tid and t.ctid < format('(%s,0)', v_block + 8)::tid
           and t.until < v_now
           and (exists (
                select from {{.schema}}.throttled n
                 where n.queue_id = t.queue_id and n.group_id = t.group_id and n.throttle_id > t.throttle_id)
            or not exists (
                select from {{.schema}}.throttled o
                 where o.queue_id = t.queue_id and o.group_id = t.group_id and o.throttle_id < t.throttle_id))
           for update skip locked));
    return v_count;
end
$$;
comment on function {{.schema}}.sweep_groups(int) is 'Finds groups that were forgotten, and forgets idle ones.';
