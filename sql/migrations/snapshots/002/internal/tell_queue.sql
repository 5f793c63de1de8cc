-- Says of a queue, from now on, that the ends of its jobs are to be looked at by settle (what: linked), or that a
-- lease looks at its limits first (limited): committed with the first job, limit or throttle that needs it. A row
-- is added, as by open_queue, so that nobody waits for anybody: it counts by its version, two higher where it is
-- limited: a limit that is lost to a link of the same moment lets too many run, a link that is lost is said again.
-- Where the options change at the same time theirs counts, and oq_rotate says it again.
-- Index: queue_id_idx.
create or replace function {{.schema}}.tell_queue(queue_id bigint, what text)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_row {{.schema}}.queue%rowtype;
begin
    select q.* into v_row
      from {{.schema}}.queue q
     where q.queue_id = tell_queue.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if (case what when 'linked' then v_row.linked else v_row.limited end) then
        return;
    end if;
    v_row.row_id := nextval('{{.schema}}.queue_row_id_seq');
    v_row.version := v_row.version + case what when 'linked' then 1 else 2 end;
    v_row.linked := v_row.linked or what = 'linked';
    v_row.limited := v_row.limited or what = 'limited';
    insert into {{.schema}}.queue overriding system value values (v_row.*);
end
$$;
comment on function {{.schema}}.tell_queue(bigint, text) is 'Says of a queue that it is linked, or has limits.';
