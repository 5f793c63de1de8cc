-- A row as JSON, for a definer. to_jsonb calls a type's cast to json, and whoever owns a type can make one, of
-- any function: it would run with the installer's rights. So a value of a type that is not built in is written
-- by the type's own output function, as text; domains are what they are made of. Virtual generated columns have no
-- value in a trigger and are left out.
create or replace function {{.schema}}.row_json(changed anyelement, table_id oid)
returns jsonb
language plpgsql
as $$
#variable_conflict use_column
declare
    v_column record;
    v_value  jsonb;
    v_json   jsonb := jsonb '{}';
begin
    for v_column in
        with recursive base as (
            select a.attname, a.attnum, a.atttypid as type_id, 0 as depth, false as is_array
              from pg_attribute a
             where a.attrelid = row_json.table_id and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
            union all
            select b.attname, b.attnum, case when t.typtype = 'd' then t.typbasetype else t.typelem end,
                b.depth + 1, b.is_array or t.typtype <> 'd'
              from base b
              join pg_type t on t.oid = b.type_id
             where b.type_id >= 16384
               and (t.typtype = 'd' or t.typcategory = 'A' and t.typelem <> 0)
        )
        select distinct on (b.attnum) b.attname, b.type_id < 16384 as built_in, b.is_array
          from base b
         order by b.attnum, b.depth desc
    loop
        if v_column.built_in then
            execute format('select to_jsonb(($1).%I)', v_column.attname) into v_value using changed;
        elsif v_column.is_array then
            execute format('select to_jsonb(array(select case when num_nulls(e) = 0 then format(''%%s'', e) end '
                'from unnest(($1).%1$I) e)) where num_nulls(($1).%1$I) = 0', v_column.attname)
               into v_value using changed;
        else
            execute format('select to_jsonb(format(''%%s'', ($1).%1$I)) where num_nulls(($1).%1$I) = 0',
                v_column.attname) into v_value using changed;
        end if;
        v_json := v_json || jsonb_build_object(v_column.attname, v_value);
    end loop;
    return v_json;
end
$$;
comment on function {{.schema}}.row_json(anyelement, oid) is
    'A row as JSON, without calling what its types'' owners wrote.';
