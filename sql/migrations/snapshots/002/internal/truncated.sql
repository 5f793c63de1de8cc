-- Has a generation been emptied since this transaction's snapshot was taken? A query sees pg_class as of the
-- snapshot; the function, the file that is used now.
create or replace function {{.schema}}.truncated()
returns boolean
language plpgsql
as $$
begin
    return exists (
        select from pg_class c
         where c.oid in ({{range $gen := list 0 1 2}}{{if $gen}}, {{end}}'{{$.schema}}.job_{{$gen}}'::regclass{{end}})
           and c.relfilenode <> pg_relation_filenode(c.oid));
end
$$;
comment on function {{.schema}}.truncated() is 'Was a generation emptied since this snapshot was taken?';
