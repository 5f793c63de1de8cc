-- Notes that changes made no job, and warns. Rows are only added, so writers do not wait for each other; each
-- takes up the counts of committed ones, so few are left. The warning goes to who writes, who may not see
-- queue or error: both are in oq_watches.
-- Locks: rows of watch_failure (skip locked). Index: watch_failure_idx.
create or replace function {{.schema}}.watch_failed(
    table_id regclass,
    queue_id bigint,
    failed   bigint,
    code     text,
    error    text
)
returns void
language plpgsql
as $$
#variable_conflict use_column
declare
    v_before bigint := 0;
begin
    if not {{template "internal/one_snapshot.sql"}} then
        with gone as (
            delete from {{.schema}}.watch_failure f
             where f.ctid = any (array(
                select x.ctid
                  from {{.schema}}.watch_failure x
                 where x.table_id = watch_failed.table_id and x.queue_id = watch_failed.queue_id
                 limit 100
                   for update skip locked))
            returning f.failed
        )
        select coalesce(sum(g.failed), 0) into v_before from gone g;
    end if;
    insert into {{.schema}}.watch_failure (queue_id, failed, table_id, failed_at, code, error)
    values (watch_failed.queue_id, watch_failed.failed + v_before, watch_failed.table_id, clock_timestamp(),
        watch_failed.code, left(watch_failed.error, 1000));
    raise warning 'a watch of table % made no job of % changes: %', table_id, failed, code
        using detail = 'The changes were made without them.', hint = 'View oq_watches says why.';
end
$$;
comment on function {{.schema}}.watch_failed(regclass, bigint, bigint, text, text) is
    'Notes that changes of a table made no job, and warns.';
