-- Completes many jobs at once; leases that are lost are left out.
-- Calls: check_leases, demand, lost_lease, settle.
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
    v_twice boolean;
    v_lease bigint;
    v_ids   bigint[];
    v_linked bigint[];
begin
    v_lease := case
        {{template "internal/one_token.sql" dict "ids" "job_ids" "tokens" "lease_tokens" "results" "results"}}
        else check_leases(job_ids, lease_tokens, results) end;
    if results is null then
{{template "internal/ack_batch.sql" dict "search" false}}    else
        perform fail('results[' || r.ord || ']', octet_length(r.result::text) || ' bytes long', 'at most 1048576 bytes')
           from unnest(results) with ordinality r(result, ord)
          where octet_length(r.result::text) > 1048576;
        if cardinality(job_ids) > 200 then
{{template "internal/ack_batch.sql" dict "search" true}}        else
            -- An id that stands there twice has its result beside the token that counts.
            v_twice := (select count(distinct u.id) from unnest(job_ids) u(id)) < cardinality(job_ids);
{{template "internal/ack_batch.sql" dict "search" false}}        end if;
    end if;
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
