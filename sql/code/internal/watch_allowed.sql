-- Why what a stored role set up may not make jobs in the queue now, or null: the checks of each firing,
-- which the views show too. A definer, since a view's functions run with its reader's rights.
-- Calls: role_may. Index: queue_id_idx, queue_grant_pk.
create or replace function {{.schema}}.watch_allowed(
    role_id    oid,
    queue_id   bigint,
    table_id   oid,
    out code   text,
    out reason text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
as $$
#variable_conflict use_column
declare
    v_dropped timestamptz;
    v_owner   oid;
begin
    if table_id is not null then
        select c.relowner into v_owner from pg_class c where c.oid = watch_allowed.table_id;
        if not pg_has_role(role_id, v_owner, 'usage') then
            code := '42501';
            reason := 'the table has another owner, who must call oq_watch again';
            return;
        end if;
    end if;
    select q.dropped_at into v_dropped
      from queue q
     where q.queue_id = watch_allowed.queue_id
     order by q.version desc, q.row_id
     limit 1;
    if v_dropped is not null then
        code := 'OQ003';
        reason := 'the queue was dropped';
    elsif not role_may(role_id, queue_id, 'produce') then
        code := '42501';
        reason := coalesce('role ' || (select quote_ident(r.rolname) from pg_roles r where r.oid = role_id),
            'its owner is gone and') || ' may not produce in the queue';
    end if;
end
$$;
comment on function {{.schema}}.watch_allowed(oid, bigint, oid) is
    'Why a stored role may not make jobs in the queue, or null.';
