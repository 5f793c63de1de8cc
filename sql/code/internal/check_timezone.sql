-- A zone that PostgreSQL knows by name. It would take any letters with a number behind them for a zone of
-- that offset, and abbreviations, which have no daylight saving: those must be in its list of names.
create or replace function {{.schema}}.check_timezone(timezone text)
returns void
language plpgsql
stable
as $$
begin
    if timezone = 'UTC' then
        return;
    end if;
    if timezone ~ '^[A-Za-z_]+(/[A-Za-z_]+){1,2}$' then
        begin
            perform now() at time zone timezone;
            return;
        exception when data_exception then
            null;
        end;
    elsif length(timezone) <= 64 and exists (
        select from pg_timezone_names n where lower(n.name collate "C") = lower(timezone collate "C"))
    then
        return;
    end if;
    perform {{.schema}}.fail('timezone', timezone, 'a name from pg_timezone_names, such as Europe/Berlin');
end
$$;
comment on function {{.schema}}.check_timezone(text) is 'Raises OQ001 unless it is the name of a time zone.';
