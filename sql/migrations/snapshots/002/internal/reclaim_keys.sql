-- Dead or cancelled jobs come back with their unique keys, where these are free: the newest of each. The others come
-- back without, since a newer job has the key. Waits for nobody but a first enqueue of a key that is open: a row that
-- somebody has locked is being taken. The caller has locked the jobs' rows.
-- Locks: unique_key rows, by queue and key (skip locked); job rows.
-- Index: job_N_pk, unique_key_pk, finished_N_pk, dead_pk.
create or replace function {{.schema}}.reclaim_keys(job_ids bigint[])
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now    timestamptz := clock_timestamp();
    v_ids    bigint[];
    v_queues bigint[];
    v_hashes bytea[];
    v_locked bigint[];
    v_taken  bigint[];
    v_kept   bigint[];
begin
    select array_agg(n.job_id order by n.queue_id, n.key_hash), array_agg(n.queue_id order by n.queue_id, n.key_hash),
        array_agg(n.key_hash order by n.queue_id, n.key_hash)
      into v_ids, v_queues, v_hashes
      from (
        select j.queue_id, sha256(convert_to(j.unique_key, 'UTF8')) as key_hash, max(j.job_id) as job_id
          from job j
         where j.job_id = any (reclaim_keys.job_ids) and j.unique_key is not null
         group by j.queue_id, j.unique_key) n;
    with made as (
        insert into unique_key (queue_id, key_hash, job_id, version, taken_at)
        select u.queue_id, u.key_hash, u.job_id, nextval('position'), v_now
          from unnest(v_ids, v_queues, v_hashes) with ordinality u(job_id, queue_id, key_hash, ord)
         where not exists (
            select from unique_key k where k.queue_id = u.queue_id and k.key_hash = u.key_hash)
         order by u.ord
        on conflict on constraint unique_key_pk do nothing
        returning job_id
    )
    select coalesce(array_agg(m.job_id), '{}') into v_kept from made m;
    v_locked := array(
        select u.job_id
          from unnest(v_ids, v_queues, v_hashes) with ordinality u(job_id, queue_id, key_hash, ord)
         cross join lateral (
            select from unique_key k
             where k.queue_id = u.queue_id and k.key_hash = u.key_hash
               for update skip locked) k
         where u.job_id not in (select unnest(v_kept))
         order by u.ord);
    -- What the locks have fixed, in a new snapshot.
    with taken as (
        update unique_key k
           set job_id = u.job_id, version = nextval('position'), seen = null,
               taken_at = case when k.job_id = u.job_id then k.taken_at else v_now end,
               until = case when k.job_id = u.job_id then k.until end
          from unnest(v_ids, v_queues, v_hashes) u(job_id, queue_id, key_hash)
         where k.queue_id = u.queue_id and k.key_hash = u.key_hash and case when u.job_id in (select unnest(v_locked)) then true end
           and (k.job_id = u.job_id
             or coalesce(k.until <= v_now, true)
                and {{template "internal/over.sql" dict "schema" .schema "id" "k.job_id"}} is not false)
        returning k.job_id
    )
    select coalesce(array_agg(t.job_id), '{}') into v_taken from taken t;
    update job j
       set unique_key = null
     where j.job_id = any (reclaim_keys.job_ids) and j.unique_key is not null
       and j.job_id not in (select unnest(v_kept || v_taken));
end
$$;
comment on function {{.schema}}.reclaim_keys(bigint[]) is 'Jobs come back with their unique keys, where these are free.';
