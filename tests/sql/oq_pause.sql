-- oq_pause, oq_resume: nothing is leased from a paused queue; everything else goes on.

select oq_enqueue('q') as a, oq_enqueue('q') as b \gset
select lease_token as t from oq_lease('q') \gset
select is(oq_pause('q')::text, '', 'pause');
select is((select paused from oq_queues), true, 'is shown');
select unchanged('select oq_lease(''q''), oq_next(''q'')', '{}', 'no lease');
select is(oq_heartbeat(:a, :t), 'ok', 'what is held goes on');
select is(oq_ack(:a, :t), true, 'to its end');
select ok(oq_enqueue('q') > 0, 'producers go on');
select is(oq_pause('q')::text, '', 'pause twice');
select oq_create_queue('q', '{"max_retries": 1}') as x \gset
select is((select paused from oq_queues), true, 'a change of options leaves it paused');
select oq_enqueue('other') as x \gset
select is((select count(*) from oq_lease('other')), 1::bigint, 'another queue is not');
select is(oq_resume('q')::text, '', 'resume');
select is((select count(*) from oq_lease('q', max_jobs => 9)), 2::bigint, 'leased again');
select is(oq_resume('q')::text, '', 'resume twice');

select refuses_bad_names('select oq_pause(%L)');
select refuses_bad_names('select oq_resume(%L)');
select throws_ok('select oq_pause(''nowhere'')', 'OQ003', '%nowhere%', 'pause an unknown queue');
select throws_ok('select oq_resume(''nowhere'')', 'OQ003', '%nowhere%', 'resume an unknown queue');
select oq_create_queue('gone'), oq_drop_queue('gone') \g /dev/null
select throws_ok('select oq_pause(''gone'')', 'OQ003', '%gone%', 'pause a dropped queue');

select finish();
