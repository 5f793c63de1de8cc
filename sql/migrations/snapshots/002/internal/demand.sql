-- Raises 42501 where the caller lacks a privilege in a restricted queue. True otherwise, so that it
-- can stand in a condition. The queue is named only to who named it: queue_name is null where the
-- caller gave a job id.
-- Calls: may.
create or replace function {{.schema}}.demand(queue_id bigint, queue_name text, privilege text)
returns boolean
language plpgsql
as $$
declare
    v_caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    if not {{.schema}}.may(queue_id, privilege) then
        raise exception 'role % may not % in %', quote_ident(v_caller), privilege,
                coalesce('queue ' || quote_literal(queue_name), 'the queue of that job')
            using errcode = '42501', hint = format(
                'An operator can run: select oq_grant(%s, %L, %L);',
                coalesce(quote_literal(queue_name), '...'), quote_ident(v_caller), array[privilege]);
    end if;
    return true;
end
$$;
comment on function {{.schema}}.demand(bigint, text, text) is
    'Raises 42501 where the caller lacks a privilege.';
