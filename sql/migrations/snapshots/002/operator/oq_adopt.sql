-- This cluster is the one to work in: said once by a person, after a restore, when the original is
-- stopped. Until then duties and leases refuse to run.
-- Locks: the instance row, schedule rows.
create or replace function {{.api_schema}}.oq_adopt()
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
declare
    v_count int;
begin
    update instance i
       set system_identifier = c.system_identifier
      from pg_control_system() c
     where i.system_identifier <> c.system_identifier;
    get diagnostics v_count = row_count;
    if v_count > 0 then
        -- Roles have other ids here.
        update schedule s
           set owner_id = coalesce(to_regrole(quote_ident(s.owner_name))::oid, 0::oid)
         where s.owner_id is distinct from coalesce(to_regrole(quote_ident(s.owner_name))::oid, 0::oid);
    end if;
    return v_count > 0;
end
$$;
comment on function {{.api_schema}}.oq_adopt() is
'Lets the queue work in a new cluster: true where it was stopped.
After a restore or pg_upgrade. Run it only when the original is stopped, or both will run the same jobs. Schedules find their owners
again by name.';
