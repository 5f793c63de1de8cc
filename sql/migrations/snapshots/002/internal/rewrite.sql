-- Empties one narrow table of its dead rows. The caller has set a short lock_timeout; nobody else has
-- touched the table in an open transaction when the lock is had, so no row is locked or in doubt.
-- Locks: access exclusive on the table.
create or replace function {{.schema}}.rewrite(table_name text)
returns void
language plpgsql
as $$
begin
    -- TRUNCATE refuses a table that has triggers to fire: what this transaction put in line is let in now.
    if table_name = 'waiting' then
        set constraints {{.schema}}.waiting_line_up immediate;
        set constraints {{.schema}}.waiting_line_up deferred;
    end if;
    execute format('lock table {{.schema}}.%I in access exclusive mode', table_name);
    -- Put back in line, a row is not newly in line.
    execute format($sql$
        do $do$
        declare
            v_rows {{.schema}}.%1$I[];
        begin
            select array_agg(case when %1$L = 'waiting' then jsonb_populate_record(t, '{"first": false}') else t end) into v_rows
              from {{.schema}}.%1$I t;
            truncate {{.schema}}.%1$I;
            insert into {{.schema}}.%1$I overriding system value select * from unnest(v_rows);
        end
        $do$ $sql$, table_name);
end
$$;
comment on function {{.schema}}.rewrite(text) is 'Empties one narrow table of its dead rows.';
