-- Changes of a table become jobs. Not a definer, as oq_unwatch and oq_watch_fire alone: function and triggers are
-- made by the table's owner. Both halves are bound here when this is created, so no caller can name them.
-- Calls: watch_plan (a definer), watch_build (the caller's rights).
-- Locks: the watch's row, the table (SHARE ROW EXCLUSIVE).
create or replace function {{.api_schema}}.oq_watch(
    table_name regclass,
    queue_name text,
    events     text   default 'insert',
    columns    text[] default null,
    condition  text   default null,
    options    jsonb  default null
)
returns text
language sql
set search_path = pg_catalog, {{.schema}}, pg_temp
set lock_timeout = '2s'
begin atomic
    select {{.schema}}.watch_build({{.schema}}.watch_plan(current_user, oq_watch.table_name, oq_watch.queue_name,
        oq_watch.events, oq_watch.columns, oq_watch.condition, oq_watch.options));
end;
comment on function {{.api_schema}}.oq_watch(regclass, text, text, text[], text, jsonb) is
'Makes a job of each changed row of a table; returns the trigger''s name.
In the transaction that changes it. Only the table''s owner may, who must be able to produce in the
queue and to create a function in the table''s schema; who writes to the table needs no right.
events: any of insert, update, delete, which get a trigger each, {{.schema}}_watch_<number>_<event>; the first
one''s name is returned. columns: updates count only where one of these really changed. condition: a
boolean SQL expression over new and old (all null where there is none), without subqueries, checked
now and run with the table owner''s rights; functions that are not built in need their schema.
options: priority, delay or run_at, max_retries, headers, ttl, expires_at, retry, tags; unique_columns
(the unique key is made of their values), unique_mode, unique_for, debounce_max; group_columns;
payload_columns (only these stand in the payload). The payload is {"op", "schema", "table", "new",
"old"}. A change never fails because of its watch: what made no job is told by a warning and in
oq_watches. To watch again with the same queue replaces the watch. Errors: OQ001, 42501; 55P03 where
an open transaction has written to the table for 2 s.';
