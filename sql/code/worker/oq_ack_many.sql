-- Completes many jobs at once; leases that are lost are left out.
-- Calls: check_leases, check_result, demand, lost_lease, settle.
-- Locks: leased rows, job ids ascending. Index: leased_pk, queue_id_idx.
create or replace function {{.api_schema}}.oq_ack_many(
    job_ids      bigint[],
    lease_tokens bigint[],
    results      jsonb[] default null
)
returns setof bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_twice boolean := false;
    v_ids   bigint[];
    v_linked bigint[];
begin
    perform check_leases(job_ids, lease_tokens, results);
    if results is not null then
        perform check_result(r.result)
           from unnest(results) r(result)
          where pg_column_size(r.result) > 131072 or pg_column_compression(r.result) is not null;
        -- An id that stands there twice has its result beside the token that counts.
        v_twice := (select count(distinct u.id) from unnest(job_ids) u(id)) < cardinality(job_ids);
    end if;
    with ended as (
{{template "internal/ack_claim.sql" dict "ids" "oq_ack_many.job_ids" "tokens" "oq_ack_many.lease_tokens"}}    ), done as (
        insert into finished (gen, job_id, queue_id, attempt, lost, finished_at, leased_at, outcome, kept,
            linked, worker_id, result)
        select (select pg_sequence_last_value('generation'::regclass))::smallint, e.job_id, e.lane >> 16, e.attempt,
            e.lost, v_now, e.leased_at, 'completed', e.kept, e.linked, e.worker_id,
            case when not e.kept then null
                when v_twice then (
                    select r.result
                      from unnest(oq_ack_many.job_ids, oq_ack_many.lease_tokens, oq_ack_many.results)
                        r(job_id, token, result)
                     where r.job_id = e.job_id and r.token = e.token
                     limit 1)
                else oq_ack_many.results[array_position(oq_ack_many.job_ids, e.job_id)
                    + array_lower(oq_ack_many.results, 1) - array_lower(oq_ack_many.job_ids, 1)] end
          from ended e
         where case when e.restricted then demand_lease(e.lane >> 16) else true end
        returning finished.job_id, finished.linked
    )
    select coalesce(array_agg(d.job_id), '{}'), array_agg(d.job_id) filter (where d.linked)
      into v_ids, v_linked
      from done d;
    if cardinality(v_ids) < cardinality(job_ids)
        and cardinality(v_ids) < (select count(distinct u) from unnest(oq_ack_many.job_ids) u)
    then
        perform lost_lease(null, false);
    end if;
    if v_linked is not null then
        perform settle(v_linked, true);
    end if;
    return query select u.job_id from unnest(v_ids) u(job_id);
end
$$;
comment on function {{.api_schema}}.oq_ack_many(bigint[], bigint[], jsonb[]) is
'Completes many leased jobs; returns the ids acked, ascending.
The arrays go together: job_ids[i] with lease_tokens[i] and results[i]; at most 10000. A lost lease
changes nothing and its id is not returned. Errors: OQ001 for arrays of different length, 40001 in a
REPEATABLE READ or SERIALIZABLE transaction that does not find all.';
