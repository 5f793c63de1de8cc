-- The arrays of ids and tokens of a call for many leases. Returns the token of all of them, where there is one.
create or replace function {{.schema}}.check_leases(
    job_ids bigint[], lease_tokens bigint[], results jsonb[], ids_name text default 'job_ids',
    tokens_name text default 'lease_tokens')
returns bigint
language plpgsql
as $$
begin
    if job_ids is null or lease_tokens is null then
        perform {{.schema}}.fail(case when job_ids is null then ids_name else tokens_name end, null, 'an array');
    elsif cardinality(job_ids) <> cardinality(lease_tokens) then
        perform {{.schema}}.fail(tokens_name, cardinality(lease_tokens) || ' long',
            'as long as ' || ids_name || ', which has ' || cardinality(job_ids));
    elsif results is not null and cardinality(job_ids) <> cardinality(results) then
        perform {{.schema}}.fail('results', cardinality(results) || ' long',
            'as long as ' || ids_name || ', which has ' || cardinality(job_ids));
    elsif cardinality(job_ids) > 10000 then
        perform {{.schema}}.fail(ids_name, cardinality(job_ids) || ' long', 'at most 10000 long');
    elsif array_ndims(job_ids) > 1 or array_ndims(lease_tokens) > 1 or array_ndims(results) > 1 then
        perform {{.schema}}.fail(case when array_ndims(job_ids) > 1 then ids_name
            when array_ndims(lease_tokens) > 1 then tokens_name else 'results' end, 'of several dimensions', 'plain arrays');
    end if;
    return case when array_remove(lease_tokens, lease_tokens[1]) = '{}' then lease_tokens[1] end;
end
$$;
comment on function {{.schema}}.check_leases(bigint[], bigint[], jsonb[], text, text) is
    'Checks the arrays of a call for many leases; returns their one token.';
