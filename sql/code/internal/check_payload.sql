-- Is the payload over the limit? Its size is that of its text, which is written out: a number of sixteen
-- binary bytes may be 131072 digits long. (0.2 us for a usual payload.)
create or replace function {{.schema}}.check_payload(payload jsonb, max_bytes int, name text default 'payload')
returns void
language plpgsql
as $$
begin
    if payload is null then
        perform {{.schema}}.fail(name, null, 'any JSON value; ''null'' is one');
    elsif octet_length(payload::text) > max_bytes then
        perform {{.schema}}.fail(name, octet_length(payload::text) || ' bytes long',
            'at most ' || max_bytes || ' bytes in this queue (option max_payload_bytes)');
    end if;
end
$$;
comment on function {{.schema}}.check_payload(jsonb, int, text) is 'Raises OQ001 for a payload over the limit.';
