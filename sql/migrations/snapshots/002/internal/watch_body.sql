-- The text of a watch's trigger function, which runs as the table's owner. It names no table and no type, so it
-- survives renaming and added columns; names are quoted, and the condition is an expression, as watch_build
-- has seen. What can fail because of the owner's code fails in a block that writes nothing: no transaction
-- id is used up. What is inserted is inserted outside it, but for more than 10000 rows.
-- Rows of the transition tables stand in the order of the statement: so an old row finds its new one by number. They
-- are made by select *: in a whole row of a transition table itself, the fields behind a dropped column are shifted.
create or replace function {{.schema}}.watch_body(plan jsonb)
returns text
language plpgsql
as $$
#variable_conflict use_column
declare
    v_fire   constant text := '{{.api_schema}}.oq_watch_fire';
    v_where  text := coalesce(E'(\n' || (plan ->> 'condition') || E'\n)', 'true');
    v_by_row boolean := (plan ->> 'by_row')::boolean;
    v_event  text;
    v_from   text;
    v_new    text;
    v_old    text;
    v_field  text;
    v_keys   text[] := array['null', 'null'];
    v_loops  text := '';
    v_same   text[];
    v_other  text[];
    v_fields text[];
    v_changed text := 'true';
    -- Triggers see virtual generated columns as null: rather none than a wrong value.
    v_without text := coalesce(' - ' || quote_literal((
        select array_agg(c.name) from jsonb_array_elements_text(plan -> 'virtual') c(name))::text) || '::text[]', '');
begin
    -- Did one of the columns change? Record comparison finds a type's own equality whatever the path; what has
    -- none (json, point) is compared as it is stored.
    if plan ? 'columns' then
        with recursive base as (
            select a.attname, a.attnum, a.atttypid as type_id, 0 as depth
              from pg_attribute a
              join jsonb_array_elements_text(plan -> 'columns') c(name) on c.name = a.attname
             where a.attrelid = (plan ->> 'table_id')::oid
            union all
            select b.attname, b.attnum, case when t.typtype = 'd' then t.typbasetype else t.typelem end, b.depth + 1
              from base b
              join pg_type t on t.oid = b.type_id
             where t.typtype = 'd' or t.typcategory = 'A'
        ), typed as (
            select distinct on (b.attnum) b.attname, b.attnum, b.type_id, t.typtype in ('e', 'r', 'm') or exists (
                select from pg_opclass o
                  join pg_am m on m.oid = o.opcmethod and m.amname in ('btree', 'hash')
                 where o.opcdefault and (o.opcintype = b.type_id or exists (
                    select from pg_cast k
                     where k.castsource = b.type_id and k.casttarget = o.opcintype and k.castmethod = 'b'
                       and k.castcontext = 'i'))) as comparable
              from base b
              join pg_type t on t.oid = b.type_id
             order by b.attnum, b.depth desc
        )
        select array_agg(y.attname::text order by y.attnum) filter (where y.comparable),
            array_agg(y.attname::text order by y.attnum) filter (where not y.comparable)
          into v_same, v_other
          from typed y;
        v_fields := case when v_by_row then array['new.%I', 'old.%I'] else array['(n.r).%I', '(o.r).%I'] end;
        v_changed := (
            select string_agg(format(c.test, (
                    select string_agg(format(v_fields[1], u.name), ', ' order by u.ord)
                      from unnest(c.names) with ordinality u(name, ord)), (
                    select string_agg(format(v_fields[2], u.name), ', ' order by u.ord)
                      from unnest(c.names) with ordinality u(name, ord))), ' or ')
              from (values (v_same, 'not (row(%s)::record = row(%s)::record)'),
                (v_other, 'row(%s)::record *<> row(%s)::record')) c(names, test)
             where c.names is not null);
    end if;

    foreach v_event in array array['insert', 'update', 'delete'] loop
        continue when not plan -> 'events' ? v_event;
        if v_event = 'update' and not v_by_row then
            v_new := 'n.r';
            v_old := 'o.r';
        else
            v_new := case when v_by_row then 'new' else 'new.*' end;
            v_old := case when v_by_row then 'old' else 'old.*' end;
        end if;
        v_field := case when v_event = 'update' and not v_by_row then '(n.r).%I'
            when v_event = 'delete' then 'old.%I' else 'new.%I' end;
        for i in 1..2 loop
            continue when not plan ? (array['unique_columns', 'group_columns'])[i];
            v_keys[i] := (
                select case when count(*) = 1 then format('to_jsonb(%s) #>> ''{}''', min(f.field))
                    else format('case when num_nonnulls(%1$s) > 0 then jsonb_build_array(%1$s)::text end',
                        string_agg(f.field, ', ' order by f.ord)) end
                  from (
                    select format(v_field, c.name) as field, c.ord
                      from jsonb_array_elements_text(plan -> (array['unique_columns', 'group_columns'])[i])
                        with ordinality c(name, ord)) f);
        end loop;
        v_from := case v_event
            when 'insert' then '(select * from new_rows) as new' || case when plan ->> 'condition' is null then '' else
                ' left join (select * from new_rows limit 0) as old on true' end
            when 'delete' then '(select * from old_rows) as old' || case when plan ->> 'condition' is null then '' else
                ' left join (select * from old_rows limit 0) as new on true' end
            else $from$(select oq_n as r, row_number() over () as i from (select * from new_rows) oq_n) n
                  join (select oq_o as r, row_number() over () as i from (select * from old_rows) oq_o) o on o.i = n.i$from$
                || case when plan ->> 'condition' is null then '' else $from$
                 cross join lateral (select (n.r).*) as new
                 cross join lateral (select (o.r).*) as old$from$ end end;
        v_new := case when v_event = 'delete' then 'null' when plan ? 'payload_columns' then (
            select format('(select to_jsonb(p.*) from (select %s) p)', string_agg(
                format(case when v_new = 'n.r' then '(n.r).%1$I' else 'new.%1$I' end || ' as %1$I', c.name), ', '))
              from jsonb_array_elements_text(plan -> 'payload_columns') c(name))
            else format('to_jsonb(%s)%s', v_new, v_without) end;
        v_old := case when v_event = 'insert' then 'null' when plan ? 'payload_columns' then (
            select format('(select to_jsonb(p.*) from (select %s) p)', string_agg(
                format(case when v_old = 'o.r' then '(o.r).%1$I' else 'old.%1$I' end || ' as %1$I', c.name), ', '))
              from jsonb_array_elements_text(plan -> 'payload_columns') c(name))
            else format('to_jsonb(%s)%s', v_old, v_without) end;

        v_loops := v_loops || format($loop$%s tg_op = %L then
$loop$, case when v_loops = '' then '        if' else '        elsif' end, upper(v_event collate "C"));
        if v_event = 'update' and not v_by_row and (plan ->> 'partitioned')::boolean then
            v_loops := v_loops || $loop$            if (select count(*) from new_rows) <> (select count(*) from old_rows) then
                raise exception 'a row left its partition and did not arrive in another';
            end if;
$loop$;
        end if;
        v_loops := v_loops || format(
            case when v_by_row then $loop$            if (%6$s) and %7$s then
                v_unique := array[%4$s]::text[];
                v_groups := array[%5$s]::text[];
                v_payloads := array[jsonb_build_object('op', oq_watch.op, 'schema', oq_watch.schema_name, 'table', oq_watch.table_name,
                    'new', %1$s, 'old', %2$s)];
            end if;
$loop$ else $loop$            for v_row in
                select jsonb_build_object('op', oq_watch.op, 'schema', oq_watch.schema_name, 'table', oq_watch.table_name,
                        'new', %1$s, 'old', %2$s) as payload,
                    %4$s as unique_key, %5$s as group_key
                  from %3$s
                 where (%6$s) and %7$s%8$s
            loop
                v_payloads := array_append(v_payloads, v_row.payload);
%11$s                if cardinality(v_payloads) = 10000 then
                    perform %9$s(%10$s, tg_relid, v_payloads, v_unique, v_groups);
                    v_payloads := '{}';
                    v_unique := '{}';
                    v_groups := '{}';
                end if;
            end loop;
$loop$ end,
            v_new, v_old, v_from, v_keys[1], v_keys[2],
            case when v_event = 'update' then v_changed else 'true' end, v_where,
            case when v_event = 'update' then ' order by n.i' else '' end, v_fire, plan ->> 'id',
            case when plan ?| array['unique_columns', 'group_columns'] then
                $loop$                v_unique := array_append(v_unique, v_row.unique_key);
                v_groups := array_append(v_groups, v_row.group_key);
$loop$ else '' end);
    end loop;
    return format($body$
#variable_conflict use_column
<<oq_watch>>
declare
    -- Named with the block where the table's columns could have the same names.
    op          constant text := tg_op;
    schema_name constant text := tg_table_schema;
    table_name  constant text := tg_table_name;
    v_row      record;
    v_payloads jsonb[] := '{}';
    v_unique   text[] := '{}';
    v_groups   text[] := '{}';
    v_failed   bigint := 0;
    v_code     text;
    v_error    text;
begin
    -- A watch never fails what it watches, nor when OpenQueue is gone or its owner lost the right to use it. To look
    -- up a name in a schema that it may not use would be an error.
    if not coalesce(case when has_schema_privilege(to_regnamespace('{{.api_schema}}'), 'usage')
        then has_function_privilege(to_regprocedure(
            '%1$s(bigint,oid,jsonb[],text[],text[],bigint,text,text)'), 'execute') end, false)
    then
        raise warning '{{.schema}}_watch_%2$s: role %% may not make jobs', current_user
            using detail = 'The changes were made without them.';
        return null;
    end if;
    begin
%3$s        end if;
    exception
        when serialization_failure then
            raise;
        when others then
            get stacked diagnostics v_code = returned_sqlstate, v_error = message_text;
            v_payloads := '{}';
%4$s    end;
    if v_failed > 0 or cardinality(v_payloads) > 0 then
        perform %1$s(%2$s, tg_relid, v_payloads, v_unique, v_groups, v_failed, v_code, v_error);
    end if;
    return null;
end
$body$, v_fire, plan ->> 'id', v_loops, case when v_by_row then $count$            v_failed := 1;
$count$ else $count$            if tg_op = 'DELETE' then
                v_failed := (select count(*) from old_rows);
            else
                v_failed := (select count(*) from new_rows);
            end if;
$count$ end);
end
$$;
comment on function {{.schema}}.watch_body(jsonb) is 'The text of a watch''s trigger function.';
