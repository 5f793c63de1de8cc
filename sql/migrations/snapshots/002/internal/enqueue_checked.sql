-- The whole of oq_enqueue: checks everything, creates what is missing. Parents and batches go on to
-- enqueue_jobs.
-- Calls: open_queue, enqueue_jobs, job_options, check_payload, check_depth, demand, enter, open_lane,
-- claim_key, claim_keys, tell_queue, wake_sleepers.
-- Locks: epoch shared (memory), as claim_keys. Index: queue_name_idx, mark_lane_idx.
create or replace function {{.schema}}.enqueue_checked(
    queue_name  text,
    payload     jsonb,
    priority    int,
    run_at      timestamptz,
    max_retries int,
    unique_key  text,
    group_key   text,
    headers     jsonb,
    options     jsonb
)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_queue_id   bigint;
    v_max_bytes  int;
    v_max_depth  int;
    v_restricted boolean;
    v_dropped    boolean;
    v_linked     boolean;
    v_lane       bigint;
    v_job_id     bigint;
    v_now        timestamptz;
    v_options    record;
    v_run_at     timestamptz := enqueue_checked.run_at;
    v_expires_at timestamptz;
    v_retry      jsonb;
    v_tags       text[];
    v_mode       text;
    v_for        interval;
    v_max        interval;
    v_holder     bigint;
begin
    select q.queue_id, q.max_payload_bytes, q.max_depth, q.restricted, q.dropped_at is not null, q.linked
      into v_queue_id, v_max_bytes, v_max_depth, v_restricted, v_dropped, v_linked
      from {{.schema}}.queue q
     where q.queue_name = enqueue_checked.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if v_queue_id is null or v_dropped then
        v_queue_id := {{.schema}}.open_queue(enqueue_checked.queue_name);
        v_max_bytes := coalesce(v_max_bytes, 1048576);
    end if;
    if v_restricted then
        perform {{.schema}}.demand(v_queue_id, enqueue_checked.queue_name, 'produce');
    end if;

    if priority is null or priority not between -32768 and 32767 then
        perform {{.schema}}.fail('priority', priority::text, 'between -32768 and 32767');
    end if;
    if payload is null or octet_length(payload::text) > v_max_bytes then
        perform {{.schema}}.check_payload(payload, v_max_bytes);
    end if;
    if max_retries is not null and max_retries not between 0 and 32767 then
        perform {{.schema}}.fail('max_retries', max_retries::text, 'between 0 and 32767');
    end if;
    if headers is not null
        and (jsonb_typeof(headers) <> 'object' or octet_length(headers::text) > 65536)
    then
        perform {{.schema}}.fail('headers', headers::text, 'a JSON object of at most 65536 bytes');
    end if;
    if length(unique_key) not between 1 and 1000 then
        perform {{.schema}}.fail('unique_key', unique_key, '1 to 1000 characters');
    end if;
    if length(group_key) not between 1 and 1000 then
        perform {{.schema}}.fail('group_key', group_key, '1 to 1000 characters');
    end if;
    if run_at = 'infinity' then
        perform {{.schema}}.fail('run_at', 'infinity', 'a finite timestamp');
    end if;
    if options ?| '{depends_on,on_parent_failure,batch_id}'
        or unique_key is null and options ?| '{unique_mode,unique_for,debounce_max}'
    then
        return (
            select e.job_id
              from {{.schema}}.enqueue_jobs(jsonb_build_array(jsonb_build_object('queue_name', queue_name,
                'payload', payload, 'priority', priority, 'run_at', run_at, 'max_retries', max_retries,
                'unique_key', unique_key, 'group_key', group_key, 'headers', headers, 'options', options)), true) e);
    end if;
    if v_max_depth is not null and unique_key is null then
        perform {{.schema}}.check_depth(v_queue_id, enqueue_checked.queue_name, v_max_depth, 1);
    end if;

    perform {{.schema}}.enter();
    v_now := clock_timestamp();
    if options is not null then
        v_options := {{.schema}}.job_options(options, v_now, 'options.');
        if v_options.run_at is not null and v_run_at is not null then
            perform {{.schema}}.fail('options.delay', options ->> 'delay', 'either run_at or delay, not both');
        end if;
        v_run_at := coalesce(v_run_at, v_options.run_at);
        v_expires_at := v_options.expires_at;
        v_retry := v_options.retry;
        v_tags := v_options.tags;
        v_mode := v_options.unique_mode;
        v_for := v_options.unique_for;
        v_max := v_options.debounce_max;
        -- The first is bound as those after it.
        if v_mode = 'debounce' and v_run_at > v_now + v_max then
            v_run_at := v_now + v_max;
        end if;
    end if;
    v_lane := (v_queue_id << 16) + 32767 - priority;
    if priority <> 0 then
        perform {{.schema}}.open_lane(v_lane);
    end if;

    v_job_id := nextval('{{.schema}}.position');
    if unique_key is not null then
        v_mode := coalesce(v_mode, 'skip');
        if v_mode <> 'debounce' and v_max is null then
            v_holder := {{.schema}}.claim_key(v_queue_id, unique_key, v_job_id, v_now, v_now + v_for, v_mode = 'replace');
        end if;
        if v_holder is null or v_holder <> v_job_id and v_mode <> 'skip' then
            select c.job_id into v_holder
              from {{.schema}}.claim_keys(array[row(1, v_job_id, v_queue_id, v_lane, v_run_at, max_retries,
                    v_expires_at, v_retry, v_tags, group_key, unique_key, v_mode, v_for, v_max, null, null,
                    null)::{{.schema}}.new_job],
                jsonb_build_array(jsonb_build_object('payload', payload, 'headers', headers)), v_now, true) c;
        end if;
        if v_holder <> v_job_id then
            return v_holder;
        end if;
        if v_max_depth is not null then
            perform {{.schema}}.check_depth(v_queue_id, enqueue_checked.queue_name, v_max_depth, 1);
        end if;
    end if;
    insert into {{.schema}}.job (gen, job_id, queue_id, priority, created_at, run_at, max_retries, expires_at,
        payload, headers, retry, tags, group_key, unique_key)
    values (pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint, v_job_id, v_queue_id,
        priority::smallint, v_now, v_run_at, max_retries, v_expires_at, payload, headers, v_retry, v_tags,
        group_key, unique_key);
    if group_key is not null and v_linked is not true then
        perform {{.schema}}.tell_queue(v_queue_id, 'linked');
    end if;

    if v_expires_at is not null then
        -- A timer in the past would stand below the mark, where nobody looks.
        insert into {{.schema}}.ttl (expires_at, job_id) values (greatest(v_expires_at, v_now), v_job_id);
    end if;
    if v_run_at > v_now then
        insert into {{.schema}}.scheduled (due_at, job_id, lane, expires_at)
        values (v_run_at, v_job_id, v_lane, v_expires_at);
        return v_job_id;
    end if;

    if group_key is not null then
        -- line_up lets it in, before the commit.
        insert into {{.schema}}.waiting (job_id, lane, holder, group_id, position, expires_at, xact, first)
        values (v_job_id, v_lane, 'group', hashtextextended(group_key collate "C", v_queue_id) & 9223372036854775807,
            v_job_id, v_expires_at, pg_current_xact_id()::text::bigint, true);
        return v_job_id;
    end if;
    insert into {{.schema}}.ready (lane, position, job_id, expires_at)
    values (v_lane, v_job_id, v_job_id, v_expires_at);
    perform {{.schema}}.wake_sleepers(v_queue_id);
    return v_job_id;
end
$$;
comment on function {{.schema}}.enqueue_checked(text, jsonb, int, timestamptz, int, text, text, jsonb, jsonb) is
'Enqueues one job, with every check and option.';
