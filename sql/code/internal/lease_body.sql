{{- /* The body shared by oq_lease and oq_next: arguments $1 to $4 are the same in both. */ -}}
    select q.queue_id, q.lease_seconds, q.max_retries, q.paused, q.restricted, m.lane, m.low, m.raised_at
      into v_queue_id, v_seconds, v_max_retries, v_paused, v_restricted, v_lane, v_low, v_raised_at
      from queue q
      left join lateral (
        select k.lane, k.low, k.raised_at from mark k
         where k.lane >= q.queue_id << 16 and k.lane <= (q.queue_id << 16) + 65535
         order by k.lane, k.low desc
         limit 1) m on true
     where q.queue_name = $1
     order by q.version desc, q.row_id
     limit 1;
    if $4 is null or $4 not between 1 and 10000 then
        perform fail('max_jobs', $4::text, 'between 1 and 10000');
    end if;
    if $3 is not null then
        v_seconds := $3;
        if v_seconds not between 1 and 604800 then
            perform fail('lease_seconds', v_seconds::text, 'between 1 and 604800');
        end if;
    end if;
    if v_queue_id is null then
        perform check_queue_name($1);
        return;
    end if;
    if length($2) > 200 then
        perform fail('worker_id', $2, 'at most 200 characters');
    end if;
    if v_restricted then
        perform demand(v_queue_id, $1, 'consume');
    end if;
    if v_paused then
        return;
    end if;
    if coalesce(current_setting('{{.schema}}.instance', true), '') <> '1' then
        perform verify_instance();
    end if;

    perform enter();
    v_now := clock_timestamp();
    v_expires_at := v_now + v_seconds * interval '1 second';
    -- Quarters of a microsecond since 2026, four bits of them a count: rises with the clock, so that it can
    -- not come back after a crash, is below 2^53 till 2097, and is another's only if sixteen calls begin
    -- within the same four microseconds.
    v_token := ((((date_part('epoch', v_now) * 1000000)::bigint - 1767225600000000) >> 2) << 4)
        | (nextval('{{.schema}}.token') & 15);
    v_gen := pg_sequence_last_value('{{.schema}}.generation'::regclass)::smallint;

    for v_round in 1..2 loop
        loop
            exit when v_lane is null;
            return query
            with claimed as (
                delete from ready r
                 where r.ctid = any (array(
                    select x.ctid
                      from ready x
                     where x.lane = v_lane and x.position >= v_low
                       and (x.expires_at is null or x.expires_at > v_now)
                     order by x.position
                     limit v_left
                       for update skip locked))
                returning r.job_id, r.position, r.token, r.attempt, r.failed, r.lost, r.expires_at
            ), taken as (
                insert into leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost,
                    worker_id, job_expires_at)
                select c.job_id, greatest(v_token, c.token + 1), v_lane, v_expires_at, v_now,
                    c.attempt + 1, c.failed, c.lost, $2, c.expires_at
                  from claimed c
            )
            select c.job_id, greatest(v_token, c.token + 1), $1, j.payload, j.headers,
                (32767 - (v_lane & 65535))::int, c.attempt + 1, coalesce(j.max_retries, v_max_retries),
                null::text, j.created_at, v_expires_at
              from claimed c
             cross join lateral (
                select a.payload, a.headers, a.max_retries, a.created_at
                  from job a where a.gen = v_gen and a.job_id = c.job_id
                union all
                select b.payload, b.headers, b.max_retries, b.created_at
                  from job b where b.gen <> v_gen and b.job_id = c.job_id
                limit 1) j
             order by c.position;
            get diagnostics v_count = row_count;
            v_left := v_left - v_count;
            -- Nobody has raised this mark for long: the daemon is down, or this lane was idle.
            if v_count > 0 and v_raised_at < v_now - interval '1 second' then
                perform raise_lane(v_lane);
            end if;
            exit when v_left <= 0;
            v_last := v_lane;
            v_lane := null;
            select k.lane, k.low, k.raised_at into v_lane, v_low, v_raised_at
              from mark k
             where k.lane > v_last and k.lane <= (v_queue_id << 16) + 65535
             order by k.lane, k.low desc
             limit 1;
        end loop;
        -- Too little: what is due is made ready here, unless the daemon is alive and something was found.
        exit when v_left <= 0 or v_round = 2;
        exit when v_left < $4 and pg_sequence_last_value('{{.schema}}.beat'::regclass)
            > (date_part('epoch', v_now) * 1000)::bigint - 2000;
        exit when not tend(v_queue_id, v_left);
        select k.lane, k.low, k.raised_at into v_lane, v_low, v_raised_at
          from mark k
         where k.lane >= v_queue_id << 16 and k.lane <= (v_queue_id << 16) + 65535
         order by k.lane, k.low desc
         limit 1;
    end loop;
