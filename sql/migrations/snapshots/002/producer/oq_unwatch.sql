-- Ends a watch. With the caller's rights, as oq_watch.
-- Calls: watch_end (a definer), watch_drop (the caller's rights).
-- Locks: the watch's row, the table (ACCESS EXCLUSIVE, for a moment).
create or replace function {{.api_schema}}.oq_unwatch(table_name regclass, queue_name text)
returns boolean
language sql
set search_path = pg_catalog, {{.schema}}, pg_temp
set lock_timeout = '2s'
begin atomic
    select {{.schema}}.watch_drop({{.schema}}.watch_end(current_user, oq_unwatch.table_name, oq_unwatch.queue_name));
end;
comment on function {{.api_schema}}.oq_unwatch(regclass, text) is
'Ends a watch; false where there is none.
Only for the table''s owner. Jobs that were made stay. Errors: OQ001, 42501; 55P03 where an open transaction has
used the table for 2 s.';
