-- The second half of oq_watch, with the rights of whoever calls it: nothing of the condition is ever parsed
-- with the installer's rights. It is checked as the body of an SQL function, which is not run: once in
-- parentheses and once without, so that whatever closes one that it did not open fails in one of the two.
-- Then it is a single expression and may stand in a statement of its own, whose tree tells of subqueries.
-- All names begin with the schema: several installations may watch one table.
-- Locks: the table, SHARE ROW EXCLUSIVE.
create or replace function {{.schema}}.watch_build(plan jsonb)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set check_function_bodies = on
set standard_conforming_strings = on
as $$
declare
    v_table     constant text := plan ->> 'table';
    v_name      constant text := '{{.schema}}_watch_' || (plan ->> 'id');
    v_function  constant text := (plan ->> 'schema') || '.' || v_name;
    v_condition constant text := plan ->> 'condition';
    v_check     constant text := v_function || '_check()';
    v_rows      constant text := format(
        'select true from (select (null::%1$s).*) as new, (select (null::%1$s).*) as old where ', v_table);
    v_virtual   text;
    v_event     text;
    v_grantee   name;
    v_result    text;
begin
    if not has_schema_privilege((plan ->> 'schema_id')::oid, 'create') then
        raise exception 'role % may not create functions in schema %', quote_ident(current_user), plan ->> 'schema'
            using errcode = '42501',
                hint = 'The trigger function of a watch stands in the table''s schema and belongs to the table''s owner.';
    end if;
    if v_condition is not null then
        begin
            execute format('create function %s returns boolean language sql '
                'set search_path = pg_catalog, pg_temp as %L', v_check, v_rows || E'(\n' || v_condition || E'\n)');
            execute format('create or replace function %s returns boolean language sql '
                'set search_path = pg_catalog, pg_temp as %L', v_check, v_rows || E'\n' || v_condition || E'\n');
            execute format(E'create or replace function %s returns boolean language sql begin atomic\n%s(\n%s\n);\nend',
                v_check, v_rows, v_condition);
            if exists (
                select from pg_proc p
                 where p.proname = v_name || '_check' and p.pronamespace = (plan ->> 'schema_id')::oid
                   and p.prosqlbody::text ~ '[{](SUBLINK|AGGREF|WINDOWFUNC) ')
            then
                raise exception 'it has a subquery' using errcode = 'OQ001';
            end if;
            -- Only the condition has variables there: the two rows are made of a constant.
            select quote_ident(c.attname) into v_virtual
              from (
                select a.attname, a.attgenerated, row_number() over (order by a.attnum) as nth
                  from pg_attribute a
                 where a.attrelid = (plan ->> 'table_id')::oid and a.attnum > 0 and not a.attisdropped) c
              join pg_proc p
                on p.proname = v_name || '_check' and p.pronamespace = (plan ->> 'schema_id')::oid
               and p.prosqlbody::text ~ ('[{]VAR :varno [12] :varattno ' || c.nth || ' ')
             where c.attgenerated = 'v'
             limit 1;
            if v_virtual is not null then
                raise exception 'column % is a virtual generated one, whose values triggers do not see', v_virtual
                    using errcode = 'OQ001';
            end if;
        exception when others then
            raise exception 'condition must not be %: %', quote_literal(left(v_condition, 200)), sqlerrm
                using errcode = 'OQ001', hint = 'A boolean SQL expression over the row values new and old, such as '
                    'new.status = ''paid'', without subqueries; functions and operators that are not built in '
                    'need their schema.';
        end;
        execute format('drop function %s', v_check);
    end if;

    execute format('create or replace function %s() returns trigger language plpgsql security definer '
        'set search_path = pg_catalog, pg_temp set enable_nestloop = off set jit = off '
        -- A condition means the same, and a value is the same key, whoever writes.
        'set standard_conforming_strings = on set timezone = ''UTC'' set datestyle = ''ISO, MDY'' '
        'set intervalstyle = postgres set bytea_output = hex set extra_float_digits = 1 as %L',
        v_function, plan ->> 'body');
    execute format('comment on function %s() is %L', v_function,
        format('Makes jobs of changes of %s in queue %s. Made by oq_watch.', v_table, plan ->> 'queue'));
    execute format('revoke all on function %s() from public', v_function);
    -- Also from those whom ALTER DEFAULT PRIVILEGES gave it: on a table of theirs it would run for its owner.
    for v_grantee in
        select r.rolname
          from pg_proc p, aclexplode(p.proacl) a, pg_roles r
         where p.oid = to_regprocedure(v_function || '()') and r.oid = a.grantee and a.grantee <> p.proowner
    loop
        execute format('revoke all on function %s() from %I cascade', v_function, v_grantee);
    end loop;
    foreach v_event in array array['insert', 'update', 'delete'] loop
        if plan -> 'events' ? v_event then
            v_result := coalesce(v_result, v_name || '_' || v_event);
            execute format('create or replace trigger %s_%s after %s on %s%s execute function %s()', v_name, v_event,
                v_event, v_table, case when (plan ->> 'by_row')::boolean then ' for each row' else concat(
                    ' referencing', case when v_event <> 'delete' then ' new table as new_rows' end,
                    case when v_event <> 'insert' then ' old table as old_rows' end, ' for each statement') end,
                v_function);
        end if;
    end loop;
    -- Of events that are not watched any more, or of a former owner.
    for v_event in
        select t.tgname
          from pg_trigger t
         where t.tgrelid = (plan ->> 'table_id')::oid
           and (t.tgname ~ ('^{{.schema}}_watch_' || (plan ->> 'replaced') || '_(insert|update|delete)$')
            or t.tgname ~ ('^' || v_name || '_(insert|update|delete)$')
               and not plan -> 'events' ? substring(t.tgname from '[a-z]*$'))
    loop
        execute format('drop trigger %I on %s', v_event, v_table);
    end loop;
    if plan ->> 'owner' <> quote_ident(current_user) then
        execute format('alter function %s() owner to %s', v_function, plan ->> 'owner');
    end if;
    return v_result;
end
$$;
comment on function {{.schema}}.watch_build(jsonb) is
    'Makes function and triggers: the second half of oq_watch.';
