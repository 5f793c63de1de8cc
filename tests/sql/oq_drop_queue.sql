-- oq_drop_queue: refuses while unfinished jobs are in it, unless forced.

select oq_create_queue('q', '{"max_retries": 9, "restricted": false}') as x \gset
select is(oq_drop_queue('q'), true, 'an empty one');
select is_empty('select from oq_queues', 'is gone');
select is_empty('select from oq_stats()', 'from the statistics, too');
select throws_ok('select oq_drop_queue(''q'')', 'OQ003', '%q%', 'twice');
select is(oq_create_queue('q'), true, 'made again');
select is((select max_retries from oq_queues where queue_name = 'q'), 3, 'with default options');

-- Each unfinished state holds it.
select oq_enqueue('ready') as x, oq_enqueue('scheduled', run_at => now() + interval '1 h') as y,
    oq_enqueue('leased') as z, oq_enqueue('dead') as d \gset
select job_id as held, lease_token as token from oq_lease('leased') \gset
select tap.kill_job('dead', 'e') as x \gset
select throws_ok(format('select oq_drop_queue(%L)', s), '55000', '%' || s || '%',
    'a queue with a ' || s || ' job') from unnest('{ready,scheduled,leased,dead}'::text[]) s;
select is(oq_drop_queue(s, force => true), true, 'forced, with a ' || s || ' job')
    from unnest('{ready,scheduled,leased,dead}'::text[]) s;
select is((select count(*) from oq_queues), 1::bigint, 'only q is left');
select is_empty('select from oq_jobs', 'no job is left');
select is_empty('select job_id from oq.job union all select job_id from oq.attempt',
    'nor its rows');
select unchanged(format('select oq_ack(%s, %s), oq_heartbeat(%1$s, %2$s)', :held, :token),
    '{"(f,lost)"}', 'its worker finds the lease lost');

-- Finished jobs don't hold it, and go with it.
select oq_enqueue('f') as f \gset
select oq_ack(job_id, lease_token, '1') from oq_lease('f') \g /dev/null
select is(oq_drop_queue('f'), true, 'a queue with a finished job');
select is_empty(format('select * from oq_result(%s)', :f), 'which is gone');
select oq_enqueue('f') as f2 \gset
select results_eq('select job_id from oq_jobs where queue_name = ''f''', format('values (%s)', :f2),
    'also when the queue is there again');
select is((select completed from oq_stats('f')), 0::bigint, 'and from its counts');

-- A dropped queue is made again by its next job, with defaults, not paused, without its grants.
select oq_create_queue('g', '{"lease_seconds": 99, "restricted": true}'), oq_pause('g'),
    oq_grant('g', 'oq_worker', '{consume}'), oq_drop_queue('g') \g /dev/null
select oq_enqueue('g') as x \gset
select is((select lease_seconds from oq_queues
    where queue_name = 'g' and not paused and not restricted), 30, 'as if new');
select is((select count(*) from oq_lease('g')), 1::bigint, 'leased from');
select is((select count(*) from oq.queue_grant), 0::bigint, 'no grants');

-- Bad input.
select refuses_bad_names('select oq_drop_queue(%L)');
select throws_ok('select oq_drop_queue(''nowhere'')', 'OQ003', '%nowhere%', 'an unknown queue');
select throws_ok('select oq_drop_queue(''q'', null)', 'OQ001', 'force%null%', 'force null');

-- A rollback brings all back.
begin;
select oq_drop_queue('g', true) as x \gset
rollback;
select is((select leased from oq_queues where queue_name = 'g'), 1::bigint, 'rolled back');

select finish();
