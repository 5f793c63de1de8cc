-- May a stored role do this in the queue? As may, but for who made something that acts later: checked again
-- when it does. False for a role that is gone. It must be able to call the functions at all: by the group
-- role of the privilege, by oq_operator, or as the owner of the installation.
-- Index: queue_id_idx, queue_grant_pk.
create or replace function {{.schema}}.role_may(role_id oid, queue_id bigint, privilege text)
returns boolean
language plpgsql
stable
as $$
#variable_conflict use_column
declare
    v_operator   boolean;
    v_restricted boolean;
begin
    if not exists (select from pg_roles r where r.oid = role_may.role_id) then
        return false;
    end if;
    v_operator := coalesce(pg_has_role(role_may.role_id, to_regrole('oq_operator')::oid, 'usage'), false);
    if not v_operator
        and not coalesce(pg_has_role(role_may.role_id, to_regrole(case role_may.privilege
            when 'produce' then 'oq_producer' when 'consume' then 'oq_worker' else 'oq_observer' end)::oid,
            'usage'), false)
        and not exists (
            select from pg_namespace n
             where n.nspname = '{{.schema}}' and pg_has_role(role_may.role_id, n.nspowner, 'usage'))
    then
        return false;
    end if;
    select q.restricted into v_restricted
      from {{.schema}}.queue q
     where q.queue_id = role_may.queue_id
     order by q.version desc, q.row_id
     limit 1;
    return v_restricted is not true or v_operator
        or exists (
            select from {{.schema}}.queue_grant g
             where g.queue_id = role_may.queue_id and g.privilege = role_may.privilege collate "C"
               and pg_has_role(role_may.role_id, g.role_id, 'usage'));
end
$$;
comment on function {{.schema}}.role_may(oid, bigint, text) is
    'May a stored role produce, consume or observe in the queue?';
