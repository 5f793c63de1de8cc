{{- /* Is a job over, as far as this snapshot sees? Null: no row of it is left. The argument is its id. */ -}}
coalesce(
                        (select true from {{.schema}}.finished f where f.job_id = {{.id}} limit 1),
                        (select true from {{.schema}}.dead d where d.job_id = {{.id}} limit 1),
                        (select false from {{.schema}}.job j where j.job_id = {{.id}} limit 1))
