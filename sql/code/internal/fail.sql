-- Raises OQ001: the message names argument and value, the hint says what is allowed.
create or replace function {{.schema}}.fail(argument text, value text, hint text)
returns void
language plpgsql
as $$
begin
    raise exception '% must not be %', argument,
        case when value is null then 'null' when value = '' then '''''' when length(value) > 200 then left(value, 200) || '...'
            else value end
        using errcode = 'OQ001', hint = fail.hint;
end
$$;
comment on function {{.schema}}.fail(text, text, text) is 'Raises OQ001 for an argument that makes no sense.';
