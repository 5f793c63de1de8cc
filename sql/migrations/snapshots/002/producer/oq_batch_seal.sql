-- Closes a batch: the edge by which it waits for its seal goes. Who adds members at this moment is waited for by
-- the batch, not here.
-- Calls: free_children. Locks: the edge of the seal. Index: dependency_pk.
create or replace function {{.api_schema}}.oq_batch_seal(batch_id bigint)
returns boolean
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '2s'
as $$
#variable_conflict use_column
begin
    delete from dependency d where d.parent_id = 0 and d.child_id = -greatest(oq_batch_seal.batch_id, 0);
    if not found then
        return false;
    end if;
    if not {{template "internal/one_snapshot.sql"}} then
        perform free_children(array[-oq_batch_seal.batch_id], array[0::bigint], interval '20 ms');
    else
        insert into todo (kind, id, queue_id, due_at)
        values ('child', -oq_batch_seal.batch_id, 0, clock_timestamp());
    end if;
    return true;
end
$$;
comment on function {{.api_schema}}.oq_batch_seal(bigint) is
'Seals a batch: no more jobs come in, it ends with the last of them.
False where it is sealed already or unknown. A batch without jobs succeeds at once. Where another open
transaction is sealing it, that is waited for, 2 s at most (55P03).';
