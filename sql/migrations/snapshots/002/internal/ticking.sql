{{- /* Has anybody ticked within two seconds? A time in the future is that of a clock that was ahead. The argument is the
schema. */ -}}
(pg_sequence_last_value('{{.}}.beat'::regclass) - (date_part('epoch', clock_timestamp()) * 1000)::bigint
        between -2000 and 5000)
{{- /* */ -}}
