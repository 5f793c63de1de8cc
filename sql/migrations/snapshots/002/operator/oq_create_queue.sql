-- Creates a queue, or changes the options that are named. Everything is checked before anything is
-- written. A new version of the row counts at once for whoever reads it next. Calls that change the
-- same queue wait for each other; producers and workers never take that lock.
-- Calls: check_queue_name, check_retry, queue_shown, open_queue, new_version.
-- Locks: queue (advisory), the queue row, leased rows by job id (skip locked). Index: queue_name_idx, queue_id_idx;
-- leased is scanned.
create or replace function {{.api_schema}}.oq_create_queue(
    queue_name text,
    options    jsonb default '{}'
)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_key      text;
    v_value    text;
    v_low      bigint;
    v_high     bigint;
    v_checked  jsonb := jsonb '{}';
    v_time     interval;
    v_created  boolean;
    v_queue_id bigint;
    v_old      queue%rowtype;
    v_new      queue%rowtype;
begin
    perform check_queue_name(oq_create_queue.queue_name);
    if options is null or jsonb_typeof(options) <> 'object' then
        perform fail('options', options::text, 'a JSON object');
    end if;
    for v_key, v_value in select e.key, e.value from jsonb_each_text(options) e loop
        case v_key
        when 'lease_seconds', 'max_retries', 'max_lost_leases', 'max_payload_bytes', 'max_depth'
        then
            v_low := case v_key when 'max_retries' then 0 else 1 end;
            v_high := case v_key when 'lease_seconds' then 604800
                when 'max_payload_bytes' then 104857600
                when 'max_depth' then 2147483647 else 32767 end;
            if (v_value is null and v_key <> 'max_depth') or v_value !~ '^-?[0-9]{1,10}$'
                or v_value::bigint not between v_low and v_high
            then
                perform fail('options.' || v_key, v_value,
                    format('a whole number between %s and %s', v_low, v_high));
            end if;
        when 'restricted' then
            if v_value is null or v_value not in ('true', 'false') then
                perform fail('options.restricted', v_value, 'true or false');
            end if;
        when 'keep' then
            if v_value is null or v_value not in ('outcome', 'full', 'none') then
                perform fail('options.keep', v_value, 'outcome, full or none');
            end if;
        when 'notify' then
            if v_value is null or v_value not in ('wake', 'daemon') then
                perform fail('options.notify', v_value, 'wake or daemon');
            end if;
        when 'overflow' then
            if v_value is null or v_value <> 'reject' then
                perform fail('options.overflow', v_value, 'reject');
            end if;
            continue;
        when 'retention' then
            begin
                v_time := v_value::interval;
            exception when data_exception then
                v_time := null;
            end;
            if v_time is null or v_time < interval '0' or v_time > interval '3660 days' then
                perform fail('options.retention', v_value, 'an interval between 0 and 10 years');
            end if;
        when 'retry' then
            v_checked := v_checked || jsonb_build_object('retry', check_retry(options -> 'retry'));
            continue;
        else
            raise exception 'options must not have the key %', quote_literal(left(v_key, 100))
                using errcode = 'OQ001',
                    hint = 'lease_seconds, max_retries, retry, max_lost_leases, '
                    'retention, keep, max_payload_bytes, max_depth, overflow, restricted, notify';
        end case;
        v_checked := v_checked || jsonb_build_object(v_key, v_value);
    end loop;

    perform pg_advisory_xact_lock(
        hashtext('{{.schema}}:queue'), hashtext(oq_create_queue.queue_name collate "C"));
    v_created := not exists (
        select from queue_shown q
         where q.queue_id in (
            select x.queue_id from queue x where x.queue_name = oq_create_queue.queue_name collate "C"));
    v_queue_id := open_queue(oq_create_queue.queue_name);
    select q.* into v_old
      from queue q
     where q.queue_id = v_queue_id
     order by q.version desc, q.row_id
     limit 1
       for update;
    v_new := jsonb_populate_record(v_old, v_checked);
    v_new.dropped_at := null;
    if v_created then
        v_new.created_at := clock_timestamp();
    end if;
    if v_new is distinct from v_old then
        perform new_version(v_old.row_id);
        update queue q
           set restricted = v_new.restricted,
               lease_seconds = v_new.lease_seconds, max_retries = v_new.max_retries,
               max_lost_leases = v_new.max_lost_leases, max_payload_bytes = v_new.max_payload_bytes,
               max_depth = v_new.max_depth, keep = v_new.keep, notify = v_new.notify,
               retention = v_new.retention, retry = v_new.retry, created_at = v_new.created_at,
               dropped_at = null
         where q.row_id = v_old.row_id;
        -- A lease has a copy of what its ack looks at. Who is ending or extending one at this moment is not waited for.
        if v_new.restricted <> v_old.restricted or (v_new.keep = 'none') <> (v_old.keep = 'none') then
            update leased l
               set restricted = v_new.restricted, kept = v_new.keep <> 'none'
             where l.ctid = any (array(
                select x.ctid
                  from leased x
                 where x.lane between v_queue_id << 16 and (v_queue_id << 16) + 65535
                 order by x.job_id
                   for update skip locked));
        end if;
    end if;
    return v_created;
end
$$;
comment on function {{.api_schema}}.oq_create_queue(text, jsonb) is
'Creates a queue, or changes the options named; true where it is new.
options: lease_seconds 30 (1 to 604800), max_retries 3 (0 to 32767), max_lost_leases 3 (1 to 32767),
retry {"kind": exponential | linear | fixed, "base", "factor", "max", "jitter"}, retention 1 day,
keep outcome | full | none, max_payload_bytes 1048576, max_depth (null: no limit), overflow reject,
restricted false, notify wake | daemon. What is not named stays as it is. Errors: OQ001; 55P03 where
another open transaction is changing the same queue.';
