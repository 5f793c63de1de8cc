-- Takes back what oq_grant gave.
-- Calls: require_queue, check_privileges. Index: queue_grant_pk.
create or replace function {{.api_schema}}.oq_revoke(
    queue_name text,
    role_name  regrole,
    privileges text[]
)
returns void
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_queue_id bigint;
begin
    perform check_privileges(oq_revoke.role_name, oq_revoke.privileges);
    v_queue_id := require_queue(oq_revoke.queue_name);
    delete from queue_grant g
     where g.queue_id = v_queue_id and g.role_id = oq_revoke.role_name::oid
       and g.privilege = any (oq_revoke.privileges collate "C");
end
$$;
comment on function {{.api_schema}}.oq_revoke(text, regrole, text[]) is
'Takes back what oq_grant gave a role in a queue.
What the role has not got is no error. Errors: OQ001, OQ003; 55P03 where another open transaction is
changing the same grant.';
