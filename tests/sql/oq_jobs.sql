-- oq_jobs, oq_queues, oq_dead, oq_workers: the views, beyond what the other files ask them.

select oq_enqueue('q', '"ready"') as ready, oq_enqueue('q', '"scheduled"',
    run_at => now() + interval '1 h') as scheduled, oq_enqueue('c', '"completed"') as completed,
    oq_enqueue('d', '"dead"', 5, max_retries => 8, headers => '{"h": 1}') as dead,
    oq_enqueue('q', '"cancelled"') as cancelled,
    oq_enqueue('q', '"expired"', options => '{"expires_at": "2000-01-01"}') as expired,
    oq_enqueue('l', '"leased"') as leased \gset
select oq_ack(job_id, lease_token, '"r"') from oq_lease('c', 'w') \g /dev/null
select oq_nack(job_id, lease_token, 'boom', retry => false) from oq_lease('d', 'w') \g /dev/null
select oq_cancel(:cancelled, 'why'), oq_expire() \g /dev/null
select count(*) from oq_lease('l', 'w', 60) \g /dev/null
select results_eq('select job_id, payload #>> ''{}'' from oq_jobs where payload #>> ''{}'' = state
    order by 1',
    format('select i, s from unnest(array[%s, %s, %s, %s, %s, %s, %s],
    ''{ready,scheduled,completed,dead,cancelled,expired,leased}''::text[]) x(i, s) order by 1',
        :ready, :scheduled, :completed, :dead, :cancelled, :expired, :leased), 'each state');
select is((select count(*) from oq_jobs), 7::bigint, 'each job once');
select is((select array_agg(job_id) from oq_jobs where job_id = j), array[j]::bigint[],
    'by id: ' || j) from unnest(array[:ready, :scheduled, :completed, :dead, :cancelled, :expired,
    :leased]) j;

-- Columns that only some states have.
select is((select array_agg(state order by state) from oq_jobs where lease_expires_at is not null),
    '{leased}', 'lease_expires_at');
select is((select array_agg(state order by state) from oq_jobs where finished_at is not null),
    '{cancelled,completed,dead,expired}', 'finished_at');
select is((select array_agg(state order by state) from oq_jobs where worker_id = 'w'),
    '{completed,dead,leased}', 'worker_id');
select is((select array_agg(state || ' ' || error order by state) from oq_jobs
    where error is not null), '{"cancelled why","dead boom"}', 'error');
select is((select array_agg(state order by state) from oq_jobs where result is not null),
    '{completed}', 'result');
select is((select array_agg(state order by state) from oq_jobs where reason is not null), '{dead}',
    'reason');
select is((select array_agg(state order by state) from oq_jobs where run_at is not null),
    '{scheduled}', 'run_at');

-- The same job through its places: fresh, back in ready, with another priority.
select oq_nack(job_id, lease_token, 'e', retry_after => '0') from oq_lease('q') \g /dev/null
select results_eq(format('select state, attempt, error from oq_jobs where job_id = %s', :ready),
    $$values ('ready', 1, 'e')$$, 'one that came back');
select oq_update(:ready, '{"priority": -7}') as x \gset
select results_eq(format('select state, priority from oq_jobs where job_id = %s', :ready),
    $$values ('ready', -7)$$, 'with another priority');
select is((select count(*) from oq_jobs where job_id = :ready), 1::bigint, 'once');

-- The last error outlives the end of a job that failed before; a reason goes before it.
select oq_enqueue('end', '"late"', options => '{"ttl": "1 day"}') as late,
    oq_enqueue('end', '"given up"', max_retries => 0) as up, oq_enqueue('end', '"said"') as said, oq_enqueue('end', '"well"') as well,
    oq_enqueue('end', '"never"') as never, oq_enqueue('end', '"held"') as held \gset
select count(oq_nack(job_id, lease_token, 'smtp 421', retry_after => '0')) from oq_lease('end', max_jobs => 6)
    where job_id <> :never \g /dev/null
select oq_cancel(:up), oq_cancel(:said, 'by hand') \g /dev/null
update oq.ready set expires_at = '2000-01-01' where job_id = :late;
update oq.ttl set expires_at = clock_timestamp() - interval '1 us' where job_id = :late;
select oq_expire() \g /dev/null
select count(*) from oq_lease('end', 'w', max_jobs => 2) \g /dev/null
select oq_ack(job_id, token) from oq.leased where job_id = :well \g /dev/null
select oq_cancel(:held), oq_cancel(:never) \g /dev/null
select results_eq('select payload #>> ''{}'', state, error from oq_jobs where queue_name = ''end'' order by job_id',
    $$values ('late', 'expired', 'smtp 421'), ('given up', 'cancelled', 'smtp 421'), ('said', 'cancelled', 'by hand'),
    ('well', 'completed', null), ('never', 'cancelled', null), ('held', 'cancelled', 'smtp 421')$$, 'the last error');
select results_eq(format('select state, error from oq_result(%s)', :late), $$values ('expired', 'smtp 421')$$, 'oq_result');
select results_eq(format('select outcome, error from oq_attempts(%s)', :held),
    $$values ('failed', 'smtp 421'), ('cancelled', null)$$, 'an attempt that was cancelled has not the error of another');
select results_eq(format('select outcome, error from oq_attempts(%s)', :said), $$values ('failed', 'smtp 421')$$,
    'nor has one the reason of a cancel');
select oq_enqueue('child', options => jsonb_build_object('depends_on', array[:late, :said], 'on_parent_failure', 'run')) as c \gset
select results_eq(format('select state, error from oq_parents(%s)', :c),
    $$values ('expired', 'smtp 421'), ('cancelled', 'by hand')$$, 'oq_parents');
select is(detail, 'its time to live passed while no worker held it', 'oq_explain')
    from oq_explain(:late) where step = 'verdict';

-- oq_dead.
select results_eq('select job_id, queue_name, reason, error, attempt, max_retries, failures,
    lost_leases, worker_id, priority, payload, headers, died_at >= created_at from oq_dead',
    format($$values (%s, 'd', 'no_retry', 'boom', 1, 8, 1, 0, 'w', 5, '"dead"'::jsonb,
    '{"h": 1}'::jsonb, true)$$, :dead), 'oq_dead');

-- oq_workers: by worker and queue.
select array_agg(oq_enqueue('l')) as x from generate_series(1, 3) \gset
select count(*) from oq_lease('l', 'w', 120, 2) \g /dev/null
select count(*) from oq_lease('l') \g /dev/null
select results_eq('select worker_id, queue_name, leased, overdue, first_leased_at < last_leased_at,
    next_expiry_at < clock_timestamp() + interval ''61 s'' from oq_workers order by 1',
    $$values ('w', 'l', 3, 0, true, true), (null, 'l', 1, 0, false, true)$$, 'oq_workers');
select tap.pass_leases();
select is((select sum(overdue) from oq_workers), 4::numeric, 'overdue, until they are taken back');
select oq_reap() \g /dev/null
select is_empty('select from oq_workers', 'nobody holds a job');

-- oq_queues.
select results_eq('select queue_name, ready, scheduled, leased, dead from oq_queues order by 1',
    $$values ('c', 0, 0, 0, 0), ('child', 1, 0, 0, 0), ('d', 0, 0, 0, 1), ('end', 0, 0, 0, 0), ('l', 4, 0, 0, 0), ('q', 1, 1, 0, 0)$$,
    'oq_queues');
select ok(bool_and(created_at between clock_timestamp() - interval '5 min' and clock_timestamp()),
    'created_at') from oq_queues;
select throws_ok('update ' || v || ' set queue_name = ''x''', '55000', '%',
    v || ' can not be written') from unnest('{oq_queues,oq_jobs,oq_dead,oq_workers}'::text[]) v;

select finish();
