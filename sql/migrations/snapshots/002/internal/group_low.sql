{{- /* Up to which position all of a group has been let in: the highest low of its slots, from slot to slot,
each entered at its newest row. .group is the group. */ -}}
(with recursive s as (
                    (select x.slot, x.low from {{.schema}}.group_slot x
                      where x.group_id = {{.group}}
                      order by x.slot, x.version desc
                      limit 1)
                    union all
                    select n.slot, n.low
                      from s
                     cross join lateral (
                        select x.slot, x.low from {{.schema}}.group_slot x
                         where x.group_id = {{.group}} and x.slot > s.slot
                         order by x.slot, x.version desc
                         limit 1) n)
                select coalesce(max(s.low), 0) from s)
{{- /* */ -}}
