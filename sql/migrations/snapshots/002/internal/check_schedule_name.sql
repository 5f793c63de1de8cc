create or replace function {{.schema}}.check_schedule_name(schedule_name text)
returns void
language plpgsql
as $$
begin
    if schedule_name is null or length(schedule_name) not between 1 and 100
        or schedule_name collate "default" ~ '[[:cntrl:]]|^[[:space:]]|[[:space:]]$'
    then
        perform {{.schema}}.fail('schedule_name', quote_nullable(schedule_name),
            '1 to 100 characters, none of them a control character, no space at either end');
    end if;
end
$$;
comment on function {{.schema}}.check_schedule_name(text) is 'Raises OQ001 unless the name can be a schedule''s.';
