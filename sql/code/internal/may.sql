-- May the caller do this in the queue? The caller is the role that is set, else who logged in:
-- inside a function with its owner's rights current_user is the owner. Views call it, and functions
-- in a view run with the reader's rights: so it is a definer itself, and observers may execute it.
-- A schedule, a batch or a keyed watch produces by its owner's right (role_may), whoever calls: see deputy.
-- Index: queue_id_idx, queue_grant_pk, deputy_xid_idx.
create or replace function {{.schema}}.may(queue_id bigint, privilege text)
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
#variable_conflict use_column
declare
    v_caller     name := coalesce(nullif(current_setting('role'), 'none'), session_user);
    v_restricted boolean;
begin
    select q.restricted into v_restricted
      from queue q
     where q.queue_id = may.queue_id
     order by q.version desc, q.row_id
     limit 1;
    -- With usage, not member: as everywhere, a role that does not inherit has to be set.
    return v_restricted is not true
        or coalesce(pg_has_role(v_caller, to_regrole('oq_operator')::oid, 'usage'), false)
        or exists (
            select from queue_grant g
             where g.queue_id = may.queue_id and g.privilege = may.privilege collate "C"
               and pg_has_role(v_caller, g.role_id, 'usage'))
        or may.privilege = 'produce' and exists (
            select from deputy d
             where d.xid = pg_current_xact_id_if_assigned() and d.queue_id = may.queue_id);
end
$$;
comment on function {{.schema}}.may(bigint, text) is
    'May the caller produce, consume or observe in the queue?';
