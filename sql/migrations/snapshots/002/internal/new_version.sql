-- Gives a queue's row the version of the next change of options. Who has the queue's lock is the only one who
-- changes them; but its snapshot may be older than the lock. So one row of a queue has the version of a change, and the
-- one that had it has it no more: a change that is not seen is met in either row.
-- Locks: the queue's rows. Index: queue_pk, queue_id_idx, queue_changed_idx.
create or replace function {{.schema}}.new_version(row_id bigint)
returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    update {{.schema}}.queue q
       set version = q.version + 1
      from {{.schema}}.queue n
     where n.row_id = new_version.row_id and q.queue_id = n.queue_id and q.row_id <> n.row_id
       and q.version > 0 and q.version & 15 = 0;
    update {{.schema}}.queue q set version = (q.version | 15) + 1 where q.row_id = new_version.row_id;
exception when unique_violation then
    raise exception 'the queue''s options were changed by another transaction'
        using errcode = '40001', hint = 'Try the transaction again.';
end
$$;
comment on function {{.schema}}.new_version(bigint) is 'Gives a row of a queue the version of the next change of options.';
