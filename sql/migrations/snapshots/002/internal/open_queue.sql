-- The id of a queue, which is created where it is missing (or was dropped).
-- The id is a hash of the name, and rows are only added: two transactions that first use the same
-- queues in opposite order write equal rows and wait for nobody. lasting: for what makes jobs later and none now (a
-- watch, a schedule, a subscription): a dropped queue is there again for certain, if need be by waiting for whoever
-- changes it, or 40001.
-- Calls: check_queue_name, open_lane. Locks: lasting: the row of a dropped queue. Index: queue_name_idx, queue_id_idx.
create or replace function {{.schema}}.open_queue(queue_name text, lasting boolean default false)
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_id      bigint;
    v_dropped timestamptz;
begin
    perform {{.schema}}.check_queue_name(open_queue.queue_name);
    select q.queue_id, q.dropped_at into v_id, v_dropped
      from {{.schema}}.queue q
     where q.queue_name = open_queue.queue_name collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if v_id is not null then
        if v_dropped is not null and lasting then
            update {{.schema}}.queue q
               set dropped_at = null
             where q.row_id = (
                select x.row_id from {{.schema}}.queue x
                 where x.queue_id = v_id and x.dropped_at is not null
                 order by x.version desc, x.row_id
                 limit 1
                   for update);
        elsif v_dropped is not null and not {{template "internal/one_snapshot.sql"}} then
            -- Another transaction may be doing the same: it is left to do it. With an older snapshot the
            -- row may have changed already: oq_rotate will see the job.
            update {{.schema}}.queue q
               set dropped_at = null
             where q.row_id = (
                select x.row_id from {{.schema}}.queue x
                 where x.queue_id = v_id and x.dropped_at is not null
                 order by x.version desc, x.row_id
                 limit 1
                   for update skip locked);
        end if;
        return v_id;
    end if;

    v_id := hashtextextended(open_queue.queue_name collate "C", 0) & 140737488355327;
    for i in 1..100 loop
        exit when not exists (
            select from {{.schema}}.queue q
             where q.queue_id = v_id and q.queue_name <> open_queue.queue_name collate "C");
        v_id := (v_id + 1) & 140737488355327;
    end loop;
    insert into {{.schema}}.queue (queue_id, queue_name) values (v_id, open_queue.queue_name);
    perform {{.schema}}.open_lane((v_id << 16) + 32767);
    return v_id;
end
$$;
comment on function {{.schema}}.open_queue(text, boolean) is 'The id of a queue, created where it is missing.';
