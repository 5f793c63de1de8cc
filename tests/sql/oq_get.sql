-- oq_get, oq_result, oq_attempts: one job.

select oq_enqueue('q', '"p"', options => '{"tags": ["t"]}') as a \gset
select results_eq(format('select * from oq_get(%s)', :a), format('select * from oq_jobs
    where job_id = %s', :a), 'as in oq_jobs');
select unchanged(format('select * from oq_get(%s)', i), '{}', 'get ' || i)
    from unnest('{0,-1,9223372036854775807,null}'::text[]) i where i is not null;
select unchanged(format('select * from oq_result(%s)', i), '{}', 'result ' || i)
    from unnest('{0,-1,9223372036854775807}'::text[]) i;
select unchanged(format('select * from oq_attempts(%s)', i), '{}', 'attempts ' || i)
    from unnest('{0,-1,9223372036854775807}'::text[]) i;
select unchanged('select * from oq_get(null) g, oq_result(null) r, oq_attempts(null) a', '{}',
    'null');

-- A life: lost, failed, released, completed.
select oq_create_queue('q', '{"retry": {"kind": "fixed", "base": "0"}}') as x \gset
select results_eq(format('select * from oq_result(%s)', :a),
    $$values ('ready', null::jsonb, null::text)$$, 'result of a ready one');
select is_empty(format('select * from oq_attempts(%s)', :a), 'no attempts yet');
select lease_token as t from oq_lease('q', 'w1') \gset
select results_eq(format('select attempt, worker_id, outcome, error, leased_at is not null, ended_at
    from oq_attempts(%s)', :a),
    $$values (1, 'w1', 'leased', null, true, null)$$, 'the one that runs');
select tap.pass_leases(), oq_reap() \g /dev/null
select ok(error like 'lease expired at %' and state = 'ready', 'the lost lease is its error')
    from oq_result(:a);
select lease_token as t from oq_lease('q', 'w2') \gset
select oq_nack(:a, :t, 'boom') as x \gset
select results_eq(format('select * from oq_result(%s)', :a),
    $$values ('ready', null::jsonb, 'boom')$$, 'the last error');
select lease_token as t from oq_lease('q', 'w3') \gset
select is((select error from oq_result(:a)), 'boom', 'also while it runs again');
select oq_release(:a, :t) as x \gset
select lease_token as t from oq_lease('q', 'w4') \gset
select oq_ack(:a, :t, '"r"') as x \gset
select results_eq(format('select attempt, worker_id, outcome, left(error, 17), leased_at <= ended_at
    from oq_attempts(%s)', :a),
    $$values (1, 'w1', 'lost', 'lease expired at ', true), (2, 'w2', 'failed', 'boom', true),
    (3, 'w4', 'completed', null, true)$$,
    'its attempts, in order; the one given back is not counted');
select results_eq(format('select * from oq_result(%s)', :a),
    $$values ('completed', '"r"'::jsonb, null::text)$$, 'completed: the result, no error');
select results_eq(format('select attempt, failures, lost_leases, tags from oq_get(%s)', :a),
    $$values (3, null::int, 1, '{t}'::text[])$$, 'counted');

-- Dead: the last error, and all attempts through a redrive.
select oq_enqueue('d', max_retries => 0) as d \gset
select oq_nack(job_id, lease_token, 'e1') from oq_lease('d', 'w') \g /dev/null
select oq_redrive('d') as x \gset
select oq_nack(job_id, lease_token, 'e2') from oq_lease('d', 'w') \g /dev/null
select results_eq(format('select attempt, outcome, error from oq_attempts(%s)', :d),
    $$values (1, 'failed', 'e1'), (2, 'failed', 'e2')$$, 'attempts go on counting');
select results_eq(format('select state, error from oq_result(%s)', :d), $$values ('dead', 'e2')$$,
    'dead');

select finish();
