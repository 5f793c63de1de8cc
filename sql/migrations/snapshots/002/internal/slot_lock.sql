{{- /* The lock of a slot of a limit, tried, kept until the transaction ends. A holder has at most 10000 slots. */ -}}
pg_try_advisory_xact_lock(hashtext('{{.schema}}:limit'), hashint8(({{.holder}} << 14) # {{.slot}}))
{{- /* */ -}}
