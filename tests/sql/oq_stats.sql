-- oq_stats: counts, age and rates.

select is_empty('select * from oq_stats()', 'no queues');
select is_empty('select * from oq_stats(''q'')', 'an unknown queue');
select oq_create_queue('empty') as x \gset
select results_eq('select * from oq_stats(''empty'')', $$values ('empty', false, 0, 0, 0, 0, 0, 0,
    0.000, 0.0, 0.0)$$, 'an empty one');

select array_agg(oq_enqueue('q', priority => i % 3)) as x from generate_series(1, 10) i \gset
select oq_enqueue('q', run_at => now() + interval '1 h') as x \gset
select array_agg(job_id) as ids, array_agg(lease_token) as tokens from oq_lease('q', max_jobs => 5)
    \gset
select oq_ack((:'ids'::bigint[])[1], (:'tokens'::bigint[])[1]),
    oq_ack((:'ids'::bigint[])[2], (:'tokens'::bigint[])[2]),
    oq_nack((:'ids'::bigint[])[3], (:'tokens'::bigint[])[3], retry => false),
    oq_cancel((:'ids'::bigint[])[4]), oq_pause('q') \g /dev/null
select results_eq('select queue_name, paused, ready, scheduled, waiting, leased, dead, completed
    from oq_stats(''q'')',
    $$values ('q', true, 5, 1, 0, 1, 1, 2)$$, 'each state');
select results_eq('select queue_name from oq_stats()', $$values ('empty'), ('q')$$,
    'all queues, by name');
select results_eq('select * from oq_stats() where queue_name = ''empty''',
    'select * from oq_stats(''empty'')', 'all is each');
select ok(enqueued_per_second between 0.1 and 11 and completed_per_second between 0.1 and 11,
    'rates of the last ten seconds') from oq_stats('q');

-- The age is that of the first ready job.
select oq_enqueue('age') as a, oq_enqueue('age') as b, oq_enqueue('age', priority => 5) as c \gset
update oq.job set created_at = clock_timestamp() - case job_id when :a then
    interval '100 s' when :b then '50 s' else '10 s' end where job_id in (:a, :b, :c);
select ok(oldest_ready_seconds between 100 and 110, '100 s, though not first in priority')
    from oq_stats('age');
select count(*) as x from oq_lease('age', max_jobs => 2) \gset
select ok(oldest_ready_seconds between 50 and 60, '50 s when that is leased') from oq_stats('age');
select oq_enqueue('due', run_at => now() + interval '1 h') as x \gset
select is((select oldest_ready_seconds from oq_stats('due')), 0.000, 'none is ready');
update oq.job set created_at = created_at - interval '1 day', run_at = clock_timestamp()
    where queue_id = (select queue_id from oq.queue where queue_name = 'due');
select tap.pass_delays(), oq_promote() \g /dev/null
select ok(oldest_ready_seconds < 5, 'ready since it was due, not since it was enqueued')
    from oq_stats('due');

-- keep none is not counted.
select oq_create_queue('none', '{"keep": "none"}') as x, oq_enqueue('none') as y \gset
select oq_ack(job_id, lease_token) from oq_lease('none') \g /dev/null
select is((select completed from oq_stats('none')), 0::bigint, 'what is not kept is not counted');
select is((select completed_per_second > 0 from oq_stats('none')), true, 'but is in the rate');

select throws_ok(format('select * from oq_stats(%L)', n), 'OQ001', 'queue_name%',
    'queue_name ' || n) from unnest(array['', 'a b', repeat('a', 58)]) n;

select finish();
