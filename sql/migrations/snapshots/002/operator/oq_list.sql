-- The newest jobs, found by the indexes of the tables in which jobs stand, backwards. Of ready jobs those that have not
-- been leased yet lie in their lanes by id, those that came back have an index of their own. What is hidden by its
-- queue is not looked up one by one.
-- Calls: check_queue_name, queue_now, may, lanes, oq_get. Index: ready_pk, ready_returned_idx, mark_lane_idx, scheduled_pk,
-- waiting_pk, leased_pk, dead_pk, dead_queue_idx, finished_N_pk, queue_id_idx; and as oq_get.
create or replace function {{.api_schema}}.oq_list(
    queue_name text   default null,
    state      text   default null,
    max_jobs   int    default 100,
    before     bigint default null
)
returns setof {{.api_schema}}.oq_jobs
language plpgsql
{{template "internal/pinned.sql" .}}
as $$
#variable_conflict use_column
declare
    v_only   bigint;
    v_hidden bigint[];
    v_before bigint := coalesce(oq_list.before, 9223372036854775807);
    v_left   int := oq_list.max_jobs;
    v_ids    bigint[];
    v_count  int;
begin
    if oq_list.state not in ('scheduled', 'waiting', 'ready', 'leased', 'completed', 'dead', 'cancelled', 'expired') then
        perform fail('state', oq_list.state,
            'scheduled, waiting, ready, leased, completed, dead, cancelled or expired');
    end if;
    if oq_list.max_jobs is null or oq_list.max_jobs not between 1 and 10000 then
        perform fail('max_jobs', oq_list.max_jobs::text, 'between 1 and 10000');
    end if;
    if oq_list.queue_name is not null then
        perform check_queue_name(oq_list.queue_name);
        select q.queue_id into v_only from queue q where q.queue_name = oq_list.queue_name collate "C" limit 1;
        if v_only is null then
            return;
        end if;
    end if;
    v_hidden := array(
        select q.queue_id from queue_now q
         where q.restricted and (v_only is null or q.queue_id = v_only) and not may(q.queue_id, 'observe'));
    if v_only = any (v_hidden) then
        return;
    end if;

    -- More than once where some ended in between, or were hidden when their queue was dropped.
    while v_left > 0 loop
        v_ids := array(
            select x.job_id
              from (
                (select f.job_id
                   from lanes(coalesce(v_only << 16, 0), coalesce((v_only << 16) + 65535, 9223372036854775807)) k
                  cross join lateral (
                    select r.job_id from ready r
                     where r.lane = k.lane and r.position < v_before and r.position = r.job_id
                     order by r.position desc
                     limit v_left) f
                  where coalesce(oq_list.state = 'ready', true) and k.lane >> 16 <> all (v_hidden)
                  order by f.job_id desc
                  limit v_left)
                union all
                (select r.job_id from ready r
                  where r.position <> r.job_id and r.job_id < v_before and coalesce(oq_list.state = 'ready', true)
                    and coalesce(r.lane >> 16 = v_only, true) and r.lane >> 16 <> all (v_hidden)
                  order by r.job_id desc
                  limit v_left)
                union all
                {{range $table := list "scheduled" "waiting" "leased"}}(select p.job_id from {{$table}} p
                  where p.job_id < v_before and coalesce(oq_list.state = '{{$table}}', true)
                    and coalesce(p.lane >> 16 = v_only, true) and p.lane >> 16 <> all (v_hidden)
                  order by p.job_id desc
                  limit v_left)
                union all
                {{end}}(select d.job_id from dead d
                  where v_only is null and d.job_id < v_before and coalesce(oq_list.state = 'dead', true)
                    and d.queue_id <> all (v_hidden)
                  order by d.job_id desc
                  limit v_left)
                union all
                (select d.job_id from dead d
                  where d.queue_id = v_only and d.job_id < v_before and coalesce(oq_list.state = 'dead', true)
                  order by d.job_id desc
                  limit v_left)
                union all
                (select f.job_id from finished f
                  where f.job_id < v_before and f.kept
                    and coalesce(f.outcome::text = oq_list.state, oq_list.state is null)
                    and coalesce(oq_list.state in ('completed', 'cancelled', 'expired'), true)
                    and coalesce(f.queue_id = v_only, true) and f.queue_id <> all (v_hidden)
                  order by f.job_id desc
                  limit v_left)) x
             order by x.job_id desc
             limit v_left);
        return query
        select j.*
          from unnest(v_ids) with ordinality u(job_id, nth)
         cross join lateral {{.api_schema}}.oq_get(u.job_id) j
         where coalesce(j.state = oq_list.state, true)
         order by u.nth;
        get diagnostics v_count = row_count;
        exit when cardinality(v_ids) < v_left;
        v_left := v_left - v_count;
        v_before := v_ids[cardinality(v_ids)];
    end loop;
end
$$;
comment on function {{.api_schema}}.oq_list(text, text, int, bigint) is
'The newest jobs of a queue or of all, in one state or in any.
As in oq_jobs, by falling job_id. max_jobs: 1 to 10000. before: only lower ids; the last one of a page gives the
next. Found by indexes, where oq_jobs reads all jobs; but one queue''s finished, leased, waiting or scheduled
jobs are looked for among those of all queues. An unknown queue gives no rows. Errors: OQ001.';
