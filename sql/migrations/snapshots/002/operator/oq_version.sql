-- The version of the SQL API, as SemVer. Clients and the daemon ask for it first.
create or replace function {{.api_schema}}.oq_version()
returns text
language plpgsql
immutable
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
begin
    return '0.1.0';
end
$$;
comment on function {{.api_schema}}.oq_version() is
    'The version of the functions, MAJOR.MINOR.PATCH.';
