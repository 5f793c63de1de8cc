-- Jobs of expired leases come back.
-- Calls: verify_instance, reap_expired.
create or replace function {{.api_schema}}.oq_reap(max_rows int default 1000)
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
    return reap_expired(max_rows, null);
end
$$;
comment on function {{.api_schema}}.oq_reap(int) is
'Takes back up to max_rows jobs whose lease expired; returns how many.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
