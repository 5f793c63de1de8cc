{{- /* The token of a lease at that moment: quarters of a microsecond since 2026, the last four bits a count. Rises with the
clock, so that it can't come back after a crash, is below 2^53 till 2097, and is another call's only if sixteen begin
within the same four microseconds. slot_start reads the clock back. Arguments: the schema, and at. */ -}}
((((date_part('epoch', {{.at}}) * 1000000)::bigint - 1767225600000000) >> 2) << 4)
        | (nextval('{{.schema}}.token') & 15)
{{- /* */ -}}
