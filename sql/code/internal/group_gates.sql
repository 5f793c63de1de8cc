-- What keeps the first in line of a group from being let in, as far as can be seen: a row for each gate that
-- is closed. throttled: until; group: by which jobs; rate: until.
-- Calls: limit_of, group_slots, slot_due. Index: as group_slots.
create or replace function {{.schema}}.group_gates(group_id bigint, queue_id bigint)
returns table (gate text, held_by bigint[], until timestamptz)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_limit record;
begin
    v_limit := {{.schema}}.limit_of(group_gates.queue_id, group_gates.group_id);
    return query
    select g.gate, g.held_by, g.until
      from (
        select 1 as nth, 'throttled' as gate, null::bigint[] as held_by, v_limit.until as until
         where v_limit.until is not null
        union all
        select 2, 'group', array_agg(s.job_id order by s.slot), null
          from {{.schema}}.group_slots(group_gates.group_id, v_limit.max_running) s
         where s.busy
        having count(*) >= v_limit.max_running
        union all
        select 3, 'rate', null, d.due
          from {{.schema}}.slot_due(-1 - group_gates.group_id, v_limit.slots, v_limit.time_window) d(due)
         where v_limit.slots is not null and d.due > clock_timestamp()) g
     order by g.nth;
end
$$;
comment on function {{.schema}}.group_gates(bigint, bigint) is 'What keeps the first in line of a group waiting.';
