-- The textbook queue: what an expert writes by hand in an afternoon. It is the baseline that the
-- benchmark's goals are set against, so it gets every trick that keeps it one table: a partial
-- index over what is pending, a claim that can only be an index scan, a fencing token that costs
-- no column of its own (the attempt), room in the page, and an autovacuum that runs early and
-- unthrottled. It has no reaper, no schedule and no history, which flatters it.
create schema textbook;

create table textbook.job (
    id bigint generated always as identity,
    queue text not null,
    priority smallint not null default 0,
    attempt smallint not null default 0,
    state smallint not null default 0,      -- 0 pending, 1 leased, 2 completed
    payload jsonb not null,
    created_at timestamptz not null default now(),
    leased_until timestamptz,
    leased_by text,
    finished_at timestamptz,
    result jsonb,
    constraint job_pkey primary key (id)
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);

create index job_pending on textbook.job (queue, priority desc, id) where state = 0;

create function textbook.lease(p_queue text, p_worker text, p_seconds int, p_jobs int)
returns table (
    id bigint, token bigint, queue text, payload jsonb, priority smallint, created_at timestamptz,
    leased_until timestamptz
)
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
begin
    return query
    update textbook.job j
    set state = 1, attempt = attempt + 1, leased_by = p_worker,
        leased_until = v_now + make_interval(secs => p_seconds)
    where j.id = any (array(
        select x.id
        from textbook.job x
        where x.queue = p_queue and x.state = 0
        order by x.priority desc, x.id
        limit p_jobs
        for update skip locked))
    returning j.id, j.attempt::bigint, j.queue, j.payload, j.priority, j.created_at, j.leased_until;
end
$$;

create function textbook.ack(p_id bigint, p_token bigint) returns boolean
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
begin
    update textbook.job j set state = 2, finished_at = clock_timestamp()
    where j.id = p_id and j.attempt = p_token and j.state = 1;
    return found;
end
$$;

-- The token is looked up by position instead of joined: a join to unnest() may be planned as a
-- hash over the whole table.
create function textbook.ack_many(p_ids bigint[], p_tokens bigint[]) returns setof bigint
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
begin
    return query
    update textbook.job j set state = 2, finished_at = clock_timestamp()
    where j.id = any (p_ids) and j.state = 1
      and j.attempt = p_tokens[array_position(p_ids, j.id)]
    returning j.id;
end
$$;

create function textbook.enqueue_bulk(p_queue text, p_payloads jsonb[]) returns setof bigint
language sql
as $$
    insert into textbook.job (queue, payload)
    select p_queue, p from unnest(p_payloads) p
    returning id;
$$;

-- A worker that sleeps, where the enqueue notifies.
create function textbook.listen() returns void
language plpgsql
as $$
begin
    listen textbook;
end
$$;
