{{- /* The leases that a call acks, ids ascending: found by key, since an ack that waits for a heartbeat must
follow the row to its new version. .ids and .tokens are the arguments; v_lease is the token of all of them, where
they come from one call. */ -}}
        delete from leased l
         where l.job_id = any ({{.ids}})
           and case when v_lease is not null then l.token = v_lease
                when (l.job_id, l.token) in (
                 select u.job_id, u.token from unnest({{.ids}}, {{.tokens}}) u(job_id, token))
                then true end
        returning l.job_id, l.token, l.lane, l.attempt, l.lost, l.leased_at, l.worker_id, l.kept, l.restricted, l.linked
