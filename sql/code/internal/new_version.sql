-- Gives a queue's row the version of the next change of options. Who has the queue's lock is the only one who
-- changes them; but where its snapshot is older than the lock, a change that it does not see has that version already,
-- in another row.
-- Locks: the queue row. Index: queue_pk, queue_version_idx.
create or replace function {{.schema}}.new_version(row_id bigint)
returns void
language plpgsql
as $$
#variable_conflict use_column
begin
    update {{.schema}}.queue q set version = (q.version | 15) + 1 where q.row_id = new_version.row_id;
exception when unique_violation then
    raise exception 'the queue''s options were changed by another transaction'
        using errcode = '40001', hint = 'Try the transaction again.';
end
$$;
comment on function {{.schema}}.new_version(bigint) is 'Gives a row of a queue the version of the next change of options.';
