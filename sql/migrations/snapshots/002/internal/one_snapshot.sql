{{- /* Does the transaction keep one snapshot (REPEATABLE READ, SERIALIZABLE)? Then it sees nothing of what was
committed since, and whatever it finds missing may be there. */ -}}
(current_setting('transaction_isolation') not in ('read committed', 'read uncommitted'))
{{- /* */ -}}
