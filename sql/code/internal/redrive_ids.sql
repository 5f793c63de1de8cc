{{- /* The jobs that the filter of oq_redrive takes, ids ascending: of dead, or with .cancelled of finished. With
.lock their rows are locked, and those of job as well: oq_rotate, which moves them, tries again later. */ -}}
array(
                select d.job_id
                  from {{if .cancelled}}finished{{else}}dead{{end}} d
                  join job j on j.job_id = d.job_id
                 where d.queue_id = v_queue.queue_id
                   {{if .cancelled}}and d.outcome = 'cancelled' and d.kept and d.finished_at >= v_queue.created_at
                   and (v_reason is null or d.error = v_reason)
                   and d.finished_at >= v_since and d.finished_at < v_until
                   {{else}}and (v_reason is null or d.reason = v_reason)
                   and d.died_at >= v_since and d.died_at < v_until
                   {{end}}and (v_job_ids is null or d.job_id = any (v_job_ids))
                   and (v_error is null or strpos(d.error, v_error collate "C") > 0)
                   and (v_payload is null or j.payload @> v_payload)
                 order by d.job_id
                 limit v_limit{{if .lock}}
                   for update of d, j skip locked{{end}})
{{- /* */ -}}
