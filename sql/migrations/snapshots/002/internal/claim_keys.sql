-- Takes the unique keys of jobs that are about to be made: a row for each job, with its own id and inserted,
-- or the id of the job that has the key. A key is free when its job is over and the time that unique_for
-- asked for has passed; both are read from where the job stands, so an ack does nothing. One upsert takes
-- the keys: it waits for a transaction that is taking the same, and changes a row only where it still is
-- what was found free; else the next round looks again, in a new snapshot. The first of a key in one call
-- speaks for those behind it. Joins of as many as 100,000 elements must be hash joins, whatever the caller
-- has set.
-- Calls: fail, replace_job. Locks: unique_key rows, by queue and key. Index: unique_key_pk, job_N_pk,
-- finished_N_pk, dead_pk, leased_pk.
create or replace function {{.schema}}.claim_keys(
    jobs {{.schema}}.new_job[], ids bigint[], elements jsonb, now timestamptz, single boolean)
returns table (ord int, job_id bigint, inserted boolean)
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_hashjoin = on
set jit = off
as $$
#variable_conflict use_column
declare
    v_bad   record;
    v_first boolean[];
    v_held  boolean[] := array_fill(false, array[cardinality(jobs)]);
    v_found bigint[] := array_fill(0::bigint, array[cardinality(jobs)]);
    v_left  int;
    v_key   record;
begin
    select u.ord, case
            when u.unique_key is null then 'unique_key'
            when u.debounce_max is not null and u.unique_mode is distinct from 'debounce' then 'debounce_max'
            when u.unique_mode = 'debounce' and u.run_at is null then 'delay'
            when u.unique_for > interval '100 years' then 'unique_for'
            else 'debounce_max ' end as what
      into v_bad
      from unnest(claim_keys.jobs) u
     where u.unique_key is null
            and (u.unique_mode is not null or u.unique_for is not null or u.debounce_max is not null)
        or u.debounce_max is not null and u.unique_mode is distinct from 'debounce'
        or u.unique_mode = 'debounce' and u.run_at is null
        or u.unique_for > interval '100 years' or u.debounce_max > interval '100 years'
     order by u.ord
     limit 1;
    if v_bad.ord is not null then
        perform {{.schema}}.fail(case when not single then 'jobs[' || v_bad.ord - 1 || '].'
                when v_bad.what = 'unique_key' then '' else 'options.' end || rtrim(v_bad.what),
            case v_bad.what when 'unique_key' then null when 'delay' then null
                when 'debounce_max' then 'given' else 'so long' end,
            case v_bad.what
                when 'unique_key' then 'given where unique_mode, unique_for or debounce_max is'
                when 'debounce_max' then 'left out unless unique_mode is debounce'
                when 'delay' then 'given, or run_at, where unique_mode is debounce'
                else 'at most 100 years' end);
    end if;

    v_first := array(
        select u.unique_key is not null
            and row_number() over (partition by u.queue_id, u.unique_key order by u.ord) = 1
          from unnest(claim_keys.jobs) u
         order by u.ord);
    for v_round in 1..100 loop
        v_left := 0;
        for v_key in
            with looked as materialized (
                select u.ord, u.queue_id, u.unique_key, u.unique_mode, u.unique_for, u.debounce_max, h.key_hash,
                    k.job_id as was, k.taken_at, case
                        when k.job_id is null then 'free'
                        when s.is_over then case when k.until > claim_keys.now then 'taken' else 'free' end
                        when coalesce(u.unique_mode not in ('replace', 'debounce'), true) then 'taken'
                        when v_held[u.ord]
                            or (select true from {{.schema}}.leased l where l.job_id = k.job_id limit 1) then 'free'
                        else 'change' end as verdict
                  from unnest(claim_keys.jobs) u
                 cross join lateral (select sha256(convert_to(u.unique_key, 'UTF8')) as key_hash) h
                  left join lateral (
                    select k.job_id, k.taken_at, k.until from {{.schema}}.unique_key k
                     where k.queue_id = u.queue_id and k.key_hash = h.key_hash
                     limit 1) k on true
                 cross join lateral (
                    select coalesce(
                        (select true from {{.schema}}.finished f where f.job_id = k.job_id limit 1),
                        (select true from {{.schema}}.dead d where d.job_id = k.job_id limit 1),
                        (select false from {{.schema}}.job j where j.job_id = k.job_id limit 1),
                        true) as is_over) s
                 where v_first[u.ord] and v_found[u.ord] = 0
            ), claimed as (
                insert into {{.schema}}.unique_key (queue_id, key_hash, job_id, was, taken_at, until)
                select l.queue_id, l.key_hash, claim_keys.ids[l.ord], l.was, claim_keys.now,
                    claim_keys.now + l.unique_for
                  from looked l
                 where l.verdict = 'free'
                 order by l.queue_id, l.key_hash
                on conflict on constraint unique_key_pk do update
                    set job_id = excluded.job_id, was = excluded.was, taken_at = excluded.taken_at,
                        until = excluded.until
                    where unique_key.job_id = excluded.was
                returning job_id
            )
            select l.ord, l.unique_key, l.unique_mode, l.was, l.verdict, l.taken_at + l.debounce_max as latest,
                c.job_id as mine
              from looked l
              left join claimed c on c.job_id = claim_keys.ids[l.ord]
             order by l.ord
        loop
            if v_key.verdict = 'taken' and v_key.unique_mode = 'reject' then
                raise exception 'job % has the unique key %', v_key.was, quote_literal(v_key.unique_key)
                    using errcode = 'OQ005', detail = case when single then '' else 'jobs[' || v_key.ord - 1 || ']' end,
                    hint = 'unique_mode skip returns its id instead.';
            elsif v_key.verdict = 'change' and not {{.schema}}.replace_job(v_key.was,
                claim_keys.jobs[v_key.ord], claim_keys.elements -> v_key.ord - 1, v_key.latest)
            then
                -- Leased by now, or being leased: the change needs a job of its own.
                v_held[v_key.ord] := true;
                v_left := v_key.ord;
                continue;
            elsif v_key.verdict = 'free' and v_key.mine is null then
                v_left := v_key.ord;
                continue;
            end if;
            v_found[v_key.ord] := case when v_key.mine is null then v_key.was else v_key.mine end;
        end loop;
        exit when v_left = 0;
    end loop;
    if v_left > 0 then
        raise exception 'the unique key % changed hands a hundred times while it was looked at',
            quote_literal(claim_keys.jobs[v_left].unique_key) using errcode = '40001';
    end if;

    -- In one call as in several: whoever comes later with a key finds it taken.
    select u.ord, u.unique_key into v_bad
      from (
        select u.*, row_number() over (partition by u.queue_id, u.unique_key order by u.ord) as turn
          from unnest(claim_keys.jobs) u
         where u.unique_key is not null) u
     where u.turn > 1 and u.unique_mode = 'reject'
     order by u.ord
     limit 1;
    if v_bad.ord is not null then
        raise exception 'jobs[%] has the unique key % of one before it', v_bad.ord - 1, quote_literal(v_bad.unique_key)
            using errcode = 'OQ005';
    end if;
    return query
    select u.ord, case when u.unique_key is null then claim_keys.ids[u.ord]
            else v_found[first_value(u.ord) over (partition by u.queue_id, u.unique_key order by u.ord)] end,
        u.unique_key is null or v_found[u.ord] = claim_keys.ids[u.ord]
      from unnest(claim_keys.jobs) u;
end
$$;
comment on function {{.schema}}.claim_keys({{.schema}}.new_job[], bigint[], jsonb, timestamptz, boolean) is
    'Takes the unique keys of jobs that are about to be made.';
