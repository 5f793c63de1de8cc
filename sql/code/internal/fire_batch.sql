-- Makes the jobs of a batch that is sealed and whose members are over: null where nothing is left to do, else how
-- long to wait before the next try. The row goes with it, so it happens once. Whoever adds members holds the
-- batch's lock, shared, so what is being added is waited for, by a todo. An error is nothing to the worker whose
-- ack it is: the tick tries again, and says so.
-- Calls: enqueue_for. Locks: batch (try), the batch's row (skip locked). Index: batch_pk, dependency_child_idx.
create or replace function {{.schema}}.fire_batch(batch_id bigint)
returns interval
language plpgsql
as $$
#variable_conflict use_column
declare
    v_batch  {{.schema}}.batch;
    v_failed boolean;
    v_job    jsonb;
    v_error  text;
    v_state  text;
begin
    if not pg_try_advisory_xact_lock(
            hashtext('{{.schema}}:batch'), (fire_batch.batch_id & 2147483647)::int)
        or exists (select from {{.schema}}.dependency d where d.child_id = -fire_batch.batch_id)
    then
        return interval '20 ms';
    end if;
    select b.* into v_batch from {{.schema}}.batch b where b.batch_id = fire_batch.batch_id for update skip locked;
    if v_batch.batch_id is null then
        return (select interval '20 ms' from {{.schema}}.batch b where b.batch_id = fire_batch.batch_id);
    end if;
    v_failed := exists (select from {{.schema}}.batch_failure f where f.batch_id = fire_batch.batch_id);
    begin
        for v_job in
            select u.job
              from unnest(array[case when v_failed then v_batch.on_failure else v_batch.on_success end,
                v_batch.on_complete]) u(job)
             where u.job is not null
        loop
            perform {{.schema}}.enqueue_for(v_job || jsonb_build_object('headers',
                coalesce(nullif(v_job -> 'headers', 'null'), '{}') || jsonb_build_object('batch', v_batch.batch_id)),
                v_batch.owner);
        end loop;
        delete from {{.schema}}.batch b where b.batch_id = fire_batch.batch_id;
        delete from {{.schema}}.batch_failure f where f.batch_id = fire_batch.batch_id;
    exception when others then
        get stacked diagnostics v_error = message_text, v_state = returned_sqlstate;
        raise warning 'batch %: % (%)', fire_batch.batch_id, v_error, v_state;
        return interval '10 s';
    end;
    return null;
end
$$;
comment on function {{.schema}}.fire_batch(bigint) is 'Makes the jobs of a batch that is over.';
