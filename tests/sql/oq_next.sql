-- oq_next: acks the last jobs and leases the next.

select count(oq_enqueue('q', to_jsonb(i))) as x from generate_series(1, 6) i \gset
select job_id as a, lease_token as ta, payload from oq_next('q', 'w') \gset
select is(:'payload'::jsonb, '1', 'nothing to ack: a lease');
select job_id as b, lease_token as tb, payload, attempt from oq_next('q', 'w', 60, 1, array[:a],
    array[:ta]) \gset
select is(array[:'payload', :'attempt'], '{2,1}', 'the next');
select results_eq(format('select state, result, worker_id from oq_get(%s)', :a),
    $$values ('completed', null::jsonb, 'w')$$, 'the last is acked');
select ok((select abs(extract(epoch from lease_expires_at - clock_timestamp()) - 60) < 5
    from oq_get(:b)), 'lease_seconds');
select array_agg(job_id) as ids, array_agg(lease_token) as tokens, array_agg(payload) as payloads
    from oq_next('q', 'w', null, 3, array[:b], array[:tb]) \gset
select is(:'payloads', '{3,4,5}', 'three');
select is((select array_agg(payload::text) from oq_next('q', null, null, 9, :'ids', :'tokens')),
    '{6}', 'three acked, what is left leased');
select is((select completed from oq_stats('q')), 5::bigint, 'five are completed');
select is_empty('select from oq_next(''q'')', 'nothing is left');

-- Lost leases change nothing, and do not keep the next from being leased.
select count(oq_enqueue('l', to_jsonb(i))) as x from generate_series(1, 5) i \gset
select job_id as a, lease_token as ta from oq_lease('l') \gset
select is((select payload from oq_next('l', acked_job_ids => array[:a],
    acked_tokens => array[:ta + 1])), '2'::jsonb, 'another token');
select is(tap.state_of(:a), 'leased', 'is no ack');
select is((select payload from oq_next('l', acked_job_ids => array[:a, :a],
    acked_tokens => array[:ta + 1, 0])), '3'::jsonb, 'two that are lost');
select is((select payload from oq_next('l', acked_job_ids => array[null, null]::bigint[],
    acked_tokens => array[null, null]::bigint[])), '4'::jsonb, 'nulls');
select is((select payload from oq_next('l', acked_job_ids => array[null]::bigint[],
    acked_tokens => array[null]::bigint[])), '5'::jsonb, 'a null');
select is(tap.state_of(:a), 'leased', 'still leased');
select is_empty(format('select from oq_next(''l'', acked_job_ids => array[%s, 0],
    acked_tokens => array[%s, 0])', :a, :ta), 'one of two');
select is(tap.state_of(:a), 'completed', 'is acked');

-- The ack counts although there is nothing to lease: an empty, unknown or paused queue, and
-- another than the job's.
select array_agg(oq_enqueue('other')) as x, oq_enqueue('paused') as y, oq_pause('paused') as z
    from generate_series(1, 3) \gset
select array_agg(job_id) as ids, array_agg(lease_token) as tokens
    from oq_lease('other', max_jobs => 3) \gset
select is_empty(format('select from oq_next(%L, acked_job_ids => (%L::bigint[])[%s:%3$s],
    acked_tokens => (%L::bigint[])[%3$s:%3$s])',
    q, :'ids', n, :'tokens'), 'nothing from ' || q) from (values ('other', 1), ('nowhere', 2),
    ('paused', 3)) v(q, n);
select is((select completed from oq_stats('other')), 3::bigint, 'all three are completed');
select is_empty('select from oq_queues where queue_name = ''nowhere''', 'and no queue was made');

-- Bad input: neither acked nor leased.
select oq_enqueue('b') as x, oq_enqueue('b') as y \gset
select job_id as j, lease_token as t from oq_lease('b') \gset
select throws_ok(format('select oq_next(''b'', %s)', replace(replace(a, 'J', :'j'), 'T', :'t')),
    'OQ001', m, a)
  from (values ('acked_job_ids => ''{J}''', 'acked_tokens%null%'),
      ('acked_tokens => ''{T}''', 'acked_job_ids%null%'),
    ('acked_job_ids => ''{J}'', acked_tokens => ''{}''', 'acked_tokens%0%'),
    ('acked_job_ids => ''{}'', acked_tokens => ''{T}''', 'acked_tokens%1%'),
    ('acked_job_ids => ''{J,J}'', acked_tokens => ''{T}''', 'acked_tokens%1%'),
    ('acked_job_ids => ''{{J,J}}'', acked_tokens => ''{T,T}''', 'acked_job_ids%dimensions%'),
    ('acked_job_ids => ''{J,J}'', acked_tokens => ''{{T,T}}''', 'acked_tokens%dimensions%'),
    ('acked_job_ids => ''{J}'', acked_tokens => ''{T}'', max_jobs => 0', 'max_jobs%0%'),
    ('acked_job_ids => ''{J}'', acked_tokens => ''{T}'', max_jobs => 10001', 'max_jobs%10001%'),
    ('acked_job_ids => ''{J}'', acked_tokens => ''{T}'', max_jobs => null', 'max_jobs%null%'),
    ('acked_job_ids => ''{J}'', acked_tokens => ''{T}'', lease_seconds => -1', 'lease_seconds%-1%'),
    ('acked_job_ids => ''{J}'', acked_tokens => ''{T}'', worker_id => repeat(''w'', 201)',
    'worker_id%www%')) v(a, m);
select throws_ok(format('select oq_next(''b'', acked_job_ids => array_fill(%s, ''{10001}''),
    acked_tokens => array_fill(%s, ''{10001}''))', :j, :t),
    'OQ001', '%10001%', '10001 to ack');
select refuses_bad_names(format('select oq_next(%%L, acked_job_ids => ''{%s}'',
    acked_tokens => ''{%s}'')', :j, :t));
select is((select count(*) from oq_next('b', acked_job_ids => '{}', acked_tokens => '{}')),
    1::bigint, 'empty arrays');

-- A rollback takes both back.
select oq_enqueue('tx') as x, oq_enqueue('tx') as y \gset
select job_id as j, lease_token as t from oq_lease('tx') \gset
begin;
select count(*) as x from oq_next('tx', acked_job_ids => array[:j], acked_tokens => array[:t]) \gset
rollback;
select results_eq('select ready, leased, completed from oq_stats(''tx'')', 'values (1, 1, 0)',
    'rolled back');

-- keep none.
select oq_create_queue('none', '{"keep": "none"}') as x, array_agg(oq_enqueue('none')) as y
    from generate_series(1, 3) \gset
select job_id as j, lease_token as t from oq_lease('none') \gset
select array_agg(job_id) as ids, array_agg(lease_token) as tokens
    from oq_next('none', max_jobs => 2, acked_job_ids => array[:j], acked_tokens => array[:t]) \gset
select is_empty(format('select from oq_next(''none'', acked_job_ids => %L, acked_tokens => %L)',
    :'ids', :'tokens'), 'two more');
select is_empty('select from oq_jobs where queue_name = ''none''', 'nothing is kept');

-- Errors name the arguments of this call.
select throws_ok('select oq_next(''q'', ' || a || ')', 'OQ001', m, a)
  from (values ('acked_job_ids => ''{1}''', 'acked_tokens must not be null'),
    ('acked_tokens => ''{1}''', 'acked_job_ids must not be null'),
    ('acked_job_ids => ''{1}'', acked_tokens => ''{1,2}''', 'acked_tokens must not be 2 long'),
    ('acked_job_ids => ''{{1},{2}}'', acked_tokens => ''{{1},{2}}''', 'acked_job_ids must not be of several dimensions')) v(a, m);
begin isolation level repeatable read;
select throws_ok('select oq_next(''q'', acked_job_ids => ''{1,2}'', acked_tokens => ''{1,2}'')', '40001',
    'could not tell in this snapshot whether all of the jobs are leased', 'an old snapshot');
rollback;

select finish();
