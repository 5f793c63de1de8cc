{{- /* Up to which position all of a group has been let in: the highest low of its slots. . is the group. */ -}}
(select coalesce(max(s.low), 0)
                  from generate_series(0, coalesce((
                    select x.slot from {{.schema}}.group_slot x
                     where x.group_id = {{.group}}
                     order by x.slot desc
                     limit 1), 0)) n(slot)
                 cross join lateral (
                    select x.low from {{.schema}}.group_slot x
                     where x.group_id = {{.group}} and x.slot = n.slot
                     order by x.version desc
                     limit 1) s)
{{- /* */ -}}
