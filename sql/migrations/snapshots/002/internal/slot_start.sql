-- When the job that holds a slot of a group's rate began, as far as this snapshot sees: a slot is taken when its job
-- is let into ready, and counts from the lease. Until that is written into the slot, its token is below 0: -1 minus the
-- job's last token then, so that a later one tells that it began. Null: it is ready still. -infinity: it left ready
-- without having begun. Where nothing is left of the job, what the slot says.
-- Index: leased_pk, ready_returned_idx, scheduled_pk, waiting_pk, dead_pk, finished_N_pk.
create or replace function {{.schema}}.slot_start(job_id bigint, token bigint, taken_at timestamptz)
returns timestamptz
language plpgsql
as $$
#variable_conflict use_column
declare
    v_place record;
begin
    if slot_start.token >= 0 then
        return slot_start.taken_at;
    end if;
    -- One statement, lest the job move behind the look. A token is a clock, rounded down to 4 us.
    select p.place, p.token > -1 - slot_start.token as began, coalesce(p.leased_at, timestamptz 'epoch'
            + (1767225600000000 + (p.token >> 4 << 2) + 4) * interval '1 microsecond') as began_at, p.finished_at
      into v_place
      from (
        select 1 as place, l.token, l.leased_at, null::timestamptz as finished_at
          from {{.schema}}.leased l where l.job_id = slot_start.job_id
        union all
        select 2, r.token, null, null
          from {{.schema}}.ready r where r.job_id = slot_start.job_id and r.position <> r.job_id
        union all
        select 3, s.token, null, null from {{.schema}}.scheduled s where s.job_id = slot_start.job_id
        union all
        select 3, w.token, null, null from {{.schema}}.waiting w where w.job_id = slot_start.job_id
        union all
        select 3, d.token, null, null from {{.schema}}.dead d where d.job_id = slot_start.job_id
        union all
        select 4, abs(f.token), f.leased_at, f.finished_at
          from {{.schema}}.finished f where f.job_id = slot_start.job_id) p
     order by p.place
     limit 1;
    return case v_place.place
        when 1 then v_place.began_at
        when 2 then case when v_place.began then v_place.began_at end
        when 3 then case when v_place.began then v_place.began_at else '-infinity' end
        -- Not all who end tell whether they had begun: by then at the latest.
        when 4 then coalesce(case when v_place.began is not false then v_place.began_at end, v_place.finished_at)
        else slot_start.taken_at end;
end
$$;
comment on function {{.schema}}.slot_start(bigint, bigint, timestamptz) is
    'When the job that holds a slot of a group''s rate began.';
