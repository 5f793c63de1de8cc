-- Results are kept for the retention, beside thousands of others.
create or replace function {{.schema}}.check_result(result jsonb)
returns void
language plpgsql
as $$
begin
    if octet_length(result::text) > 1048576 then
        perform {{.schema}}.fail('result', octet_length(result::text) || ' bytes long', 'at most 1048576 bytes');
    end if;
end
$$;
comment on function {{.schema}}.check_result(jsonb) is 'Raises OQ001 for a result over the limit.';
