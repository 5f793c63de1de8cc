{{- /* The lease of one claimed job, whose row is expected in the generation given. */ -}}
                with taken as (
                    insert into leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost, kept,
                        restricted, linked, worker_id, job_expires_at)
                    values (v_job_id, v_job_token, v_lane, v_at + v_seconds * interval '1 second', v_at,
                        v_attempt, v_failed, v_lost, v_kept, v_restricted, v_linked, $2, v_job_expires_at)
                )
                select v_job_id, v_job_token, $1, a.payload, a.headers, (32767 - (v_lane & 65535))::int,
                    v_attempt, coalesce(a.max_retries, v_max_retries), a.group_key, a.created_at,
                    v_at + v_seconds * interval '1 second'
                  from job_{{.}} a
                 where a.job_id = v_job_id;
