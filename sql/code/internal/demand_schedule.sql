-- Raises 42501 unless the caller is the schedule's owner, inherits from it, or operates the queue.
create or replace function {{.schema}}.demand_schedule(schedule {{.schema}}.schedule)
returns void
language plpgsql
as $$
declare
    v_caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    if not coalesce(pg_has_role(v_caller, to_regrole('oq_operator')::oid, 'usage'), false)
        and not exists (
            select from pg_roles r where r.oid = schedule.owner_id and pg_has_role(v_caller, r.oid, 'usage'))
    then
        raise exception 'role % may not change schedule %', quote_ident(v_caller), quote_literal(schedule.schedule_name)
            using errcode = '42501',
            hint = 'It belongs to another role. Its owner, a member of that role or an operator can.';
    end if;
end
$$;
comment on function {{.schema}}.demand_schedule({{.schema}}.schedule) is
    'Raises 42501 unless the caller may change the schedule.';
