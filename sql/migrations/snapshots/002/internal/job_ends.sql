-- How jobs have ended, as far as this transaction sees: completed, failed (dead, cancelled, expired), open, or
-- lost where no place is found, deleted with the place still to go or a fault; null where nothing is left of it.
-- A snapshot taken just before a compaction sees a table empty: what looks lost is looked at again, under the
-- locks that the first look has taken.
-- Not by exists, which becomes a hash of a whole table where that was small when the session first asked.
-- Index: job_N_pk, finished_N_pk, dead_pk, leased_pk, scheduled_pk, waiting_pk, ready_pk, ready_returned_idx.
create or replace function {{.schema}}.job_ends(job_ids bigint[])
returns table (job_id bigint, queue_id bigint, ended text)
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_nestloop = on
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_ids  bigint[] := job_ids;
    v_lost bigint[];
begin
    for v_round in 1..2 loop
        v_lost := array[]::bigint[];
        for job_id, queue_id, ended in
            select u.job_id, coalesce(f.queue_id, j.queue_id),
                case when f.outcome = 'completed' then 'completed'
                    when f.outcome is not null
                        or (select true from {{.schema}}.dead d where d.job_id = u.job_id limit 1) then 'failed'
                    when (select true from {{.schema}}.leased l where l.job_id = u.job_id limit 1)
                        or (select true from {{.schema}}.scheduled s where s.job_id = u.job_id limit 1)
                        or (select true from {{.schema}}.waiting w where w.job_id = u.job_id limit 1)
                        or (select true from {{.schema}}.ready r
                             where r.lane = (j.queue_id << 16) + 32767 - j.priority and r.position = u.job_id
                             limit 1)
                        or (select true from {{.schema}}.ready r
                             where r.job_id = u.job_id and r.position <> r.job_id
                             limit 1)
                    then 'open'
                    when j.queue_id is not null then 'lost' end
              from unnest(v_ids) u(job_id)
              left join lateral (
                select f.queue_id, f.outcome from {{.schema}}.finished f where f.job_id = u.job_id limit 1) f on true
              left join lateral (
                select j.queue_id, j.priority from {{.schema}}.job j where j.job_id = u.job_id limit 1) j on true
             order by u.job_id
        loop
            if v_round = 1 and (ended = 'lost' or ended is null) then
                v_lost := v_lost || job_id;
            else
                return next;
            end if;
        end loop;
        exit when cardinality(v_lost) = 0;
        v_ids := v_lost;
    end loop;
end
$$;
comment on function {{.schema}}.job_ends(bigint[]) is 'How jobs have ended, if they have.';
