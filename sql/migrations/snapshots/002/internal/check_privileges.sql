-- The arguments of oq_grant and oq_revoke.
create or replace function {{.schema}}.check_privileges(role_name regrole, privileges text[])
returns void
language plpgsql
as $$
begin
    if role_name is null or role_name::oid = 0
        or not exists (select from pg_roles r where r.oid = role_name)
    then
        perform {{.schema}}.fail('role_name', role_name::text, 'a role');
    end if;
    if privileges is null or cardinality(privileges) = 0 or array_ndims(privileges) > 1
        or not privileges <@ array['produce', 'consume', 'observe']
    then
        perform {{.schema}}.fail('privileges', privileges::text,
            'an array of one or more of produce, consume, observe');
    end if;
end
$$;
comment on function {{.schema}}.check_privileges(regrole, text[]) is
    'Checks the arguments of oq_grant and oq_revoke.';
