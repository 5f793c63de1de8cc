-- This cluster is the one to work in: said once by a person, after a restore, when the original is
-- stopped. Until then duties and leases refuse to run.
-- Locks: the instance row.
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
    return v_count > 0;
end
$$;
comment on function {{.api_schema}}.oq_adopt() is
'Lets a restored copy work: true where it was stopped.
Run it only when the original is stopped, or both will run the same jobs.';
