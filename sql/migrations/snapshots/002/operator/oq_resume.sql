-- Lets a paused queue be leased from again.
-- Calls: require_queue, wake_sleepers.
-- Locks: queue (advisory), the queue row. Index: queue_id_idx.
create or replace function {{.api_schema}}.oq_resume(queue_name text)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
begin
    perform pg_advisory_xact_lock(hashtext('{{.schema}}:queue'), hashtext(oq_resume.queue_name));
    v_queue_id := require_queue(oq_resume.queue_name);
    update queue q
       set version = q.version + 1, paused = false
     where q.row_id = (
        select x.row_id from queue x
         where x.queue_id = v_queue_id
         order by x.version desc, x.row_id
         limit 1);
    perform wake_sleepers(v_queue_id);
end
$$;
comment on function {{.api_schema}}.oq_resume(text) is
'Leases from this queue again, after oq_pause.
Wakes workers that sleep on it. Errors: OQ001, OQ003.';
