-- Takes the unique key of one job where a look each can tell: nobody has had the key, or the job that has it is
-- unfinished and stays as it is. Returns whose key it is; null: that takes claim_keys.
-- Locks: unique_key row. Index: unique_key_pk, finished_N_pk, dead_pk, job_N_pk.
create or replace function {{.schema}}.claim_key(
    queue_id   bigint,
    unique_key text,
    own_id     bigint,
    now        timestamptz,
    until      timestamptz,
    change     boolean
)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_hash bytea := sha256(convert_to(unique_key, 'UTF8'));
begin
    if {{template "internal/one_snapshot.sql"}} then
        return null;
    end if;
    -- Not where a row is seen: who is just changing its job, or how long it holds, would be waited for.
    insert into {{.schema}}.unique_key (queue_id, key_hash, job_id, version, taken_at, until)
    select claim_key.queue_id, v_hash, own_id, own_id, claim_key.now, claim_key.until
     where (
        select k.job_id from {{.schema}}.unique_key k
         where k.queue_id = claim_key.queue_id and k.key_hash = v_hash
         limit 1) is null
    on conflict on constraint unique_key_pk do nothing;
    if found then
        return own_id;
    elsif change then
        return null;
    end if;
    return (
        select k.job_id
          from {{.schema}}.unique_key k
         where k.queue_id = claim_key.queue_id and k.key_hash = v_hash
           and not {{template "internal/over.sql" dict "schema" .schema "id" "k.job_id"
                "open" "coalesce(j.expires_at <= claim_key.now, false)"}});
end
$$;
comment on function {{.schema}}.claim_key(bigint, text, bigint, timestamptz, timestamptz, boolean) is
    'Takes the unique key of one job where a look can tell.';
