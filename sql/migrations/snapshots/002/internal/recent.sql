-- Rows a second of each queue over the last ten: jobs made, or jobs completed. Both tables grow at
-- their end, so it reads back from there in steps that double, until one holds nothing recent: no
-- more than twice what is counted, and at most 128 MB, where the rate is that of a shorter time.
-- Rows that oq_rotate carries over, or that went into space left by a purge, can make it count too
-- few.
-- Index: none, ranges of pages.
create or replace function {{.schema}}.recent(kind text)
returns table (queue_id bigint, per_second numeric)
language plpgsql
as $$
#variable_conflict use_column
declare
    v_now   timestamptz := clock_timestamp();
    v_since timestamptz;
    v_pages bigint;
    v_from  bigint;
    v_to    bigint;
    v_step  bigint;
    v_newest timestamptz;
    v_oldest timestamptz;
begin
    for v_gen in 0..2 loop
        v_since := v_now - interval '10 seconds';
        v_pages := pg_relation_size(format('{{.schema}}.%I', kind || '_' || v_gen)::regclass)
            / current_setting('block_size')::int;
        v_from := v_pages;
        v_step := 32;
        while v_from > 0 loop
            v_to := v_from;
            v_from := greatest(v_from - v_step, 0);
            v_step := v_step * 2;
            if kind = 'job' then
                select max(j.created_at), min(j.created_at) into v_newest, v_oldest
                  from {{.schema}}.job j
                 where j.gen = v_gen
                   and j.ctid >= ('(' || v_from || ',0)')::tid
                   and j.ctid < ('(' || v_to || ',0)')::tid;
            else
                select max(f.finished_at), min(f.finished_at) into v_newest, v_oldest
                  from {{.schema}}.finished f
                 where f.gen = v_gen
                   and f.ctid >= ('(' || v_from || ',0)')::tid
                   and f.ctid < ('(' || v_to || ',0)')::tid;
            end if;
            exit when v_newest < v_since;
            if v_pages - v_from > 8192 then
                v_since := greatest(v_since, v_oldest);
                exit;
            end if;
        end loop;
        continue when v_pages = 0;
        if kind = 'job' then
            return query
            select j.queue_id, count(*) / greatest(extract(epoch from v_now - v_since), 0.001)
              from {{.schema}}.job j
             where j.gen = v_gen and j.ctid >= ('(' || v_from || ',0)')::tid
               and j.created_at >= v_since
             group by j.queue_id;
        else
            return query
            select f.queue_id, count(*) / greatest(extract(epoch from v_now - v_since), 0.001)
              from {{.schema}}.finished f
             where f.gen = v_gen and f.ctid >= ('(' || v_from || ',0)')::tid
               and f.finished_at >= v_since and f.outcome = 'completed'
             group by f.queue_id;
        end if;
    end loop;
end
$$;
comment on function {{.schema}}.recent(text) is 'Rows a second of each queue over the last ten.';
