-- Says of a queue, from now on, that the ends of its jobs are to be looked at by settle: committed with the
-- first job that needs it. A row is added, as by open_queue, so that nobody waits for anybody: it counts
-- by its version. Where the options change at the same time theirs counts, and oq_rotate says it again.
-- Index: queue_id_idx.
create or replace function {{.schema}}.link_queue(queue_id bigint)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_row {{.schema}}.queue%rowtype;
begin
    select q.* into v_row
      from {{.schema}}.queue q
     where q.queue_id = link_queue.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if v_row.linked then
        return;
    end if;
    v_row.row_id := nextval('{{.schema}}.queue_row_id_seq');
    v_row.version := v_row.version + 1;
    v_row.linked := true;
    insert into {{.schema}}.queue overriding system value values (v_row.*);
end
$$;
comment on function {{.schema}}.link_queue(bigint) is 'Says of a queue that the ends of its jobs matter to others.';
