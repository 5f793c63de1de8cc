{{- /* Is a job over, as far as this snapshot sees? Null: no row of it is left. .id is its id;
.open what is said of one, j, that is not: false, unless something else is given. */ -}}
coalesce(
                        (select true from {{.schema}}.finished f where f.job_id = {{.id}} limit 1),
                        (select true from {{.schema}}.dead d where d.job_id = {{.id}} limit 1),
                        (select {{or .open "false"}} from {{.schema}}.job j where j.job_id = {{.id}} limit 1))
