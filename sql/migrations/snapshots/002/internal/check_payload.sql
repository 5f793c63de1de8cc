-- Is the payload over the limit? Its size is that of its text. Most payloads are far below the
-- limit in their binary form, which is known at once; only the others are written out.
-- Calls: fail.
create or replace function {{.schema}}.check_payload(payload jsonb, max_bytes int)
returns void
language plpgsql
as $$
begin
    if payload is null then
        perform {{.schema}}.fail('payload', null, 'any JSON value; ''null'' is one');
    elsif octet_length(payload::text) > max_bytes then
        perform {{.schema}}.fail('payload', octet_length(payload::text) || ' bytes long',
            'at most ' || max_bytes || ' bytes in this queue (option max_payload_bytes)');
    end if;
end
$$;
comment on function {{.schema}}.check_payload(jsonb, int) is 'Raises OQ001 for a payload over the limit.';
