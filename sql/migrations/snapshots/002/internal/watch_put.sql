-- The jobs of a watch. It never raises for what a queue, a right or a payload is like: it notes that. So that
-- nothing has to be caught, which would cost a transaction id, all is looked at before; only the long way
-- in, for keys, is taken in a block.
-- Calls: watch_allowed, watch_failed, check_depth, insert_jobs, may, enqueue_jobs.
-- Locks: epoch shared (memory). Index: watch_pk, queue_id_idx, deputy_xid_idx.
create or replace function {{.schema}}.watch_put(
    caller      name,
    watch_id    bigint,
    table_id    oid,
    payloads    jsonb[],
    unique_keys text[],
    group_keys  text[],
    failed      bigint,
    code        text,
    error       text
)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_watch    record;
    v_payloads jsonb[] := watch_put.payloads;
    v_failed   bigint := watch_put.failed;
    v_code     text := watch_put.code;
    v_error    text := watch_put.error;
    v_count    int := coalesce(cardinality(payloads), 0);
    v_large    boolean[];
    v_lane     bigint;
    v_prefix   text;
    v_deputy   boolean;
begin
    select w.*, q.queue_name, q.max_payload_bytes, q.max_depth,
        pg_has_role(watch_put.caller, w.owner::oid, 'usage') as is_own
      into v_watch
      from watch w
     cross join lateral (
        select x.queue_name, x.max_payload_bytes, x.max_depth
          from queue x
         where x.queue_id = w.queue_id
         order by x.version desc, x.row_id
         limit 1) q
     where w.watch_id = watch_put.watch_id and (w.table_id = watch_put.table_id or w.table_id = any (array(
        -- A row trigger of a partition that has partitions: theirs are copies of it.
        select a.relid from pg_partition_ancestors(watch_put.table_id) a)));
    if v_watch.is_own is not true then
        -- Not known here, or somebody else's: after a restore of some tables only, or by a trigger made by hand.
        raise warning 'there is no watch {{.schema}}_watch_% of table %', watch_id, table_id::regclass
            using hint = 'Its owner can call oq_watch again.';
        return;
    end if;
    table_id := v_watch.table_id;
    if v_count > 0 then
        select a.code, a.reason into v_code, v_error
          from watch_allowed(v_watch.owner, v_watch.queue_id, watch_put.table_id) a;
        -- With keys a change may need no new job: enqueue_jobs knows.
        if v_code is null and v_watch.max_depth is not null and not v_watch.keyed then
            begin
                perform check_depth(v_watch.queue_id, v_watch.queue_name, v_watch.max_depth, v_count);
            exception when sqlstate 'OQ006' then
                v_code := 'OQ006';
                v_error := 'the queue is full';
            end;
        end if;
        if v_code is not null then
            v_failed := v_failed + v_count;
            v_count := 0;
        elsif exists (
            select from unnest(v_payloads) p(payload)
             where octet_length(p.payload::text) > v_watch.max_payload_bytes)
        then
            v_large := array(
                select octet_length(p.payload::text) > v_watch.max_payload_bytes
                  from unnest(v_payloads) with ordinality p(payload, ord)
                 order by p.ord);
        end if;
    end if;
    if v_count > 0 and true = any (v_large) then
        v_code := 'OQ001';
        v_error := format('a payload is longer than %s bytes (option max_payload_bytes of the queue; '
            'payload_columns of the watch makes it shorter)', v_watch.max_payload_bytes);
        select array_agg(u.payload order by u.ord), array_agg(u.unique_key order by u.ord),
            array_agg(u.group_key order by u.ord)
          into v_payloads, unique_keys, group_keys
          from rows from (unnest(v_payloads), unnest(watch_put.unique_keys), unnest(watch_put.group_keys),
            unnest(v_large)) with ordinality u(payload, unique_key, group_key, is_large, ord)
         where not u.is_large;
        v_failed := v_failed + v_count - coalesce(cardinality(v_payloads), 0);
        v_count := coalesce(cardinality(v_payloads), 0);
    end if;

    if v_count > 0 and not v_watch.keyed then
        v_lane := (v_watch.queue_id << 16) + 32767 - v_watch.priority;
        perform insert_jobs(array_fill(v_lane, array[v_count]), v_payloads, v_watch.run_at, v_watch.max_retries,
            v_watch.headers, v_watch.job_options);
    elsif v_count > 0 then
        v_prefix := table_id::regclass || ':';
        begin
            -- By the owner's right, which was looked at, where who writes has none: see deputy.
            v_deputy := not may(v_watch.queue_id, 'produce');
            if v_deputy then
                insert into deputy (xid, queue_id) values (pg_current_xact_id(), v_watch.queue_id);
            end if;
            perform from enqueue_jobs((
                select jsonb_agg(coalesce(v_watch.job_options, '{}')
                        - case when u.unique_key is null then '{unique_mode,unique_for,debounce_max}'::text[]
                            else '{}' end || jsonb_strip_nulls(jsonb_build_object(
                        'queue_name', v_watch.queue_name, 'priority', v_watch.priority,
                        'run_at', v_watch.run_at, 'max_retries', v_watch.max_retries,
                        'unique_key', v_prefix || case when length(u.unique_key) > 200
                            then left(u.unique_key, 120) || md5(u.unique_key) else u.unique_key end,
                        'group_key', nullif(case when length(u.group_key) > 200
                            then left(u.group_key, 120) || md5(u.group_key) else u.group_key end, '')))
                    || jsonb_build_object('headers', v_watch.headers, 'payload', u.payload) order by u.ord)
                  from rows from (unnest(v_payloads), unnest(watch_put.unique_keys),
                    unnest(watch_put.group_keys)) with ordinality u(payload, unique_key, group_key, ord)), true);
            if v_deputy then
                delete from deputy d
                 where d.xid = pg_current_xact_id() and d.queue_id = v_watch.queue_id;
            end if;
        exception
            when serialization_failure then
                raise;
            when others then
                get stacked diagnostics v_code = returned_sqlstate, v_error = message_text;
                v_failed := v_failed + v_count;
        end;
    end if;
    if v_failed > 0 then
        perform watch_failed(watch_put.table_id, v_watch.queue_id, v_failed, v_code, v_error);
    end if;
end
$$;
comment on function {{.schema}}.watch_put(name, bigint, oid, jsonb[], text[], text[], bigint, text, text) is
    'Enqueues the jobs of a watch, or notes why it does not.';
