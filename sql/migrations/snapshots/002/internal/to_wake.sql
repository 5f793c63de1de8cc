{{- /* Are there sleepers on the queue .queue to be woken, or is that to be found out before the commit? A worker may fall
asleep while a transaction goes on. But where it ends with this statement they are looked for at once: noting the queue would cost
an enqueue a sixth of its speed. A statement that began 200 microseconds after its transaction is not its only one: the
messages of one that is come closer together, and the answer to a BEGIN takes longer, unless the client is on the same machine. */ -}}
(statement_timestamp() > now() + interval '200 us' or not ({{template "internal/nobody_sleeps.sql" .}}))
{{- /* */ -}}
