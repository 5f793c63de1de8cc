-- The keys of one kind of advisory lock (epoch, sleeper, leader, advance) that this session holds.
create or replace function {{.schema}}.own_locks(kind text)
returns bigint[]
language plpgsql
as $$
begin
    return array(
        select k.objid::bigint
          from pg_locks k
         where k.locktype = 'advisory' and k.pid = pg_backend_pid() and k.granted and k.objsubid = 2
           and k.database = (select d.oid from pg_database d where d.datname = current_database())
           and k.classid = (hashtext('{{.schema}}:' || kind)::bigint & 4294967295)::oid);
end
$$;
comment on function {{.schema}}.own_locks(text) is 'The advisory locks of one kind that this session holds.';
