{{- /* The statement of oq_ack_many, with or without .search: where a result stands is looked for by walking the
list of ids, or from some 200 on by a binary search, since the walks together grow with the square. The generation is
read when the first is ended: a lease may have been waited for. */ -}}
        with ended as (
{{template "internal/ack_claim.sql" dict "ids" "oq_ack_many.job_ids" "tokens" "oq_ack_many.lease_tokens"}}        ){{if .search}}
        , given as (
            -- An id that stands there twice has its result beside the token that counts.
            select array_agg(u.job_id order by u.job_id, u.ord desc) as ids,
                array_agg(u.ord::int order by u.job_id, u.ord desc) as ords
              from unnest(oq_ack_many.job_ids, oq_ack_many.lease_tokens) with ordinality u(job_id, token, ord)
             where case when (u.job_id, u.token) in (select e.job_id, e.token from ended e) then true end
        ){{end}}, done as (
            insert into finished (gen, job_id, queue_id, attempt, lost, finished_at, leased_at, outcome, kept,
                linked, worker_id, result)
            select (select pg_sequence_last_value('generation'::regclass))::smallint, e.job_id, e.lane >> 16, e.attempt,
                e.lost, v_now, e.leased_at, 'completed', e.kept, e.linked, e.worker_id,
                case when not e.kept then null
                    {{if .search}}else oq_ack_many.results[array_lower(oq_ack_many.results, 1) - 1
                        + (select g.ords from given g)[width_bucket(e.job_id, (select g.ids from given g))]] end
                    {{else}}when v_twice then (
                        select r.result
                          from unnest(oq_ack_many.job_ids, oq_ack_many.lease_tokens, oq_ack_many.results)
                            r(job_id, token, result)
                         where r.job_id = e.job_id and r.token = e.token
                         limit 1)
                    else oq_ack_many.results[array_position(oq_ack_many.job_ids, e.job_id)
                        + array_lower(oq_ack_many.results, 1) - array_lower(oq_ack_many.job_ids, 1)] end
              {{end}}from ended e
             where case when e.restricted then demand(e.lane >> 16, null, 'consume') else true end
            returning finished.job_id, finished.linked
        )
        select coalesce(array_agg(d.job_id), '{}'), array_agg(d.job_id) filter (where d.linked)
          into v_ids, v_linked
          from done d;
