-- Lets a role into a restricted queue. What it may execute at all comes from the group roles. Roles
-- that were dropped go here: their ids could come again.
-- Calls: require_queue, check_privileges. Index: queue_grant_pk.
create or replace function {{.api_schema}}.oq_grant(
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
    perform check_privileges(oq_grant.role_name, oq_grant.privileges);
    v_queue_id := require_queue(oq_grant.queue_name);
    delete from queue_grant g
     where g.queue_id = v_queue_id and not exists (select from pg_roles r where r.oid = g.role_id);
    insert into queue_grant (queue_id, role_id, privilege)
    select distinct v_queue_id, oq_grant.role_name::oid, p.privilege
      from unnest(oq_grant.privileges) p(privilege)
     order by 3
    on conflict do nothing;
end
$$;
comment on function {{.api_schema}}.oq_grant(text, regrole, text[]) is
'Lets a role produce, consume or observe in a queue that is restricted.
privileges: any of {produce,consume,observe}. It counts for the role''s members too. The role also
needs oq_producer, oq_worker or oq_observer, to execute anything. Errors: OQ001, OQ003; 55P03 where
another open transaction is changing the same grant.';
