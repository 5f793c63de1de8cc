-- A copy of the database in another cluster must not start working by itself. Checked once a session.
create or replace function {{.schema}}.verify_instance()
returns void
language plpgsql
as $$
begin
    if (select i.system_identifier from {{.schema}}.instance i)
        is distinct from (select c.system_identifier from pg_control_system() c)
    then
        raise exception 'this OpenQueue comes from another cluster and is stopped'
            using errcode = '55000',
            hint = 'A restored dump, or pg_upgrade. If the original is stopped, run: select oq_adopt();';
    end if;
    perform set_config('{{.schema}}.instance', '1', false);
end
$$;
comment on function {{.schema}}.verify_instance() is 'Raises 55000 in a copy of the database that was not adopted.';
