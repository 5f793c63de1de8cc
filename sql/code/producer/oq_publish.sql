-- One job in each queue with a matching subscription. Candidates are found by the words before the first
-- and after the last wildcard, which an index holds; only they are matched. The publisher needs no right in
-- those queues, their subscribers do; so an error does not name a queue that the publisher may not see.
-- Calls: check_words, role_may, check_payload, check_depth, may, insert_jobs.
-- Locks: epoch shared (memory). Index: subscription_match_idx, queue_id_idx, mark_lane_idx.
create or replace function {{.api_schema}}.oq_publish(
    topic   text,
    payload jsonb default '{}',
    headers jsonb default null
)
returns int
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_words   text[];
    v_heads   text[];
    v_tails   text[];
    v_queue   record;
    v_lanes   bigint[] := array[]::bigint[];
    v_allowed boolean;
    v_headers jsonb;
begin
    v_words := check_words('topic', topic, false);
    if payload is null then
        perform fail('payload', null, 'any JSON value; ''null'' is one');
    end if;
    if headers is not null and jsonb_typeof(headers) <> 'object' then
        perform fail('headers', headers::text, 'a JSON object of at most 65536 bytes');
    end if;
    v_headers := coalesce(headers, '{}') || jsonb_build_object('topic', topic);
    if octet_length(v_headers::text) > 65536 then
        perform fail('headers', headers::text, 'a JSON object of at most 65536 bytes');
    end if;
    v_heads := array(select array_to_string(v_words[:n], '.') from generate_series(0, cardinality(v_words)) n);
    v_tails := array(
        select array_to_string(v_words[n:], '.') from generate_series(1, cardinality(v_words) + 1) n);
    for v_queue in
        select m.queue_id, m.owners, q.*
          from (
            select s.queue_id, array_agg(distinct s.owner::oid) as owners
              from subscription s
             where s.head = any (v_heads collate "C") and s.tail = any (v_tails collate "C")
               and case when s.regex is null then s.pattern = oq_publish.topic collate "C"
                    else (oq_publish.topic || '.') collate "C" ~ s.regex end
             group by s.queue_id) m
         cross join lateral (
            select x.queue_name, x.max_payload_bytes, x.max_depth, x.restricted
              from queue x
             where x.queue_id = m.queue_id
             order by x.version desc, x.row_id
             limit 1) q
         order by m.queue_id
    loop
        select bool_or(role_may(o.owner, v_queue.queue_id, 'produce')) into v_allowed
          from unnest(v_queue.owners) o(owner);
        continue when not v_allowed;
        perform check_payload(payload, v_queue.max_payload_bytes);
        if v_queue.max_depth is not null then
            perform check_depth(v_queue.queue_id, case when not v_queue.restricted or may(v_queue.queue_id, 'observe')
                then v_queue.queue_name else '...' end, v_queue.max_depth, 1);
        end if;
        v_lanes := v_lanes || ((v_queue.queue_id << 16) + 32767);
    end loop;
    if cardinality(v_lanes) > 0 then
        perform insert_jobs(v_lanes, array_fill(payload, array[cardinality(v_lanes)]), headers => v_headers);
    end if;
    return cardinality(v_lanes);
end
$$;
comment on function {{.api_schema}}.oq_publish(text, jsonb, jsonb) is
'Makes a job in each queue subscribed to the topic; returns how many.
The jobs exist exactly if the caller''s transaction commits. topic: words of A-Z a-z 0-9 _ : / - with dots
between them. headers: a JSON object for the workers, to which the key topic is added. A queue with several
matching subscriptions gets one job. Subscriptions whose owner may not produce in the queue any more are
passed over. All jobs or, with an error, none: OQ001, also where the payload is too large for one of the
queues; OQ006 where one is full.';
