-- The words of a topic, or of a pattern of topics. Raises OQ001.
create or replace function {{.schema}}.check_words(argument text, value text, wildcards boolean)
returns text[]
language plpgsql
as $$
begin
    if value is null or length(value) > 255 or value collate "C" !~ (case when wildcards
        then '^([A-Za-z0-9_:/-]+|[*]|#)([.]([A-Za-z0-9_:/-]+|[*]|#))*$'
        else '^[A-Za-z0-9_:/-]+([.][A-Za-z0-9_:/-]+)*$' end)
    then
        perform {{.schema}}.fail(argument, quote_nullable(value),
            'words of A-Z a-z 0-9 _ : / - with dots between them, at most 255 characters'
                || case when wildcards then '; * stands for one word, # for any number' else '' end);
    end if;
    return string_to_array(value collate "C", '.');
end
$$;
comment on function {{.schema}}.check_words(text, text, boolean) is
    'The words of a topic or pattern, or OQ001.';
