-- The safety net: goes round the edges and the waiting children, a bounded number at a time, and leaves a todo for
-- parents that are over and children that nothing holds: after an ack of a lease that was older than the first
-- dependent, or a table restored by hand. Takes away what is left of batches that are gone.
-- Calls: job_ends. Index: dependency_pk, dependency_child_idx, waiting_parent_idx, batch_pk.
create or replace function {{.schema}}.sweep_links(max_rows int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_from  bigint := pg_sequence_last_value('{{.schema}}.edge_sweep'::regclass);
    v_ids   bigint[];
    v_last  bigint;
    v_step  bigint;
    v_count bigint;
begin
    select array_agg(distinct d.parent_id), case when count(*) = max_rows then max(d.parent_id) else 0 end
      into v_ids, v_last
      from (
        select d.parent_id from {{.schema}}.dependency d
         where d.parent_id > v_from
         order by d.parent_id
         limit max_rows) d;
    perform setval('{{.schema}}.edge_sweep', v_last);
    insert into {{.schema}}.todo (kind, id, queue_id, due_at)
    select 'parent', e.job_id, 0, clock_timestamp()
      from {{.schema}}.job_ends(v_ids) e
     where e.ended is distinct from 'open'
       and not exists (
        select from {{.schema}}.todo t where t.id = e.job_id and t.kind = 'parent');
    get diagnostics v_count = row_count;

    v_from := pg_sequence_last_value('{{.schema}}.child_sweep'::regclass);
    select array_agg(w.job_id), case when count(*) = max_rows then max(w.job_id) else 0 end into v_ids, v_last
      from (
        select w.job_id from {{.schema}}.waiting w
         where w.holder = 'parent' and w.job_id > v_from
         order by w.job_id
         limit max_rows) w;
    perform setval('{{.schema}}.child_sweep', v_last);
    insert into {{.schema}}.todo (kind, id, queue_id, due_at)
    select 'child', u.child_id, 0, clock_timestamp()
      from (
        select w.child_id from unnest(v_ids) w(child_id)
        union all
        (select -b.batch_id from {{.schema}}.batch b order by b.batch_id limit max_rows)) u
     where not exists (select from {{.schema}}.dependency d where d.child_id = u.child_id)
       and not exists (select from {{.schema}}.todo t where t.id = u.child_id and t.kind = 'child');
    get diagnostics v_step = row_count;
    return v_count + v_step;
end
$$;
comment on function {{.schema}}.sweep_links(int) is 'Finds parents and children that were forgotten.';
