{{- /* The first rows of one lane, from its mark on, and what their workers need. A payload is
mostly in the generation that is filling (.gen), else in the one before, else in the oldest. Naming the
partitions saves opening all of them at each call. A job of a group with a rate begins after the moment at
which its slot was seen free: the clock is read once more, in the snapshot of the claim. */ -}}
        with clock as (
            select x.at, case when v_linked then
                {{template "internal/new_token.sql" dict "schema" .schema "at" "x.at"}} else v_token end as token,
                x.at + v_seconds * interval '1 second' as until
              from (select case when v_linked then clock_timestamp() else v_now end as at) x
        ), claimed as (
            delete from ready r
             where r.ctid = any (array(
                select x.ctid
                  from ready x
                 where x.lane = v_lane and x.position >= v_low
                   and (x.expires_at is null or x.expires_at > v_now)
                 order by x.position
                 limit v_left
                   for update skip locked))
            returning r.job_id, r.position, r.token, coalesce(r.attempt, 0) + 1 as attempt, coalesce(r.failed, 0) as failed,
                coalesce(r.lost, 0) as lost, r.expires_at
        ), taken as (
            insert into leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost, kept,
                restricted, linked, worker_id, job_expires_at)
            select c.job_id, greatest((select k.token from clock k), c.token + 1), v_lane, (select k.until from clock k),
                (select k.at from clock k), c.attempt, c.failed,
                c.lost, v_kept, v_restricted, v_linked, $2, c.expires_at
              from claimed c
        )
        select c.job_id, greatest((select k.token from clock k), c.token + 1), $1, j.payload, j.headers,
            (32767 - (v_lane & 65535))::int, c.attempt, coalesce(j.max_retries, v_max_retries),
            j.group_key, j.created_at, (select k.until from clock k)
          from claimed c
         cross join lateral (
            select a.payload, a.headers, a.max_retries, a.group_key, a.created_at
              from job_{{.gen}} a where a.job_id = c.job_id
            union all
            select a.payload, a.headers, a.max_retries, a.group_key, a.created_at
              from job_{{mod (add .gen 2) 3}} a where a.job_id = c.job_id
            union all
            select a.payload, a.headers, a.max_retries, a.group_key, a.created_at
              from job_{{mod (add .gen 1) 3}} a where a.job_id = c.job_id
            limit 1) j
         order by c.position;
