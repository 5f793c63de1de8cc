-- A copy of the database in another cluster must not start working by itself. Checked once a session.
-- duty: the function that asks, where it must see what was committed since its transaction began.
create or replace function {{.schema}}.verify_instance(duty text default null)
returns void
language plpgsql
as $$
begin
    if duty is not null and {{template "internal/one_snapshot.sql"}} then
        raise exception '% needs a READ COMMITTED transaction', duty using errcode = '25001';
    end if;
    if current_setting('{{.schema}}.instance', true) = '1' then
        return;
    elsif (select i.system_identifier from {{.schema}}.instance i)
        is distinct from (select c.system_identifier from pg_control_system() c)
    then
        raise exception 'this OpenQueue comes from another cluster and is stopped'
            using errcode = '55000',
            hint = 'A restored dump, or pg_upgrade. If the original is stopped, run: select oq_adopt();';
    end if;
    perform set_config('{{.schema}}.instance', '1', false);
end
$$;
comment on function {{.schema}}.verify_instance(text) is
    'Raises 55000 in a copy of the database that was not adopted.';
