-- Pauses or resumes a queue, which must exist; returns its id.
-- Calls: require_queue. Locks: queue (advisory), the queue row. Index: queue_id_idx.
create or replace function {{.schema}}.set_paused(queue_name text, paused boolean)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
begin
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:queue'), hashtext(set_paused.queue_name));
    v_queue_id := {{.schema}}.require_queue(set_paused.queue_name);
    update {{.schema}}.queue q
       set version = (q.version | 15) + 1, paused = set_paused.paused
     where q.row_id = (
        select x.row_id from {{.schema}}.queue x
         where x.queue_id = v_queue_id
         order by x.version desc, x.row_id
         limit 1);
    return v_queue_id;
end
$$;
comment on function {{.schema}}.set_paused(text, boolean) is 'Pauses or resumes a queue; returns its id.';
