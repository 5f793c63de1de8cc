-- Many plain jobs of one queue, set-based: the ids are drawn first, in the order of the payloads.
-- Calls: open_queue, check_payload, check_depth, demand, enter, open_lane, wake_sleepers.
-- Locks: epoch shared (memory). Index: queue_name_idx, mark_lane_idx.
create or replace function {{.api_schema}}.oq_enqueue_bulk(
    queue_name  text,
    payloads    jsonb[],
    priority    int         default 0,
    run_at      timestamptz default null,
    max_retries int         default null
)
returns setof bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_queue_id   bigint;
    v_max_bytes  int;
    v_max_depth  int;
    v_restricted boolean;
    v_dropped    boolean;
    v_lane       bigint;
    v_ids        bigint[];
    v_gen        int;
    v_now        timestamptz;
begin
    select q.queue_id, q.max_payload_bytes, q.max_depth, q.restricted, q.dropped_at is not null
      into v_queue_id, v_max_bytes, v_max_depth, v_restricted, v_dropped
      from queue q
     where q.queue_name = oq_enqueue_bulk.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if v_queue_id is null or v_dropped then
        v_queue_id := open_queue(oq_enqueue_bulk.queue_name);
        v_max_bytes := coalesce(v_max_bytes, 1048576);
    end if;
    if v_restricted then
        perform demand(v_queue_id, oq_enqueue_bulk.queue_name, 'produce');
    end if;
    if priority is null or priority not between -32768 and 32767 then
        perform fail('priority', priority::text, 'between -32768 and 32767');
    end if;
    if max_retries is not null and max_retries not between 0 and 32767 then
        perform fail('max_retries', max_retries::text, 'between 0 and 32767');
    end if;
    if run_at = 'infinity' then
        perform fail('run_at', 'infinity', 'a finite timestamp');
    end if;
    if payloads is null then
        perform fail('payloads', null, 'an array of JSON values');
    elsif cardinality(payloads) > 100000 then
        perform fail('payloads', cardinality(payloads) || ' long', 'at most 100000 long');
    elsif array_ndims(payloads) > 1 then
        perform fail('payloads', 'of several dimensions', 'a plain array');
    elsif cardinality(payloads) = 0 then
        return;
    end if;
    -- 128 bytes have room for seven numbers, of 147457 digits at most, and are never longer than a megabyte as text.
    if exists (
        select from unnest(payloads) p(payload)
         where p.payload is null or case when pg_column_size(p.payload) > 128 or v_max_bytes < 1048576
                then octet_length(p.payload::text) > v_max_bytes end)
    then
        perform check_payload(p.payload, v_max_bytes, 'payloads[' || p.ord || ']')
           from unnest(payloads) with ordinality p(payload, ord);
    end if;
    if v_max_depth is not null then
        perform check_depth(v_queue_id, oq_enqueue_bulk.queue_name, v_max_depth, cardinality(payloads));
    end if;

    perform enter();
    v_now := clock_timestamp();
    v_lane := (v_queue_id << 16) + 32767 - priority;
    if priority <> 0 then
        perform open_lane(v_lane);
    end if;
    v_ids := array(select nextval('position') from generate_series(1, cardinality(payloads)));
    -- Naming the partition spares routing each row: a tenth of the whole call.
    v_gen := pg_sequence_last_value('generation'::regclass);
    {{range $gen := list 0 1 2}}{{if $gen}}elsif{{else}}if{{end}} v_gen = {{$gen}} then
        insert into job_{{$gen}} (gen, job_id, queue_id, priority, created_at, run_at, max_retries, payload)
        select {{$gen}}, u.job_id, v_queue_id, oq_enqueue_bulk.priority::smallint, v_now, oq_enqueue_bulk.run_at,
            oq_enqueue_bulk.max_retries, u.payload
          from unnest(v_ids, payloads) u(job_id, payload);
    {{end}}end if;
    if run_at > v_now then
        insert into scheduled (due_at, job_id, lane)
        select oq_enqueue_bulk.run_at, u.job_id, v_lane from unnest(v_ids) u(job_id);
    else
        insert into ready (lane, position, job_id)
        select v_lane, u.job_id, u.job_id from unnest(v_ids) u(job_id);
        perform wake_sleepers(v_queue_id);
    end if;
    return query select u.job_id from unnest(v_ids) u(job_id);
end
$$;
comment on function {{.api_schema}}.oq_enqueue_bulk(text, jsonb[], int, timestamptz, int) is
'Enqueues many jobs of one queue; ids come in the order of payloads.
The fast way in: at most 100000 payloads a call, all with the same priority, run_at and max_retries.
All of them or, with an error, none. Errors as oq_enqueue.';
