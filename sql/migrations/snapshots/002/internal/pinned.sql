{{- /* Functions that find a few rows of large tables: one possible plan (nested loops over indexes), whatever the
statistics said when the session first ran it, and no schema in the path that others can write to. What reads
whole tables says its own settings. */ -}}
security definer
set search_path = pg_catalog, {{.schema}}, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
{{- /* */ -}}
