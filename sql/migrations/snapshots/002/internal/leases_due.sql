{{- /* Is it time to look for expired leases? .at is now; .late, in milliseconds, how long this may be left to others. */ -}}
(pg_sequence_last_value('{{.schema}}.reap_after'::regclass) - (date_part('epoch', {{.at}}) * 1000)::bigint
        not between -{{.late}} and 60000)
{{- /* */ -}}
