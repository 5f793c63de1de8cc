-- What keeps a job in line with its group, a row for each gate that is closed: line, by those before it (ten
-- at most, the first first), and what keeps the first from being let in. No rows: nothing, or it is not
-- in line.
-- Calls: group_gates. Index: waiting_pk, waiting_group_idx.
create or replace function {{.schema}}.group_gate(job_id bigint)
returns table (gate text, held_by bigint[], until timestamptz)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_place record;
begin
    select w.group_id, w.lane >> 16 as queue_id, w.position into v_place
      from {{.schema}}.waiting w
     where w.job_id = group_gate.job_id and w.holder = 'group';
    if v_place.group_id is null then
        return;
    end if;
    return query
    select 'line'::text, array_agg(l.job_id order by l.position), null::timestamptz
      from (
        select w.job_id, w.position from {{.schema}}.waiting w
         where w.group_id = v_place.group_id and w.position < v_place.position
         order by w.position
         limit 10) l
    having count(*) > 0;
    return query
    select g.gate, g.held_by, g.until from {{.schema}}.group_gates(v_place.group_id, v_place.queue_id) g;
end
$$;
comment on function {{.schema}}.group_gate(bigint) is 'What keeps a job in line with its group.';
