-- The safety net: goes round the edges and the waiting children, a bounded number at a time, and leaves a todo for
-- parents that are over and children that nothing holds: after an ack of a lease that was older than the first
-- dependent, or a table restored by hand. Takes away what is left of batches that are gone.
-- By blocks, as sweep_groups: an index would be walked from its dead entries on, each second. The kind of a todo by case, lest
-- all of the kind be read.
-- Calls: job_ends. Index: dependency_child_idx, todo_id_idx, batch_pk; dependency and waiting by ctid.
create or replace function {{.schema}}.sweep_links(max_rows int)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_size  bigint := current_setting('block_size')::bigint;
    v_block bigint := pg_sequence_last_value('{{.schema}}.edge_sweep'::regclass);
    v_ids   bigint[];
    v_step  bigint;
    v_count bigint;
begin
    with seen as materialized (
        select d.parent_id, d.ctid as place
          from {{.schema}}.dependency d
         where d.ctid >= format('(%s,0)', v_block)::tid and d.ctid < format('(%s,0)', v_block + 200)::tid
           and d.parent_id <> 0
    )
    -- From the block of the last on where there are more, which is a later one: no block has a thousand rows.
    select array_agg(s.parent_id), case when count(*) = max_rows
            then greatest(v_block + 1, split_part(ltrim(max(s.place)::text, '('), ',', 1)::bigint) else v_block + 200 end
      into v_ids, v_block
      from (
        select s.parent_id, min(s.place) as place from seen s
         group by s.parent_id
         order by min(s.place)
         limit max_rows) s;
    perform setval('{{.schema}}.edge_sweep',
        case when v_block * v_size < pg_relation_size('{{.schema}}.dependency') then v_block else 0 end);
    insert into {{.schema}}.todo (kind, id, queue_id, due_at)
    select 'parent', e.job_id, 0, clock_timestamp()
      from {{.schema}}.job_ends(v_ids) e
     where e.ended is distinct from 'open'
       and not exists (
        select from {{.schema}}.todo t where t.id = e.job_id and case when t.kind = 'parent' then true end);
    get diagnostics v_count = row_count;

    v_block := pg_sequence_last_value('{{.schema}}.child_sweep'::regclass);
    select array_agg(w.job_id), case when count(*) = max_rows
            then greatest(v_block + 1, split_part(ltrim(max(w.place)::text, '('), ',', 1)::bigint) else v_block + 200 end
      into v_ids, v_block
      from (
        -- Not by holder, which has an index.
        select w.job_id, w.ctid as place
          from {{.schema}}.waiting w
         where w.ctid >= format('(%s,0)', v_block)::tid and w.ctid < format('(%s,0)', v_block + 200)::tid
           and w.group_id is null
         order by w.ctid
         limit max_rows) w;
    perform setval('{{.schema}}.child_sweep',
        case when v_block * v_size < pg_relation_size('{{.schema}}.waiting') then v_block else 0 end);
    insert into {{.schema}}.todo (kind, id, queue_id, due_at)
    select 'child', u.child_id, 0, clock_timestamp()
      from (
        select w.child_id from unnest(v_ids) w(child_id)
        union all
        (select -b.batch_id from {{.schema}}.batch b order by b.batch_id limit max_rows)) u
     where not exists (select from {{.schema}}.dependency d where d.child_id = u.child_id)
       and not exists (
        select from {{.schema}}.todo t where t.id = u.child_id and case when t.kind = 'child' then true end);
    get diagnostics v_step = row_count;
    return v_count + v_step;
end
$$;
comment on function {{.schema}}.sweep_links(int) is 'Finds parents and children that were forgotten.';
