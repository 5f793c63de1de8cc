-- Says of a queue that a lease looks at its limits first. As link_queue, and for the same reason, but two versions
-- on: a limit that is lost to a link of the same moment lets too many run, a link that is lost is said again.
-- Index: queue_id_idx.
create or replace function {{.schema}}.limit_queue(queue_id bigint)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_row {{.schema}}.queue%rowtype;
begin
    select q.* into v_row
      from {{.schema}}.queue q
     where q.queue_id = limit_queue.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if v_row.limited then
        return;
    end if;
    v_row.row_id := nextval('{{.schema}}.queue_row_id_seq');
    v_row.version := v_row.version + 2;
    v_row.limited := true;
    insert into {{.schema}}.queue overriding system value values (v_row.*);
end
$$;
comment on function {{.schema}}.limit_queue(bigint) is 'Says of a queue that it has limits.';
