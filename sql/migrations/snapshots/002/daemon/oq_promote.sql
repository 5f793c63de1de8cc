-- Scheduled jobs that are due become ready.
-- Calls: verify_instance, time_low, promote_due.
create or replace function {{.api_schema}}.oq_promote(max_rows int default 1000)
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
    return promote_due(time_low(-1), null, max_rows, null);
end
$$;
comment on function {{.api_schema}}.oq_promote(int) is
'Makes up to max_rows scheduled jobs that are due ready; returns how many.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
