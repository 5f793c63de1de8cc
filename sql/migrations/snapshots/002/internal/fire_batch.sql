-- Makes the jobs of a batch that is sealed and whose members are over: null where nothing is left to do, else how
-- long to wait before the next try. The row goes with it, so it happens once. Whoever adds members holds the
-- batch's lock, shared, so what is being added is waited for, by a todo. An error of one is nothing to the other, nor
-- to the worker whose ack it is, who may not see the queue or the key that its text may name: the tick tries again;
-- soon where it was a deadlock or a lock, as a unique key that an open transaction holds, which is waited for as long
-- as here at most.
-- Calls: enqueue_for. Locks: batch (try), the batch's row (skip locked). Index: batch_pk, dependency_child_idx.
create or replace function {{.schema}}.fire_batch(batch_id bigint)
returns interval
language plpgsql
set lock_timeout = '20ms'
as $$
#variable_conflict use_column
declare
    v_batch  {{.schema}}.batch;
    v_failed boolean;
    v_kind   text;
    v_job    jsonb;
    v_made   text[] := array[]::text[];
    v_again  interval;
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
    for v_kind, v_job in
        select u.kind, u.job
          from (values ('end', case when v_failed then v_batch.on_failure else v_batch.on_success end),
            ('complete', v_batch.on_complete)) u(kind, job)
         where u.job is not null
         order by u.kind desc
    loop
        begin
            perform {{.schema}}.enqueue_for(v_job || jsonb_build_object('headers',
                coalesce(nullif(v_job -> 'headers', 'null'), '{}') || jsonb_build_object('batch', v_batch.batch_id)),
                v_batch.owner);
            v_made := v_made || v_kind;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate;
            raise warning 'batch %: a job could not be made (%)', fire_batch.batch_id, v_state
                using hint = 'It is tried again every few seconds.';
            v_again := least(v_again, case when left(v_state, 2) = '40' or v_state = '55P03' then interval '1 s'
                else interval '10 s' end);
        end;
    end loop;
    if v_again is not null then
        if cardinality(v_made) > 0 then
            update {{.schema}}.batch b
               set on_success = case when 'end' <> all (v_made) then b.on_success end,
                   on_failure = case when 'end' <> all (v_made) then b.on_failure end,
                   on_complete = case when 'complete' <> all (v_made) then b.on_complete end
             where b.batch_id = fire_batch.batch_id;
        end if;
        return v_again;
    end if;
    delete from {{.schema}}.batch b where b.batch_id = fire_batch.batch_id;
    delete from {{.schema}}.batch_failure f where f.batch_id = fire_batch.batch_id;
    return null;
end
$$;
comment on function {{.schema}}.fire_batch(bigint) is 'Makes the jobs of a batch that is over.';
