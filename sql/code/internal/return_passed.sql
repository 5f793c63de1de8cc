-- What a mark passed over, since an open transaction held it: gone, come back, or still held. A job that came back goes to
-- the end of its lane; what is due is due now. Returns how many jobs went.
-- Calls: enter, time_low. Locks: epoch shared (memory); passed, ready and scheduled rows (skip locked).
-- Index: ready_pk, scheduled_pk.
create or replace function {{.schema}}.return_passed()
returns bigint
language plpgsql
as $$
#variable_conflict use_column
declare
    v_count bigint;
begin
    if not exists (select from {{.schema}}.passed) then
        return 0;
    end if;
    delete from {{.schema}}.passed p
     where p.ctid = any (array(
        select x.ctid from {{.schema}}.passed x
         -- Not by exists, which may become a hash of a whole table.
         where case x.lane
            when -1 then (
                select true from {{.schema}}.scheduled s
                 where s.job_id = x.position and s.due_at < {{.schema}}.time_low(-1) limit 1)
            else (
                select true from {{.schema}}.ready r
                 where r.lane = x.lane and r.position = x.position limit 1) end is null
           for update skip locked));
    perform {{.schema}}.enter();
    with back as (
        delete from {{.schema}}.ready r
         where r.ctid = any (array(
            select x.ctid
              from {{.schema}}.passed p
             cross join lateral (
                select r.ctid from {{.schema}}.ready r
                 where r.lane = p.lane and r.position = p.position
                   for update skip locked) x
             limit 10000))
        returning r.*
    ), forgotten as (
        delete from {{.schema}}.passed p using back b where p.lane = b.lane and p.position = b.position
    )
    insert into {{.schema}}.ready (lane, position, job_id, token, attempt, failed, lost, expires_at)
    select b.lane, nextval('{{.schema}}.position'), b.job_id, coalesce(b.token, 0), coalesce(b.attempt, 0),
        coalesce(b.failed, 0), coalesce(b.lost, 0), b.expires_at
      from (select * from back order by position) b;
    get diagnostics v_count = row_count;
    -- What is due is due now.
    with back as (
        update {{.schema}}.scheduled s
           set due_at = clock_timestamp()
         where s.ctid = any (array(
            select x.ctid
              from {{.schema}}.passed p
             cross join lateral (
                select s.ctid from {{.schema}}.scheduled s
                 where s.job_id = p.position and s.due_at < {{.schema}}.time_low(-1)
                   for update skip locked) x
             where p.lane = -1
             limit 10000))
        returning s.job_id
    )
    delete from {{.schema}}.passed p using back b where p.lane = -1 and p.position = b.job_id;
    return v_count;
end
$$;
comment on function {{.schema}}.return_passed() is 'Puts back what marks passed over.';
