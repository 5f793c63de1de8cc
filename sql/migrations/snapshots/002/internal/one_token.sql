{{- /* The case of check_leases for two plain arrays of one length, without results: a call and seven expressions less. */ -}}
when {{.results}} is null and array_dims({{.ids}}) = array_dims({{.tokens}}) and array_ndims({{.ids}}) = 1
            and cardinality({{.ids}}) <= 10000
        then case when array_remove({{.tokens}}, ({{.tokens}})[1]) = '{}' then ({{.tokens}})[1] end
{{- /* */ -}}
