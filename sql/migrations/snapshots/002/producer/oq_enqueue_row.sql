-- A row trigger that makes a job. The table's owner answers for it, not who writes: as in a watch, that role
-- must be able to produce, and the write goes through in any case.
-- Calls: open_queue, watch_allowed, watch_failed, row_json, check_depth, insert_jobs.
-- Locks: epoch shared (memory). Index: queue_name_idx, mark_lane_idx.
create or replace function {{.api_schema}}.oq_enqueue_row()
returns trigger
language plpgsql
{{template "internal/pinned.sql" .}}
-- A value is the same in each payload, whoever writes: as in a watch.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
set intervalstyle = postgres
set bytea_output = hex
set extra_float_digits = 1
as $$
#variable_conflict use_column
declare
    v_queue_id  bigint;
    v_max_bytes int;
    v_max_depth int;
    v_code      text;
    v_error     text;
    v_payload   jsonb;
    v_plain     boolean;
begin
    if tg_level <> 'ROW' then
        perform fail('the trigger', 'one for each statement', 'create trigger ... for each row');
    elsif tg_nargs <> 1 then
        perform fail('the trigger''s arguments', tg_nargs::text, 'one: execute function oq_enqueue_row(''queue'')');
    end if;
    select q.queue_id, q.max_payload_bytes, q.max_depth into v_queue_id, v_max_bytes, v_max_depth
      from queue q
     where q.queue_name = tg_argv[0]
     order by q.version desc, q.row_id
     limit 1;
    if v_queue_id is null then
        v_queue_id := open_queue(tg_argv[0]);
        v_max_bytes := 1048576;
    end if;
    select a.code, a.reason into v_code, v_error
      from pg_class c
     cross join lateral watch_allowed(c.relowner, v_queue_id, null) a
     where c.oid = tg_relid;

    if v_code is null then
        -- A trigger sees virtual generated columns as null: row_json leaves them out.
        v_plain := not exists (
            select from pg_attribute a
             where a.attrelid = tg_relid and a.attnum > 0 and (a.atttypid >= 16384 or a.attgenerated = 'v'));
        -- A json value may hold what jsonb can't: \u0000, or a number without end. No row is written in here, so
        -- the subtransaction takes no id.
        begin
            v_payload := jsonb_build_object('op', tg_op, 'schema', tg_table_schema, 'table', tg_table_name,
                'new', case when tg_op = 'DELETE' then null when v_plain then to_jsonb(new) else row_json(new, tg_relid) end,
                'old', case when tg_op = 'INSERT' then null when v_plain then to_jsonb(old) else row_json(old, tg_relid) end);
        exception when others then
            v_code := sqlstate;
            v_error := sqlerrm;
        end;
        if octet_length(v_payload::text) > v_max_bytes then
            v_code := 'OQ001';
            v_error := format('the payload is longer than %s bytes (option max_payload_bytes of the queue)', v_max_bytes);
        elsif v_max_depth is not null then
            begin
                perform check_depth(v_queue_id, tg_argv[0], v_max_depth, 1);
            exception when sqlstate 'OQ006' then
                v_code := 'OQ006';
                v_error := 'the queue is full';
            end;
        end if;
    end if;
    if v_code is null then
        perform insert_jobs(array[(v_queue_id << 16) + 32767], array[v_payload]);
    else
        perform watch_failed(tg_relid, v_queue_id, 1, v_code, v_error);
    end if;
    return case when tg_op = 'DELETE' then old else new end;
end
$$;
comment on function {{.api_schema}}.oq_enqueue_row() is
'A row trigger that makes a job of each changed row.
create trigger ... after insert or update or delete on ... for each row execute function
oq_enqueue_row(''queue''): the payload is that of oq_watch, {"op", "schema", "table", "new", "old"}. The
table''s owner must be able to produce in the queue, who writes needs no right. As with oq_watch the
change goes through where no job can be made, with a warning and a note in oq_watches. Values of types
that are not built in are their text. One call a row, so oq_watch is many times faster for statements
that change many. Errors: OQ001 for a trigger that is made wrongly.';
