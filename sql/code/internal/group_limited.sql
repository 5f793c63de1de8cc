{{- /* Is there more to a group than one at a time: a rule or a throttle of a group in its queue, or
slots that a rule of before has left? .group and .queue are its ids. */ -}}
exists (
            select from {{.schema}}.limit_rule r where r.queue_id = {{.queue}} and r.group_id > 0)
        or exists (select from {{.schema}}.throttled t where t.queue_id = {{.queue}} and t.group_id > 0)
        or exists (select from {{.schema}}.group_slot x where x.group_id = {{.group}} and x.slot > 0)
{{- /* */ -}}
