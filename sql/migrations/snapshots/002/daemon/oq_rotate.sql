-- Generations: opens the next when the current is old enough, moves what must stay out of the oldest,
-- a bounded number of rows a call, and truncates it. Never waits for anybody for more than 20 ms.
-- Also clears up after first uses, drops, superseded marks and unique keys. sql/DESIGN.md: "Generations".
-- Calls: verify_instance, lanes, queue_now.
-- Locks: rotate (try), share on one generation and another's finished, then access exclusive on the one.
-- Index: job_N_pk, finished_N_pk.
create or replace function {{.api_schema}}.oq_rotate(max_rows int default 5000)
returns bigint
language plpgsql
{{template "internal/pinned.sql" .}}
set lock_timeout = '20ms'
as $$
#variable_conflict use_column
declare
    v_now       timestamptz := clock_timestamp();
    v_gen       smallint;
    v_next      smallint;
    v_retention interval;
    v_longest   interval;
    v_state     generation_state%rowtype;
    v_ids       bigint[];
    v_count     bigint := 0;
    v_step      bigint;
    v_block     bigint := pg_sequence_last_value('key_sweep'::regclass);
begin
    if max_rows is null or max_rows not between 1 and 1000000 then
        perform fail('max_rows', max_rows::text, 'between 1 and 1000000');
    end if;
    perform verify_instance('oq_rotate');
    if not pg_try_advisory_xact_lock(hashtext('{{.schema}}:rotate'), 0) then
        return 0;
    end if;

    -- A queue that was linked or throttled by an open transaction while its options changed: their row counts.
    update queue d
       set linked = true
     where d.ctid = any (array(
        select q.ctid
          from queue q
         where not q.linked and exists (select from queue p where p.queue_id = q.queue_id and p.linked)
           for update skip locked));
    update queue d
       set limited = true
     where d.ctid = any (array(
        select q.ctid
          from (
            select r.queue_id from limit_rule r where r.group_id = 0
            union
            select t.queue_id from throttled t where t.group_id = 0 and t.until > v_now) l
         cross join lateral (
            select q.ctid from queue q
             where q.queue_id = l.queue_id and not q.limited
               for update skip locked) q));
    -- Rows that count for nothing: equal first uses of a queue, marks that others stand above. A link that was
    -- committed since the look above stays for the next time.
    delete from queue d
     where d.ctid = any (array(
        select q.ctid
          from queue q
         where exists (
            select from queue p
             where p.queue_id = q.queue_id and (p.linked or not q.linked)
               and (p.version > q.version or p.version = q.version and p.row_id < q.row_id))
           for update skip locked));
    delete from mark d
     where d.ctid = any (array(
        select x.ctid
          from lanes() k
         cross join lateral (
            select m.ctid from mark m
             where m.lane = k.lane and m.low < k.low
               for update skip locked) x));
    -- Unique keys whose jobs are over, a few blocks a call. A key that was taken since is another job's, which
    -- this snapshot may not see: so only where it still is the job that was looked at.
    with stale as materialized (
        select k.ctid, k.version
          from unique_key k
         where k.ctid >= format('(%s,0)', v_block)::tid and k.ctid < format('(%s,0)', v_block + 16)::tid
           and coalesce(k.until <= v_now, true)
           and {{template "internal/over.sql" dict "schema" .schema "id" "k.job_id"}} is not false
    )
    delete from unique_key d
     where d.ctid = any (array(
        select k.ctid
          from stale s
          join unique_key k on k.ctid = s.ctid and k.version = s.version
           for update of k skip locked));
    perform setval('key_sweep', case
        when (v_block + 16) * current_setting('block_size')::bigint < pg_relation_size('unique_key') then v_block + 16
        else 0 end);
    -- A job that was committed after its queue was dropped makes it a queue again.
    update queue d
       set dropped_at = null
     where d.ctid = any (array(
        select q.ctid
          from queue q
         where q.dropped_at is not null
           and exists (
            select from lanes() k
             cross join lateral (
                select from ready r where r.lane = k.lane and r.position >= k.low limit 1) r
             where k.lane >> 16 = q.queue_id)
           for update skip locked));

    -- In a dump the register is younger than the rows. If it names a generation that is not empty, what ends would
    -- be older than its job: it goes back, and what was written there meanwhile is carried on like the rest.
    v_gen := pg_sequence_last_value('generation'::regclass)::smallint;
    select g.gen into v_next
      from generation_state g
     where g.stage = 'current' and exists (
        select from generation_state x where x.gen = v_gen and x.stage not in ('current', 'empty'));
    if v_next is not null then
        update generation_state g
           set stage = 'closed', cursor_id = 0, tries = 0, try_after = null
         where g.gen = v_gen;
        v_gen := setval('generation', v_next);
    end if;
    -- Else it is right even where the transaction that moved it rolled back.
    update generation_state g
       set stage = 'closed', closed_at = v_now, cursor_id = 0, tries = 0, try_after = null
     where g.stage = 'current' and g.gen <> v_gen;
    update generation_state g
       set stage = 'current', opened_at = v_now, closed_at = null
     where g.gen = v_gen and g.stage <> 'current';

    -- Where the clock went back nothing would close, or go, until it has caught up: all is as long ago as it was then.
    update generation_state g
       set opened_at = g.opened_at - c.ahead, closed_at = g.closed_at - c.ahead, try_after = null
      from (
        select x.opened_at - v_now as ahead from generation_state x
         where x.stage = 'current' and x.opened_at > v_now) c;
    -- A generation closes after half the retention and goes when all of it is older than the retention.
    -- Queues that keep for longer have their rows carried on, so one of them can't grow all the others
    -- more than eightfold.
    select greatest(min(q.retention), max(q.retention) / 8), max(q.retention)
      into v_retention, v_longest
      from queue_now q
     where q.dropped_at is null;
    v_retention := coalesce(v_retention, interval '1 day');
    v_longest := coalesce(v_longest, v_retention);

    v_next := (v_gen + 1) % 3;
    if exists (select from generation_state g where g.gen = v_gen and g.opened_at + v_retention / 2 <= v_now)
        and exists (select from generation_state g where g.gen = v_next and g.stage = 'empty')
    then
        -- Not by nextval, which logs values ahead: after a crash, or on a standby, it would name another one.
        v_gen := setval('generation', v_next);
        update generation_state g
           set stage = 'closed', closed_at = v_now, cursor_id = 0, tries = 0, try_after = null
         where g.stage = 'current';
        update generation_state g set stage = 'current', opened_at = v_now, closed_at = null where g.gen = v_gen;
        return 1;
    end if;

    select g.* into v_state
      from generation_state g
     where g.stage not in ('current', 'empty') and g.closed_at + v_retention <= v_now
     order by g.closed_at
     limit 1;
    if v_state.gen is null or v_state.try_after > v_now then
        return v_count;
    end if;

    -- Nobody writes to it any more, once those who may have begun to are through. Nor does anybody end a job in
    -- the other closed one: its row would go on now as unfinished, and be the younger of the two.
    if v_state.stage = 'closed' then
        begin
            execute format('lock table job_%1$s, attempt_%1$s, finished_%1$s, finished_%2$s in share mode',
                v_state.gen, 3 - v_gen - v_state.gen);
            v_state.stage := 'job';
        exception when lock_not_available then
            v_state.tries := least(v_state.tries + 1, 20);
            v_state.try_after := v_now + least(60, 0.05 * power(2, v_state.tries)) * interval '1 second';
        end;
    end if;

    if v_state.stage = 'job' then
        v_ids := array(
            select j.job_id from job j
             where j.gen = v_state.gen and j.job_id > v_state.cursor_id
             order by j.job_id
             limit oq_rotate.max_rows);
        -- A job that is kept whole goes with its end, so that neither outlives the other.
        with kept as materialized (
            select i.job_id, f.job_id is not null as is_finished
              from unnest(v_ids) i(job_id)
              left join lateral (
                select f.job_id, f.queue_id, f.finished_at, f.outcome, f.kept from finished f
                 where f.job_id = i.job_id
                 limit 1) f on true
              left join lateral (
                select q.retention, q.keep from queue q
                 where q.queue_id = f.queue_id
                 order by q.version desc, q.row_id
                 limit 1) q on true
             where f.job_id is null
                or f.kept and f.finished_at + q.retention > v_now
                   and (q.keep = 'full' or f.outcome = 'cancelled')
        ), ends as (
            delete from finished f
             using (select k.job_id from kept k where k.is_finished order by k.job_id) k
             where f.job_id = k.job_id
            returning f.*
        ), ends_moved as (
            insert into finished (gen, lost, attempt, job_id, queue_id, finished_at, leased_at, token, outcome,
                kept, linked, worker_id, error, result)
            select v_gen, e.lost, e.attempt, e.job_id, e.queue_id, e.finished_at, e.leased_at, e.token,
                e.outcome, e.kept, e.linked, e.worker_id, e.error, e.result
              from ends e
        ), rows as (
            delete from job j
             using (select k.job_id from kept k order by k.job_id) k
             where j.gen = v_state.gen and j.job_id = k.job_id
            returning j.*
        )
        insert into job (gen, priority, max_retries, job_id, queue_id, created_at, run_at, expires_at, payload,
            headers, retry, tags, group_key, unique_key, batch_id, depends_on, on_parent_failure)
        select v_gen, r.priority, r.max_retries, r.job_id, r.queue_id, r.created_at, r.run_at, r.expires_at,
            r.payload, r.headers, r.retry, r.tags, r.group_key, r.unique_key, r.batch_id, r.depends_on,
            r.on_parent_failure
          from rows r;
        get diagnostics v_step = row_count;
        v_count := v_count + v_step;
        if cardinality(v_ids) < oq_rotate.max_rows then
            v_state.stage := 'finished';
            v_state.cursor_id := 0;
        else
            v_state.cursor_id := v_ids[cardinality(v_ids)];
        end if;
    elsif v_state.stage = 'finished' then
        v_ids := '{}';
        if v_state.closed_at + v_longest > v_now then
            v_ids := array(
                select f.job_id from finished f
                 where f.gen = v_state.gen and f.job_id > v_state.cursor_id
                 order by f.job_id
                 limit oq_rotate.max_rows);
            with rows as (
                delete from finished f
                 using (select i.job_id from unnest(v_ids) i(job_id) order by i.job_id) i
                 where f.gen = v_state.gen and f.job_id = i.job_id and f.kept
                   and f.finished_at + (
                    select q.retention from queue q
                     where q.queue_id = f.queue_id
                     order by q.version desc, q.row_id
                     limit 1) > v_now
                returning f.*
            )
            insert into finished (gen, lost, attempt, job_id, queue_id, finished_at, leased_at, token, outcome,
                kept, linked, worker_id, error, result)
            select v_gen, e.lost, e.attempt, e.job_id, e.queue_id, e.finished_at, e.leased_at, e.token,
                e.outcome, e.kept, e.linked, e.worker_id, e.error, e.result
              from rows e;
            get diagnostics v_step = row_count;
            v_count := v_count + v_step;
        end if;
        if cardinality(v_ids) < oq_rotate.max_rows then
            v_state.stage := 'attempt';
            v_state.cursor_id := 0;
        else
            v_state.cursor_id := v_ids[cardinality(v_ids)];
        end if;
    elsif v_state.stage = 'attempt' then
        v_ids := array(
            select distinct x.job_id from (
                select a.job_id from attempt a
                 where a.gen = v_state.gen and a.job_id > v_state.cursor_id
                 order by a.job_id
                 limit oq_rotate.max_rows) x
             order by x.job_id);
        with rows as (
            delete from attempt a
             using (
                select i.job_id from unnest(v_ids) i(job_id)
                 where exists (select from job j where j.gen <> v_state.gen and j.job_id = i.job_id)
                    or exists (select from finished f where f.gen <> v_state.gen and f.job_id = i.job_id)
                 order by i.job_id) i
             where a.gen = v_state.gen and a.job_id = i.job_id
            returning a.*
        )
        insert into attempt (gen, attempt, job_id, token, leased_at, ended_at, outcome, worker_id, error)
        select v_gen, r.attempt, r.job_id, r.token, r.leased_at, r.ended_at, r.outcome, r.worker_id, r.error
          from rows r;
        get diagnostics v_step = row_count;
        v_count := v_count + v_step;
        if cardinality(v_ids) = 0 then
            v_state.stage := 'evacuated';
            v_state.tries := 0;
        else
            v_state.cursor_id := v_ids[cardinality(v_ids)];
        end if;
    elsif v_state.stage = 'evacuated' then
        begin
            execute format(
                'lock table job_%1$s, finished_%1$s, attempt_%1$s in access exclusive mode', v_state.gen);
            execute format('truncate job_%1$s, finished_%1$s, attempt_%1$s', v_state.gen);
            v_state.stage := 'empty';
            v_count := v_count + 1;
        exception when lock_not_available then
            v_state.tries := least(v_state.tries + 1, 20);
            v_state.try_after := v_now + least(60, 0.05 * power(2, v_state.tries)) * interval '1 second';
        end;
    end if;
    update generation_state g
       set stage = v_state.stage, cursor_id = v_state.cursor_id, tries = v_state.tries,
           try_after = v_state.try_after
     where g.gen = v_state.gen;
    return v_count;
end
$$;
comment on function {{.api_schema}}.oq_rotate(int) is
'Clears finished jobs away by generations; returns how much moved.
retention, an option of each queue, is how long finished jobs can be read at least.
A duty of the daemon, part of oq_tick. Safe to run at any time, by several at once.';
