-- One job, in the caller's transaction. What is plain goes the short way: two statements and as few
-- expressions as there can be; everything else goes through enqueue_checked.
-- Calls: enqueue_checked, wake_at_commit.
-- Locks: epoch shared (memory). Index: queue_name_idx.
create or replace function {{.api_schema}}.oq_enqueue(
    queue_name  text,
    payload     jsonb       default '{}',
    priority    int         default 0,
    run_at      timestamptz default null,
    max_retries int         default null,
    unique_key  text        default null,
    group_key   text        default null,
    headers     jsonb       default null,
    options     jsonb       default null
)
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
    v_lane     bigint;
    v_plain    boolean;
    v_epoch    bigint;
    v_job_id   bigint;
    v_linked   boolean;
    v_bound    boolean;
begin
    select q.queue_id, (q.queue_id << 16) + 32767,
        oq_enqueue.priority = 0 and octet_length(oq_enqueue.payload::text) <= q.max_payload_bytes
            and oq_enqueue.run_at is null and oq_enqueue.max_retries is null
            and oq_enqueue.unique_key is null and oq_enqueue.headers is null and oq_enqueue.options is null
            and not q.restricted and q.dropped_at is null and q.max_depth is null and q.notify = 'wake'
            and clock_timestamp() < now() + interval '1 second',
        q.linked, q.limited or q.paused, pg_sequence_last_value('epoch'::regclass)
      into v_queue_id, v_lane, v_plain, v_linked, v_bound, v_epoch
      from queue q
     where q.queue_name = oq_enqueue.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if v_plain is not true or group_key is not null then
        if v_plain is not true or v_linked is not true or length(group_key) not between 1 and 1000 then
            return enqueue_checked(queue_name, payload, priority, run_at, max_retries, unique_key, group_key,
                headers, options);
        end if;
{{template "internal/enter_body.sql" .}}
        -- line_up lets it in, before the commit.
        with new_job as (
            insert into job (gen, job_id, queue_id, priority, created_at, payload, group_key)
            values (pg_sequence_last_value('generation'::regclass)::smallint, nextval('position'), v_queue_id,
                0, clock_timestamp(), oq_enqueue.payload, oq_enqueue.group_key)
            returning job_id
        )
        insert into waiting (job_id, lane, holder, group_id, position, xact, first)
        select n.job_id, v_lane, 'group', hashtextextended(oq_enqueue.group_key collate "C", v_queue_id) & 9223372036854775807,
            n.job_id, pg_current_xact_id()::text::bigint, true
          from new_job n
        returning job_id into v_job_id;
        return v_job_id;
    end if;
{{template "internal/enter_body.sql" .}}
    with new_job as (
        insert into job (gen, job_id, queue_id, priority, created_at, payload)
        values (pg_sequence_last_value('generation'::regclass)::smallint, nextval('position'), v_queue_id,
            0, clock_timestamp(), oq_enqueue.payload)
        returning job_id
    )
    insert into ready (lane, position, job_id)
    select v_lane, n.job_id, n.job_id from new_job n
    returning job_id into v_job_id;
    if {{template "internal/to_wake.sql" dict "schema" .schema "queue" "v_queue_id"}} then
        perform wake_at_commit(v_queue_id, queue_name, v_bound);
    end if;
    return v_job_id;
end
$$;
comment on function {{.api_schema}}.oq_enqueue(text, jsonb, int, timestamptz, int, text, text, jsonb, jsonb) is
'Enqueues one job and returns its id.
The job exists exactly if the caller''s transaction commits. The queue is created at first use.
priority: -32768 to 32767, higher first. run_at: when it may run (null or past: now).
max_retries: null takes the queue''s. headers: a JSON object for the worker.
unique_key: where a job of this queue has the key, options.unique_mode says what happens; by default its
id is returned. group_key: jobs of one key run in order, one at a time.
options: delay, ttl, expires_at, retry, tags, unique_mode, unique_for, debounce_max, depends_on,
on_parent_failure, batch_id. Errors: OQ001, OQ005, OQ006, 42501.';
