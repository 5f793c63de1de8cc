-- Takes the unique keys of jobs that are about to be made: a row for each job, with its own id and inserted,
-- or the id of the job that has the key. A key is free when its job is over, or its time to live, and the time that
-- unique_for asked for has passed; all are read from where the job stands, so an ack does nothing. One upsert locks the
-- keys that are free or whose job is to be changed, in one order, and takes those that still are as they were
-- found; the next round, in a new snapshot, sees what the locks have fixed. The first of a key in one call speaks
-- for those behind it. Calls: replace_job. Locks: unique_key rows, by queue and key; then as
-- replace_job; job rows. Index: unique_key_pk, job_N_pk, finished_N_pk, dead_pk, leased_pk.
create or replace function {{.schema}}.claim_keys(
    jobs {{.schema}}.new_job[], elements jsonb, now timestamptz, single boolean)
returns table (ord int, job_id bigint, inserted boolean)
language plpgsql
-- Joins of as many as 100,000 elements must be hash joins, whatever the caller has set.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_hashjoin = on
set jit = off
as $$
#variable_conflict use_column
declare
    v_bad    record;
    v_first  boolean[];
    -- What a worker holds, or is just taking, as the version of its key.
    v_held   bigint[] := array_fill(0::bigint, array[cardinality(jobs)]);
    v_found  bigint[] := array_fill(0::bigint, array[cardinality(jobs)]);
    v_left   int;
    v_reject int;
    v_lost   boolean := false;
    v_past   bigint[] := array[]::bigint[];
    v_key    record;
    v_same   boolean;
begin
    select u.ord, case
            when u.unique_key is null then 'unique_key'
            when u.debounce_max is not null and u.unique_mode is distinct from 'debounce' then 'debounce_max'
            else 'delay' end as what, u.debounce_max::text as debounce_max
      into v_bad
      from unnest(claim_keys.jobs) u
     where u.unique_key is null
            and (u.unique_mode is not null or u.unique_for is not null or u.debounce_max is not null)
        or u.debounce_max is not null and u.unique_mode is distinct from 'debounce'
        or u.unique_mode = 'debounce' and u.run_at is null
     order by u.ord
     limit 1;
    if v_bad.ord is not null then
        perform {{.schema}}.fail(case when not single then 'jobs[' || v_bad.ord - 1 || '].'
                when v_bad.what = 'unique_key' then '' else 'options.' end || v_bad.what,
            case v_bad.what when 'debounce_max' then v_bad.debounce_max end,
            case v_bad.what
                when 'unique_key' then 'given where unique_mode, unique_for or debounce_max is'
                when 'debounce_max' then 'left out unless unique_mode is debounce'
                else 'given, or run_at, where unique_mode is debounce' end);
    end if;

    v_first := array[true];
    if cardinality(jobs) > 1 then
        v_first := array(
            select u.unique_key is not null
                and row_number() over (partition by u.queue_id, u.unique_key order by u.ord) = 1
              from unnest(claim_keys.jobs) u
             order by u.ord);
    end if;
    for v_round in 1..100 loop
        v_left := 0;
        for v_key in
            with looked as materialized (
                select u.ord, u.job_id as own, u.queue_id, u.unique_key, u.unique_mode, u.unique_for, u.debounce_max,
                    h.key_hash, k.job_id as was, k.version, s.is_over, case
                        when k.job_id is null then 'free'
                        when s.is_over is not false or (
                            -- Nobody gets it any more: the next tick ends it.
                            select j.expires_at <= claim_keys.now
                                and (select true from {{.schema}}.leased l where l.job_id = k.job_id limit 1) is null
                              from {{.schema}}.job j where j.job_id = k.job_id
                             limit 1)
                        then case when k.until > claim_keys.now then 'taken' else 'free' end
                        when coalesce(u.unique_mode not in ('replace', 'debounce'), true) then 'taken'
                        when v_held[u.ord] = k.version
                            or (select true from {{.schema}}.leased l where l.job_id = k.job_id limit 1) then 'free'
                        else 'change' end as verdict
                  from unnest(claim_keys.jobs) u
                 cross join lateral (select sha256(convert_to(u.unique_key, 'UTF8')) as key_hash) h
                  left join lateral (
                    select k.job_id, k.version, k.until from {{.schema}}.unique_key k
                     where k.queue_id = u.queue_id and k.key_hash = h.key_hash
                     limit 1) k on true
                 cross join lateral (
                    select {{template "internal/over.sql" dict "schema" .schema "id" "k.job_id"}} as is_over) s
                 where v_first[u.ord] and v_found[u.ord] = 0
            ), claimed as (
                -- Where the job is to be changed, seen is null: the row is locked and stays as it is.
                insert into {{.schema}}.unique_key (queue_id, key_hash, job_id, version, seen, taken_at, until)
                select l.queue_id, l.key_hash, l.own, l.own,
                    case when l.verdict = 'free' then l.version end, claim_keys.now, claim_keys.now + l.unique_for
                  from looked l
                 where l.verdict <> 'taken'
                 order by l.queue_id, l.key_hash
                on conflict on constraint unique_key_pk do update
                    set job_id = excluded.job_id, version = excluded.version, seen = excluded.seen,
                        taken_at = excluded.taken_at, until = excluded.until
                    where unique_key.version = excluded.seen
                returning job_id
            )
            select l.ord, l.queue_id, l.key_hash, l.unique_key, l.unique_mode, l.was, l.version, l.verdict, l.is_over,
                l.debounce_max, l.unique_for, null::timestamptz as latest, c.job_id as mine
              from looked l
              left join claimed c on c.job_id = l.own
             order by l.queue_id, l.key_hash
        loop
            v_lost := v_lost or v_key.was is not null and v_key.is_over is null;
            if v_key.mine is not null then
                v_found[v_key.ord] := v_key.mine;
                if v_key.verdict = 'free' and not v_key.is_over then
                    v_past := v_past || v_key.was;
                end if;
                continue;
            elsif v_key.verdict = 'taken' then
                v_found[v_key.ord] := v_key.was;
                if v_key.unique_mode = 'reject' then
                    v_reject := least(v_reject, v_key.ord);
                end if;
                continue;
            elsif v_key.verdict = 'change' then
                select k.version = v_key.version, k.taken_at + v_key.debounce_max into v_same, v_key.latest
                  from {{.schema}}.unique_key k
                 where k.queue_id = v_key.queue_id and k.key_hash = v_key.key_hash;
                if v_same and {{.schema}}.replace_job(
                    v_key.was, claim_keys.jobs[v_key.ord], claim_keys.elements -> v_key.ord - 1, v_key.latest)
                then
                    update {{.schema}}.unique_key k
                       set until = claim_keys.now + v_key.unique_for
                     where k.queue_id = v_key.queue_id and k.key_hash = v_key.key_hash
                       and k.until is distinct from claim_keys.now + v_key.unique_for;
                    v_found[v_key.ord] := v_key.was;
                    continue;
                elsif v_same then
                    -- Leased by now, or being leased: the change needs a job of its own. Or over.
                    v_held[v_key.ord] := v_key.version;
                end if;
            end if;
            v_left := v_key.ord;
        end loop;
        exit when v_left = 0;
    end loop;
    if v_left > 0 then
        raise exception 'the unique key % changed hands a hundred times while it was looked at',
            quote_literal(claim_keys.jobs[v_left].unique_key) using errcode = '40001';
    end if;
    -- The snapshot may be older than the rotation that carried the job's row to where it can't be seen, and emptied
    -- a generation: a query sees pg_class as of the snapshot; the function, the file that is used now.
    if v_lost and {{template "internal/one_snapshot.sql"}} and exists (
        select from pg_class c
         where c.oid in ({{range $gen := list 0 1 2}}{{if $gen}}, {{end}}'{{$.schema}}.job_{{$gen}}'::regclass{{end}})
           and c.relfilenode <> pg_relation_filenode(c.oid))
    then
        raise exception 'could not tell in this snapshot whether a unique key is free'
            using errcode = '40001', hint = 'Try the transaction again.';
    end if;
    if v_reject is not null then
        raise exception 'job % has the unique key %', v_found[v_reject],
                quote_literal(claim_keys.jobs[v_reject].unique_key)
            using errcode = 'OQ005', detail = case when single then 'It is unfinished, or its unique_for has not passed.'
                else 'jobs[' || v_reject - 1 || '] is to have it.' end,
            hint = 'unique_mode skip returns its id instead.';
    end if;
    -- Whose key went to a newer job while a worker had it: if it comes back, it is none of the key's any more.
    -- oq_rotate may be carrying a row to another generation: the next statement sees it there.
    for v_round in 1..20 loop
        exit when cardinality(v_past) = 0;
        with past as (
            update {{.schema}}.job j
               set unique_key = null
              from (select p.id from unnest(v_past) p(id) order by p.id) p
             where j.job_id = p.id
            returning j.job_id
        )
        select array(
            select p.id from unnest(v_past) p(id)
             where p.id not in (select j.job_id from past j)
               and exists (select from {{.schema}}.job j where j.job_id = p.id))
          into v_past;
    end loop;

    if cardinality(jobs) = 1 then
        return query select 1, v_found[1], v_found[1] = claim_keys.jobs[1].job_id;
        return;
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
            using errcode = 'OQ005', hint = 'unique_mode skip returns its id instead.';
    end if;
    return query
    select u.ord, case when u.unique_key is null then u.job_id
            else v_found[first_value(u.ord) over (partition by u.queue_id, u.unique_key order by u.ord)] end,
        u.unique_key is null or v_found[u.ord] = u.job_id
      from unnest(claim_keys.jobs) u;
end
$$;
comment on function {{.schema}}.claim_keys({{.schema}}.new_job[], jsonb, timestamptz, boolean) is
    'Takes the unique keys of jobs that are about to be made.';
