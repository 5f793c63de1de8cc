-- What the trigger function of a watch calls: it runs as the table's owner, and this passes on who that is,
-- which a definer could not tell. So it is none; whoever else calls it makes jobs by a right of his own.
-- Calls: watch_put.
create or replace function {{.api_schema}}.oq_watch_fire(
    watch_id    bigint,
    table_id    oid,
    payloads    jsonb[],
    unique_keys text[],
    group_keys  text[],
    failed      bigint default 0,
    code        text   default null,
    error       text   default null
)
returns void
language sql
set search_path = pg_catalog, {{.schema}}, pg_temp
begin atomic
    select {{.schema}}.watch_put(current_user, oq_watch_fire.watch_id, oq_watch_fire.table_id, oq_watch_fire.payloads,
        oq_watch_fire.unique_keys, oq_watch_fire.group_keys, oq_watch_fire.failed, oq_watch_fire.code,
        oq_watch_fire.error);
end;
comment on function {{.api_schema}}.oq_watch_fire(bigint, oid, jsonb[], text[], text[], bigint, text, text) is
'For the triggers that oq_watch makes; not to be called by anyone else.
It makes the jobs of one statement, or notes why it does not.';
