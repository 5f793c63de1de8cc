-- oq_create_queue: creates, or changes the options named.

select is(oq_create_queue('q'), true, 'new');
select results_eq('select queue_name, paused, ready, restricted, lease_seconds, max_retries,
    max_lost_leases, retry, retention, keep,
    max_payload_bytes, max_depth, overflow, notify from oq_queues',
    $$values ('q', false, 0, false, 30, 3, 3,
    '{"kind": "exponential", "base": "1 s", "factor": 2, "max": "1 h", "jitter": 0.1}'::jsonb,
    interval '1 day', 'outcome', 1048576, null::int, 'reject', 'wake')$$,
    'defaults');
select is(oq_create_queue('q',
    '{"lease_seconds": 60, "max_retries": 5, "max_lost_leases": 7, "retention": "2 days",
    "keep": "full", "max_payload_bytes": 10, "max_depth": 100, "overflow": "reject",
    "restricted": true, "notify": "daemon", "retry": {"kind": "fixed", "base": "10 s"}}'),
    false, 'there already');
select results_eq('select lease_seconds, max_retries, max_lost_leases, retention, keep,
    max_payload_bytes, max_depth, restricted, notify, retry from oq_queues',
    $$values (60, 5, 7, interval '2 days', 'full', 10, 100, true, 'daemon',
        '{"kind": "fixed", "base": "00:00:10", "factor": 2, "max": "1 h", "jitter": 0.1}'::jsonb)$$,
        'every option');
select is(oq_create_queue('q', '{"lease_seconds": 61}'), false, 'one option');
select results_eq('select lease_seconds, max_retries, keep, restricted from oq_queues',
    $$values (61, 5, 'full', true)$$, 'the others stay');
select unchanged('select oq_create_queue(''q'', ''{}'')', '{(f)}', 'no option');
select unchanged('select oq_create_queue(''q'', ''{"lease_seconds": 61, "keep": "full"}'')',
    '{(f)}', 'options that are so already');
select is(oq_create_queue('q', '{"max_depth": null}'), false, 'max_depth null');
select is((select max_depth from oq_queues), null, 'no limit');
select oq_enqueue('used') as x \gset
select is(oq_create_queue('used', '{"keep": "none"}'), false,
    'a queue that was created by its first job');
select is(oq_create_queue(repeat('q', 57)), true, 'a name of 57');

-- The edges of each option.
select is(oq_create_queue('edge', o), o = '{"lease_seconds": 1}', 'allowed: ' || o::text)
  from unnest(array['{"lease_seconds": 1}', '{"lease_seconds": 604800}', '{"max_retries": 0}',
      '{"max_retries": 32767}', '{"max_lost_leases": 1}',
    '{"max_lost_leases": 32767}', '{"max_payload_bytes": 1}', '{"max_payload_bytes": 104857600}',
    '{"max_depth": 1}', '{"max_depth": 2147483647}',
    '{"retention": "0"}', '{"retention": "3660 days"}', '{"keep": "outcome"}', '{"notify": "wake"}',
    '{"restricted": false}', '{"retry": {}}',
    '{"retry": {"base": "0", "max": "0", "factor": 1, "jitter": 0}}',
    '{"retry": {"base": "3660 days", "factor": 1000, "jitter": 1}}']::jsonb[]) o;

-- Bad input: nothing is created or changed.
select refuses_bad_names('select oq_create_queue(%L)');
select throws_ok(format('select oq_create_queue(%L, %L)', q, o), 'OQ001', m,
    'options ' || coalesce(o, 'null') || ' of ' || q)
  from (values (null, 'options%null%'), ('null', 'options%null%'), ('[]', 'options%[]%'),
      ('"x"', 'options%"x"%'),
    ('{"lease_second": 5}', '%lease_second%'), ('{"lease_seconds": 5, "x": null}', '%x%'),
    ('{"lease_seconds": 0}', '%lease_seconds%0%'), ('{"lease_seconds": -1}', '%lease_seconds%-1%'),
    ('{"lease_seconds": 604801}', '%lease_seconds%604801%'),
    ('{"lease_seconds": null}', '%lease_seconds%null%'), ('{"lease_seconds": 1.5}',
    '%lease_seconds%1.5%'), ('{"lease_seconds": "x"}', '%lease_seconds%x%'),
    ('{"lease_seconds": 1e99}', '%lease_seconds%1000%'), ('{"lease_seconds": []}',
    '%lease_seconds%[]%'), ('{"lease_seconds": true}', '%lease_seconds%true%'),
    ('{"max_retries": -1}', '%max_retries%-1%'), ('{"max_retries": 32768}', '%max_retries%32768%'),
    ('{"max_lost_leases": 0}', '%max_lost_leases%0%'), ('{"max_lost_leases": 32768}',
    '%max_lost_leases%32768%'),
    ('{"max_payload_bytes": 0}', '%max_payload_bytes%0%'), ('{"max_payload_bytes": 104857601}',
    '%max_payload_bytes%104857601%'),
    ('{"max_depth": 0}', '%max_depth%0%'), ('{"max_depth": 2147483648}', '%max_depth%2147483648%'),
    ('{"max_depth": 99999999999}', '%max_depth%99999999999%'),
    ('{"retention": "-1 s"}', '%retention%-1 s%'), ('{"retention": "11 years"}',
    '%retention%11 years%'), ('{"retention": "long"}', '%retention%long%'),
    ('{"retention": null}', '%retention%null%'), ('{"retention": "infinity"}',
    '%retention%infinity%'),
    ('{"keep": "all"}', '%keep%all%'), ('{"keep": null}', '%keep%null%'),
    ('{"notify": "never"}', '%notify%never%'), ('{"overflow": "drop"}', '%overflow%drop%'),
    ('{"restricted": "yes"}', '%restricted%yes%'), ('{"restricted": null}', '%restricted%null%'),
    ('{"retry": null}', 'retry%null%'),
    ('{"retry": "fast"}', 'retry%fast%'), ('{"retry": {"kind": "x"}}', '%kind%x%'),
    ('{"retry": {"try": 1}}', '%try%'), ('{"paused": true}', '%paused%')) v(o, m),
    unnest('{q,fresh}'::text[]) q;
select is_empty('select from oq_queues where queue_name = ''fresh''', 'not created');

-- What makes jobs later opens a dropped one for good at every isolation level.
create table watched_later (id int);
select format('select oq_create_queue(%1$L); select oq_drop_queue(%1$L)', q) from unnest(array['later1', 'later2', 'later3']) q \gexec
begin isolation level repeatable read;
select oq_watch('watched_later', 'later1') \g /dev/null
select oq_schedule('later', '@daily', 'later2') \g /dev/null
commit;
begin isolation level serializable;
select oq_subscribe('later.topic', 'later3') \g /dev/null
commit;
insert into watched_later values (1);
select is((select array_agg(j.queue_name order by j.queue_name) from oq_jobs j where j.queue_name like 'later_'), array['later1'],
    'a watch makes its jobs');
select is_empty($$select queue_name, problem from oq_watches where problem is not null
    union all select queue_name, problem from oq_subscriptions where problem is not null$$, 'and has no problem');
select is((select array_agg(q.queue_name order by q.queue_name) from oq_queues q where q.queue_name like 'later_'),
    array['later1', 'later2', 'later3'], 'so do a schedule and a subscription');
select is(oq_publish('later.topic'), 1, 'which is delivered');
drop table watched_later;

-- A dropped one is made again at every isolation level.
select oq_create_queue('again', '{"max_retries": 5}') as x, oq_drop_queue('again') as y \gset
begin isolation level repeatable read;
select is(oq_create_queue('again', '{"lease_seconds": 9}'), true, 'a dropped one, at REPEATABLE READ');
commit;
select results_eq('select lease_seconds, max_retries from oq_queues where queue_name = ''again''',
    'values (9, 3)', 'is there again');

-- A change holds at once: for the next lease, also of jobs that were there.
select oq_enqueue('now') as x \gset
select oq_create_queue('now', '{"lease_seconds": 500}') as x \gset
select ok(abs(extract(epoch from lease_expires_at - clock_timestamp()) - 500) < 5, 'lease_seconds')
    from oq_lease('now');
-- keep, also for what is leased already.
select oq_create_queue('kept', '{"keep": "none"}') as x, oq_enqueue('kept') as a, oq_enqueue('kept') as b \gset
select lease_token as t from oq_lease('kept', max_jobs => 2) order by job_id limit 1 \gset
select oq_create_queue('kept', '{"keep": "outcome"}') as x \gset
select oq_ack(:a, :t, '"seen"') as x \gset
select is((select result from oq_result(:a)), '"seen"'::jsonb, 'kept from now on');
select oq_create_queue('kept', '{"keep": "none"}') as x \gset
select oq_ack(:b, :t, '"unseen"') as x \gset
select is_empty(format('select from oq_result(%s)', :b), 'kept no more');

select finish();
