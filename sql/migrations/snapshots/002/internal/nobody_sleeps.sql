{{- /* True where nobody sleeps on the queue .queue: the sleeper's lock is tried and dropped in one expression, so
that no cancel can fall between. Text and not a function, for the calls where an expression counts. */ -}}
case
        when pg_try_advisory_lock(hashtext('{{.schema}}:sleeper'), ({{.queue}} & 2147483647)::int)
        then pg_advisory_unlock(hashtext('{{.schema}}:sleeper'), ({{.queue}} & 2147483647)::int)
        else false end
{{- /* */ -}}
