{{- /* enter(), inlined where every expression counts: a simple expression is set up anew in each
transaction, at a microsecond apiece. The caller has seen that its transaction is young, and read v_epoch. */ -}}
    while pg_advisory_xact_lock_shared(hashtext('{{.schema}}:epoch'), (v_epoch & 2147483647)::int) is null
        or v_epoch <> pg_sequence_last_value('epoch'::regclass)
    loop
        v_epoch := pg_sequence_last_value('epoch'::regclass);
    end loop;
