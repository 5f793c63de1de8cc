-- The only GRANT and REVOKE: made again from nothing at every installation, whoever has a right: functions are
-- born with PUBLIC's, and with those of roles that are named in ALTER DEFAULT PRIVILEGES. Nobody but the owner
-- reads a table. A function that is not listed here is an error, and so is one that is listed and not found.
do $$
declare
    v_roles  constant text[] := array[
        'oq_producer', 'oq_worker', 'oq_observer', 'oq_operator', 'oq_daemon'];
    v_rights constant jsonb := '{
        "oq_producer": ["oq_enqueue", "oq_enqueue_bulk", "oq_enqueue_many", "oq_update",
            "oq_cancel", "oq_batch", "oq_batch_seal", "oq_version", "oq_schedule", "oq_unschedule",
            "oq_next_runs", "oq_publish",
            "oq_subscribe", "oq_unsubscribe", "oq_watch", "oq_unwatch", "oq_watch_fire", "oq_enqueue_row"],
        "oq_worker": ["oq_lease", "oq_ack", "oq_ack_many", "oq_next", "oq_nack", "oq_release",
            "oq_heartbeat", "oq_heartbeat_many", "oq_listen", "oq_unlisten", "oq_parents", "oq_throttle", "oq_version"],
        "oq_observer": ["oq_get", "oq_list", "oq_explain", "oq_attempts", "oq_result", "oq_parents", "oq_stats", "oq_audit",
            "oq_version",
            "oq_next_runs"],
        "oq_operator": ["oq_create_queue", "oq_drop_queue", "oq_pause", "oq_resume", "oq_limit", "oq_grant",
            "oq_revoke", "oq_adopt", "oq_repair", "oq_redrive", "oq_purge", "oq_tick", "oq_promote",
            "oq_reap", "oq_expire", "oq_wake", "oq_advance", "oq_rotate", "oq_compact",
            "oq_run_schedules"],
        "oq_daemon": ["oq_tick", "oq_idle", "oq_promote", "oq_reap", "oq_expire", "oq_wake", "oq_advance",
            "oq_rotate", "oq_compact", "oq_lead", "oq_stats", "oq_version", "oq_run_schedules"]
    }';
    v_views  constant text[] := array['oq_queues', 'oq_jobs', 'oq_dead', 'oq_workers', 'oq_schedules',
        'oq_watches', 'oq_subscriptions'];
    -- As the daemon and tern.conf name it.
    v_version constant regclass := to_regclass('public.'
        || case '{{.schema}}' when 'oq' then 'openqueue' else '{{.schema}}' end || '_version');
    v_object record;
    v_role   text;
    v_found  text[] := '{}';
begin
    -- Also what those have who got theirs from somebody who lost it (cascade), and rights on columns.
    for v_object in
        select format('revoke all on %s from %s cascade', o.name, string_agg(distinct
                case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end, ', ')) as revoke
          from (
            select 'function ' || p.oid::regprocedure as name, coalesce(p.proacl, acldefault('f', p.proowner)) as acl,
                p.proowner as owner
              from pg_proc p
             where p.pronamespace = '{{.schema}}'::regnamespace
                or p.pronamespace = '{{.api_schema}}'::regnamespace and starts_with(p.proname, 'oq_')
               and 'search_path=pg_catalog, {{.schema}}, pg_temp' = any (p.proconfig)
            union all
            select case c.relkind when 'S' then 'sequence ' else 'table ' end || c.oid::regclass, c.relacl, c.relowner
              from pg_class c
             where c.relnamespace = '{{.schema}}'::regnamespace and c.relkind in ('r', 'p', 'v', 'S')
                or c.relnamespace = '{{.api_schema}}'::regnamespace and c.relkind = 'v' and c.relname = any (v_views)
                or c.oid = v_version
            union all
            select 'table ' || c.oid::regclass, t.attacl, c.relowner
              from pg_class c
              join pg_attribute t on t.attrelid = c.oid and t.attacl is not null
             where c.relnamespace = '{{.schema}}'::regnamespace
                or c.relnamespace = '{{.api_schema}}'::regnamespace and c.relname = any (v_views) or c.oid = v_version
            union all
            select 'schema {{.schema}}', n.nspacl, n.nspowner from pg_namespace n where n.nspname = '{{.schema}}'
            union all
            select 'type ' || t.oid::regtype, t.typacl, t.typowner
              from pg_type t
             where t.typnamespace = '{{.schema}}'::regnamespace and t.typacl is not null) o
         cross join lateral aclexplode(o.acl) a
         where a.grantee <> o.owner
           and (a.grantee <> 0 or o.name not like 'type %')
         group by o.name
         order by o.name
    loop
        execute v_object.revoke;
    end loop;

    for v_object in
        select p.oid::regprocedure as name, p.proname
          from pg_proc p
         where p.pronamespace = '{{.api_schema}}'::regnamespace and starts_with(p.proname, 'oq_')
           and 'search_path=pg_catalog, {{.schema}}, pg_temp' = any (p.proconfig)
         order by p.oid
    loop
        v_found := v_found || v_object.proname::text;
        if not exists (select from jsonb_each(v_rights) r where r.value ? v_object.proname) then
            raise exception 'grants.sql does not say who may execute %', v_object.name;
        end if;
        for v_role in select r.key from jsonb_each(v_rights) r where r.value ? v_object.proname loop
            execute format('grant execute on function %s to %I', v_object.name, v_role);
        end loop;
    end loop;
    select string_agg(distinct f.name, ', ' order by f.name) into v_role
      from jsonb_each(v_rights) r
     cross join lateral jsonb_array_elements_text(r.value) f(name)
     where f.name <> all (v_found);
    if v_role is not null then
        raise exception 'grants.sql does not find %', v_role
            using detail = 'What is not found may be open to everybody.';
    end if;
    foreach v_role in array v_views loop
        execute format('grant select on table {{.api_schema}}.%I to oq_observer', v_role);
    end loop;

    -- Views call it with the reader's rights. It needs no usage on the schema.
    grant execute on function {{.schema}}.may(bigint, text) to oq_observer;
    grant execute on function {{.schema}}.watch_allowed(oid, bigint, oid) to oq_observer;

    -- What the functions call that run with their caller's rights (watches): found when they were
    -- made, so it needs no usage either, and nobody can call it by name.
    grant execute on function {{.schema}}.watch_plan(name, regclass, text, text, text[], text, jsonb),
        {{.schema}}.watch_build(jsonb), {{.schema}}.watch_end(name, regclass, text),
        {{.schema}}.watch_drop(jsonb),
        {{.schema}}.watch_put(name, bigint, oid, jsonb[], text[], text[], bigint, text, text)
        to oq_producer;

    execute format('grant usage on schema {{.api_schema}} to %s', array_to_string(v_roles, ', '));
    foreach v_role in array array['oq_producer', 'oq_worker', 'oq_observer'] loop
        if not exists (
            select from pg_auth_members m
             where m.roleid = v_role::regrole and m.member = 'oq_operator'::regrole)
        then
            execute format('grant %I to oq_operator', v_role);
        end if;
    end loop;
end
$$;
