{{- /* Where a look at todo begins, since what died before is not to be walked each time: the first tick of a second sets it.
Where nobody ticks, at the first. */ -}}
case when {{template "internal/ticking.sql" .schema}}
        then timestamptz 'epoch' + pg_sequence_last_value('{{.schema}}.todo_low'::regclass) * interval '1 millisecond'
        else '-infinity' end
{{- /* */ -}}
