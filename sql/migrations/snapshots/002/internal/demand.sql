-- Raises 42501 where the caller lacks a privilege in a restricted queue. True otherwise, so that it
-- can stand in a condition.
-- Calls: may.
create or replace function {{.schema}}.demand(queue_id bigint, queue_name text, privilege text)
returns boolean
language plpgsql
as $$
declare
    v_caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    if not {{.schema}}.may(queue_id, privilege) then
        raise exception 'role % may not % in queue %', quote_ident(v_caller), privilege,
                quote_literal(queue_name)
            using errcode = '42501', hint = format(
                'An operator can run: select oq_grant(%L, %L, %L);', queue_name, quote_ident(v_caller),
                array[privilege]);
    end if;
    return true;
end
$$;
comment on function {{.schema}}.demand(bigint, text, text) is 'Raises 42501 where the caller lacks a privilege.';
