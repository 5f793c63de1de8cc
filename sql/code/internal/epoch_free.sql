{{- /* Has a closed epoch no members any more? Its lock is tried and given back. */ -}}
case when pg_try_advisory_lock(hashtext('{{.schema}}:epoch'), ({{.epoch}} & 2147483647)::int)
    then pg_advisory_unlock(hashtext('{{.schema}}:epoch'), ({{.epoch}} & 2147483647)::int)
    else false end
{{- /* */ -}}
