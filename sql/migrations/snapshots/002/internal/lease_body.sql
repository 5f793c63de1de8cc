{{- /* The body shared by oq_lease and oq_next: arguments $1 to $4 are the same in both. The plain case is
two statements and few expressions: each is set up anew in every transaction. */ -}}
    select q.queue_id, q.restricted, q.paused, q.keep <> 'none', q.linked or q.limited, q.limited, q.max_retries,
        coalesce($3, q.lease_seconds),
        coalesce($3 between 1 and 604800, true) and $4 between 1 and 10000 and not q.restricted and not q.paused and not q.limited
            and coalesce(length($2) <= 200, true)
            and current_setting('{{.schema}}.instance', true) = '1'
            and (m.raised_at > clock_timestamp() - interval '1 second'
                or {{template "internal/ticking.sql" .schema}}),
        m.lane, m.low, m.raised_at > clock_timestamp() - interval '1 second', $4, clock_timestamp(),
        {{template "internal/new_token.sql" dict "schema" .schema "at" "clock_timestamp()"}},
        pg_sequence_last_value('generation'::regclass),
        case when $4 > 1 then (
            select true from mark k where k.lane > m.lane and k.lane <= (q.queue_id << 16) + 65535 limit 1) end
      into v_queue_id, v_restricted, v_paused, v_kept, v_linked, v_limited, v_max_retries, v_seconds, v_plain,
        v_lane, v_low, v_fresh, v_left, v_now, v_token, v_gen, v_more
      from queue q
      left join lateral (
        select k.lane, k.low, k.raised_at from mark k
         where k.lane >= q.queue_id << 16 and k.lane <= (q.queue_id << 16) + 65535
         order by k.lane, k.low desc
         limit 1) m on true
     where q.queue_name = $1 collate "C"
     order by q.version desc, q.row_id
     limit 1;
    if v_plain is not true then
        if not may_lease($1, $2, $3, $4, v_queue_id, v_restricted, v_paused) then
            return;
        elsif v_limited and (
            -- A queue had limits, or was throttled: does anything bind now?
            exists (select from limit_rule r where r.queue_id = v_queue_id and r.group_id = 0)
            or coalesce((
                select t.until from throttled t
                 where t.queue_id = v_queue_id and t.group_id = 0
                 order by t.throttle_id desc
                 limit 1) > clock_timestamp(), false))
        then
            return query
            select * from lease_limited($1, $2, v_seconds, $4, v_queue_id, v_kept, v_restricted, v_max_retries);
            return;
        elsif v_fresh is not true and not {{template "internal/ticking.sql" .schema}} then
            -- Nobody ticks, nobody has leased for a second: what is due may be of a higher priority than what is ready.
            v_tended := tend(v_queue_id, $4, v_linked) is not null;
        end if;
        v_now := clock_timestamp();
        v_token := {{template "internal/new_token.sql" dict "schema" .schema "at" "v_now"}};
    end if;

    loop
        if $4 = 1 then
            -- One job: statements of its own, as short as they can be.
            delete from ready r
             where r.ctid = (
                select x.ctid
                  from ready x
                 where x.lane = v_lane and x.position >= v_low
                   and (x.expires_at is null or x.expires_at > v_now)
                 order by x.position
                 limit 1
                   for update skip locked)
            returning r.job_id, coalesce(r.attempt, 0) + 1, coalesce(r.failed, 0::smallint), coalesce(r.lost, 0::smallint), r.expires_at,
                -- A job of a group with a rate begins after the moment at which its slot was seen free.
                case when v_linked then clock_timestamp() else v_now end,
                greatest(case when v_linked then {{template "internal/new_token.sql" dict "schema" .schema "at" "clock_timestamp()"}}
                    else v_token end, r.token + 1)
              into v_job_id, v_attempt, v_failed, v_lost, v_job_expires_at, v_at, v_job_token;
            if v_job_id is null then
                v_count := 0;
            else
                {{range $gen := list 0 1 2}}{{if eq $gen 2}}else{{else}}{{if $gen}}els{{end}}if v_gen = {{$gen}} then{{end}}
                return query
{{template "internal/lease_one.sql" $gen}}
                {{end}}end if;
                get diagnostics v_count = row_count;
                if v_count = 1 and v_fresh and v_left = 1 then
                    return;
                elsif v_count = 0 then
                    -- Enqueued in an earlier generation.
                    return query
                    select l.job_id, l.token, $1, a.payload, a.headers, (32767 - (v_lane & 65535))::int, l.attempt,
                        coalesce(a.max_retries, v_max_retries), a.group_key, a.created_at, l.expires_at
                      from leased l
                      join job a on a.job_id = l.job_id
                     where l.job_id = v_job_id
                     limit 1;
                    v_count := 1;
                end if;
            end if;
        else
            {{range $gen := list 0 1 2}}{{if eq $gen 2}}else{{else}}{{if $gen}}els{{end}}if v_gen = {{$gen}} then{{end}}
            return query
{{template "internal/lease_claim.sql" dict "schema" $.schema "gen" $gen}}
            {{end}}end if;
            get diagnostics v_count = row_count;
        end if;
        -- Enough; or all that there is in the only lane, and the last tick is so young that nothing else can have become due.
        if v_fresh and (v_count = v_left or v_count > 0 and v_more is null
            and pg_sequence_last_value('beat'::regclass) > (date_part('epoch', v_now) * 1000)::bigint - 50)
        then
            return;
        end if;
        -- Nobody has raised this mark for long: the daemon is down, or the lane was idle.
        if v_count > 0 and not v_fresh then
            perform advance_alone();
            perform raise_lane(v_lane);
        end if;
        v_left := v_left - v_count;
        exit when v_left = 0;
        v_last := v_lane;
        v_lane := null;
        if v_last < (v_queue_id << 16) + 65535 then
            select k.lane, k.low, k.raised_at > v_now - interval '1 second' into v_lane, v_low, v_fresh
              from mark k
             where k.lane > v_last and k.lane <= (v_queue_id << 16) + 65535
             order by k.lane, k.low desc
             limit 1;
        end if;
        continue when v_lane is not null;

        -- Too little: what is due is made ready here, once; unless something was found and the last tick is
        -- so young that nothing else can have become due.
        exit when v_tended or v_left < $4
            and pg_sequence_last_value('beat'::regclass) > (date_part('epoch', v_now) * 1000)::bigint - 50;
        v_tended := true;
        exit when not tend(v_queue_id, v_left, v_linked);
        -- What was taken back, or has come due, was so after the clock was read.
        v_now := clock_timestamp();
        v_token := {{template "internal/new_token.sql" dict "schema" .schema "at" "v_now"}};
        select k.lane, k.low, true into v_lane, v_low, v_fresh
          from mark k
         where k.lane >= v_queue_id << 16 and k.lane <= (v_queue_id << 16) + 65535
         order by k.lane, k.low desc
         limit 1;
    end loop;
