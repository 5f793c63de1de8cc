-- Pauses or resumes a queue, which must exist; returns its id.
-- Calls: require_queue, new_version. Locks: queue (advisory), the queue row. Index: queue_id_idx.
create or replace function {{.schema}}.set_paused(queue_name text, paused boolean)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_row_id   bigint;
begin
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:queue'), hashtext(set_paused.queue_name collate "C"));
    v_queue_id := {{.schema}}.require_queue(set_paused.queue_name);
    select q.row_id into v_row_id
      from {{.schema}}.queue q
     where q.queue_id = v_queue_id
     order by q.version desc, q.row_id
     limit 1;
    perform {{.schema}}.new_version(v_row_id);
    update {{.schema}}.queue q set paused = set_paused.paused where q.row_id = v_row_id;
    return v_queue_id;
end
$$;
comment on function {{.schema}}.set_paused(text, boolean) is 'Pauses or resumes a queue; returns its id.';
