-- The id of a queue that must exist.
-- Calls: check_queue_name, queue_shown. Index: queue_name_idx, queue_id_idx.
create or replace function {{.schema}}.require_queue(queue_name text)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
begin
    perform {{.schema}}.check_queue_name(require_queue.queue_name);
    select q.queue_id into v_queue_id
      from {{.schema}}.queue_shown q
     where q.queue_id = (
        select x.queue_id from {{.schema}}.queue x
         where x.queue_name = require_queue.queue_name collate "C"
         limit 1);
    if v_queue_id is null then
        raise exception 'queue % does not exist', quote_literal(require_queue.queue_name)
            using errcode = 'OQ003',
            hint = 'Queues are listed by oq_queues, and made by oq_create_queue.';
    end if;
    return v_queue_id;
end
$$;
comment on function {{.schema}}.require_queue(text) is 'The id of a queue, or OQ003.';
