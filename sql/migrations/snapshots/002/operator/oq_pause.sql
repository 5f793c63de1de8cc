-- Nothing is leased from a paused queue. What is held goes on.
-- Calls: require_queue.
-- Locks: queue (advisory), the queue row. Index: queue_id_idx.
create or replace function {{.api_schema}}.oq_pause(queue_name text)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
begin
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:queue'), hashtext(oq_pause.queue_name));
    v_queue_id := require_queue(oq_pause.queue_name);
    update queue q
       set version = q.version + 1, paused = true
     where q.row_id = (
        select x.row_id from queue x
         where x.queue_id = v_queue_id
         order by x.version desc, x.row_id
         limit 1);
end
$$;
comment on function {{.api_schema}}.oq_pause(text) is
'No more leases from this queue, until oq_resume.
Producers go on, and so do workers with what they hold. Errors: OQ001, OQ003.';
