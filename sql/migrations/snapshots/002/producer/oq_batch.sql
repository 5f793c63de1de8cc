-- Opens a batch. What it will enqueue is enqueued once for trial and taken back, so that what would be refused is
-- refused now, but not for a queue that is full just now or a key that is taken.
-- Calls: enqueue_for, fixed_times. Index: batch_pk, mark_lane_idx.
create or replace function {{.api_schema}}.oq_batch(options jsonb default '{}')
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_owner name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    v_key   text;
    v_job   jsonb;
    v_id    bigint;
    v_error text;
    v_hint  text;
begin
    if options is null or jsonb_typeof(options) <> 'object' then
        perform fail('options', left(options::text, 100), 'a JSON object');
    end if;
    for v_key, v_job in select e.key, e.value from jsonb_each(options) e order by e.key loop
        if v_key not in ('on_success', 'on_failure', 'on_complete') then
            raise exception 'options must not have the key %', quote_literal(left(v_key, 100))
                using errcode = 'OQ001', hint = 'on_success, on_failure, on_complete';
        end if;
        continue when v_job = 'null';
        if jsonb_typeof(v_job) <> 'object' or v_job ?| '{ref,depends_on_refs}' then
            perform fail('options.' || v_key, left(v_job::text, 100),
                'a JSON object with queue_name and any other argument or option of oq_enqueue');
        end if;
        begin
            -- With the header that it will have, of the largest id.
            perform enqueue_for(v_job || case when coalesce(jsonb_typeof(v_job -> 'headers'), 'null') in ('object', 'null')
                    then jsonb_build_object('headers', coalesce(nullif(v_job -> 'headers', 'null'), '{}')
                        || '{"batch": 9223372036854775807}') else '{}' end,
                to_regrole(quote_ident(v_owner))::oid);
            raise exception using errcode = 'OQ099';
        exception
            when sqlstate 'OQ099' or sqlstate 'OQ005' or sqlstate 'OQ006' then null;
            when sqlstate 'OQ001' then
                get stacked diagnostics v_error = message_text, v_hint = pg_exception_hint;
                raise exception '%', case when v_error like 'jobs[0]%' then 'options.' || v_key || substr(v_error, 8)
                        else 'options.' || v_key || ': ' || v_error end
                    using errcode = 'OQ001', hint = replace(v_hint, ', ref or depends_on_refs', '');
        end;
        options := options || jsonb_build_object(v_key, fixed_times(v_job));
    end loop;
    insert into batch (owner, on_success, on_failure, on_complete)
    values (to_regrole(quote_ident(v_owner)), nullif(options -> 'on_success', 'null'),
        nullif(options -> 'on_failure', 'null'), nullif(options -> 'on_complete', 'null'))
    returning batch_id into v_id;
    -- The batch waits for its own seal, too.
    insert into dependency (parent_id, child_id) values (0, -v_id);
    return v_id;
end
$$;
comment on function {{.api_schema}}.oq_batch(jsonb) is
'Opens a batch and returns its id, the option batch_id of its jobs.
options: on_success, on_failure, on_complete: each a job, an object as oq_enqueue_many takes it. When the
batch is sealed and all its jobs are over, once: on_success is enqueued if all were completed, on_failure if any died,
was cancelled or expired, and on_complete in either case; the header batch has the id. They are made with the
rights of who called oq_batch, checked now and then again. Errors: OQ001, 42501.';
