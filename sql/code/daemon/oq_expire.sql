-- Jobs whose time to live has passed end.
-- Calls: verify_instance, time_low, expire_due.
create or replace function {{.api_schema}}.oq_expire(max_rows int default 1000)
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        perform fail('max_rows', max_rows::text, 'between 1 and 100000');
    end if;
    perform verify_instance();
    return expire_due(time_low(-2), null, max_rows);
end
$$;
comment on function {{.api_schema}}.oq_expire(int) is
'Ends up to max_rows jobs whose time to live has passed; returns how many.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
