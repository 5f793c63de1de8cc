{{- /* Had nothing moved for ten seconds at the tick of the time .ms, as far as this session knows? */ -}}
({{.ms}} - coalesce(nullif(current_setting('{{.schema}}.moved', true), ''), {{.ms}}::text)::bigint > 10000)
{{- /* */ -}}
