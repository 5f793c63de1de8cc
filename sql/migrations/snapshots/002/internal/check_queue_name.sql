-- Names stay short enough for a channel: "oq:" and 57 characters are 60 of the 63 bytes allowed.
create or replace function {{.schema}}.check_queue_name(queue_name text)
returns void
language plpgsql
as $$
begin
    if queue_name is null or queue_name collate "C" !~ '^[A-Za-z0-9_.:/-]{1,57}$' then
        perform {{.schema}}.fail('queue_name', quote_nullable(queue_name),
            '1 to 57 characters of A-Z a-z 0-9 _ . : / -');
    end if;
end
$$;
comment on function {{.schema}}.check_queue_name(text) is 'Raises OQ001 unless the name can be a queue''s.';
