-- The safety net: goes round the groups that have jobs in line, a bounded number at a time, and leaves a todo
-- for those that look free. And takes away what idle groups left in group_slot, and slots of limits that neither a
-- lease nor a rate needs any more: a few blocks of them at a time, however many are dead.
-- Calls: group_gates. Locks: groups and slots (try), throttled rows (skip locked).
-- Index: waiting_group_idx, group_slot_idx, leased_pk; limit_slot by ctid.
create or replace function {{.schema}}.sweep_groups(max_rows int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_group bigint := pg_sequence_last_value('{{.schema}}.sweep'::regclass);
    v_row   bigint := pg_sequence_last_value('{{.schema}}.trim'::regclass);
    v_block bigint := pg_sequence_last_value('{{.schema}}.slot_sweep'::regclass);
    v_queue bigint;
    v_count bigint := 0;
    v_last  bigint;
begin
    for i in 1..max_rows loop
        select w.group_id, w.lane >> 16 into v_group, v_queue
          from {{.schema}}.waiting w
         where w.group_id > v_group
         order by w.group_id, w.position
         limit 1;
        exit when v_group is null;
        if not exists (select from {{.schema}}.group_gates(v_group, v_queue)) then
            insert into {{.schema}}.todo (kind, id, queue_id, position, due_at)
            values ('group', v_group, v_queue, 0, v_now);
            v_count := v_count + 1;
        end if;
    end loop;
    perform setval('{{.schema}}.sweep', coalesce(v_group, 0));

    with seen as materialized (
        select s.ctid as slot_row, s.group_id, s.job_id, s.admitted_at from {{.schema}}.group_slot s
         where s.group_id > v_row
         order by s.group_id, s.slot, s.version desc
         limit max_rows
    ), idle as materialized (
        select s.slot_row, s.group_id
          from seen s
         where s.admitted_at < v_now - interval '10 minutes'
           and not exists (select from {{.schema}}.waiting w where w.group_id = s.group_id)
           and not exists (select from {{.schema}}.leased l where l.job_id = s.job_id)
           and not exists (select from {{.schema}}.scheduled c where c.job_id = s.job_id)
           and not exists (
            select from {{.schema}}.ready r where r.job_id = s.job_id and r.position <> r.job_id)
         order by s.group_id
         limit 100
    ), gone as (
        delete from {{.schema}}.group_slot d
         where d.ctid = any (array(
            -- Only what looks idle is locked.
            select i.slot_row
              from idle i
             where pg_try_advisory_xact_lock(hashtext('{{.schema}}:group'), (i.group_id & 2147483647)::int)))
        returning d.group_id
    )
    select case when count(*) = max_rows then max(s.group_id) else 0 end, (select count(*) from gone)
      into v_row, v_last
      from seen s;
    perform setval('{{.schema}}.trim', v_row);

    with seen as materialized (
        select s.ctid as slot_row, s.holder, s.slot, s.job_id, s.token, s.taken_at
          from {{.schema}}.limit_slot s
         where s.ctid >= format('(%s,0)', v_block)::tid and s.ctid < format('(%s,0)', v_block + 8)::tid
           and s.taken_at < v_now - interval '10 minutes'
    ), idle as materialized (
        select s.slot_row, s.holder, s.slot
          from seen s
         where not exists (select from {{.schema}}.leased l where l.job_id = s.job_id and l.token = s.token)
           -- As limit_of, or longer. Only asked where there is an old one.
           and s.taken_at < v_now - (
            select coalesce(max(least(extract(epoch from r.per) / least(r.rate, 1), 3e9)), 0) * interval '1 second'
              from {{.schema}}.limit_rule r
             where r.rate is not null)
         limit 500
    ), gone as (
        delete from {{.schema}}.limit_slot d
         where d.ctid = any (array(
            select i.slot_row
              from idle i
             where {{template "internal/slot_lock.sql" dict "schema" .schema "holder" "i.holder" "slot" "i.slot"}}))
        returning 1
    )
    select v_last + count(*) into v_last from gone;
    perform setval('{{.schema}}.slot_sweep', case
        when (v_block + 8) * current_setting('block_size')::bigint < pg_relation_size('{{.schema}}.limit_slot') then v_block + 8
        else 0 end);
    delete from {{.schema}}.throttled d
     where d.throttle_id = any (array(
        select t.throttle_id
          from {{.schema}}.throttled t
         where t.until < v_now
           and (exists (
                select from {{.schema}}.throttled n
                 where n.queue_id = t.queue_id and n.group_id = t.group_id and n.throttle_id > t.throttle_id)
            or not exists (
                select from {{.schema}}.throttled o
                 where o.queue_id = t.queue_id and o.group_id = t.group_id and o.throttle_id < t.throttle_id))
         order by t.throttle_id
         limit 1000
           for update skip locked));
    return v_count + v_last;
end
$$;
comment on function {{.schema}}.sweep_groups(int) is 'Finds groups that were forgotten, and forgets idle ones.';
