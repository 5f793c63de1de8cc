-- oq_lease: highest priority first, then first in, first out; never one job to two holders.

select oq_enqueue('q', '{"n": 1}', max_retries => 5, headers => '{"h": 1}') as job \gset
select results_eq('select job_id, lease_token > 0, queue_name, payload, headers, priority, attempt,
    max_retries, group_key,
    created_at <= clock_timestamp(),
    abs(extract(epoch from lease_expires_at - clock_timestamp()) - 60) < 5
    from oq_lease(''q'', ''worker 1'', 60)',
    format($$values (%s, true, 'q', '{"n": 1}'::jsonb, '{"h": 1}'::jsonb, 0, 1, 5, null, true,
    true)$$, :job), 'every column');
select results_eq(format('select state, worker_id, attempt, lease_expires_at > clock_timestamp(),
    leased_at <= clock_timestamp()
    from oq_get(%s)', :job), $$values ('leased', 'worker 1', 1, true, true)$$, 'it is leased');
select is_empty('select from oq_lease(''q'')', 'and to nobody else');
select is_empty('select from oq_lease(''q'', max_jobs => 10)', 'nor among others');
select oq_create_queue('q', '{"lease_seconds": 700, "max_retries": 1}') as x \gset
select oq_enqueue('q') as x \gset
select results_eq('select max_retries,
    abs(extract(epoch from lease_expires_at - clock_timestamp()) - 700) < 5, payload
    from oq_lease(''q'')', $$values (1, true, '{}'::jsonb)$$,
        'the queue''s lease_seconds and max_retries');

-- The order, one at a time and in batches.
select count(oq_enqueue(n, to_jsonb(i), p)) as x from unnest('{one,batch,mixed}'::text[]) n,
    (values (1, 0), (2, 0), (3, 5), (4, -5),
    (5, 32767), (6, 5), (7, -32768), (8, 0)) v(i, p) \gset
select is((select array_agg(payload::text || ':' || l.priority order by i)
    from generate_series(1, 8) i cross join lateral (
    select * from oq_lease(case when i > 0 then 'one' end)) l),
        '{5:32767,3:5,6:5,1:0,2:0,8:0,4:-5,7:-32768}', 'one at a time');
select is((select array_agg(payload::text) from oq_lease('batch', max_jobs => 100)),
    '{5,3,6,1,2,8,4,7}', 'in a batch');
select is((select array_agg(payload::text) from oq_lease('mixed', max_jobs => 2)), '{5,3}', 'two');
select is((select array_agg(payload::text) from oq_lease('mixed')), '{6}', 'one');
select is((select array_agg(payload::text) from oq_lease('mixed', max_jobs => 4)), '{1,2,8,4}',
    'four');
select is((select array_agg(payload::text) from oq_lease('mixed', max_jobs => 4)), '{7}',
    'the rest');
select is((select array_agg(payload::text) from oq_lease('mixed', max_jobs => 4)), null, 'nothing');
select count(oq_enqueue('late', to_jsonb(i))) as x from generate_series(1, 3) i \gset
select oq_lease('late') as x \gset
select oq_enqueue('late', '9', 1) as x \gset
select is((select array_agg(payload::text) from oq_lease('late', max_jobs => 9)), '{9,2,3}',
    'a late one of high priority');

-- Tokens: rising with each lease of a job, another for each call.
select oq_enqueue('t') as t \gset
select lease_token as t1 from oq_lease('t') \gset
select oq_release(:t, :t1) as x \gset
select lease_token as t2 from oq_lease('t', max_jobs => 2) \gset
select oq_nack(:t, :t2, retry_after => '0') as x \gset
select lease_token as t3 from oq_lease('t') \gset
select tap.pass_leases(), oq_reap() as x \gset
select lease_token as t4 from oq_lease('t') \gset
select ok(:t1 < :t2 and :t2 < :t3 and :t3 < :t4, 'tokens rise');
select ok(:t4 < 9007199254740992, 'below 2^53');
select count(oq_enqueue('tt')) as x from generate_series(1, 50) \gset
select is((select count(distinct lease_token) from generate_series(1, 50) i cross join lateral
    oq_lease(case when i > 0 then 'tt' end)), 50::bigint, 'no two calls share one');

-- No rows: unknown, empty, paused, scheduled only, expired.
select unchanged('select oq_lease(''nowhere'')', '{}', 'an unknown queue');
select unchanged('select oq_lease(''t'')', '{}', 'an empty one');
select oq_enqueue('p') as x, oq_pause('p') as y \gset
select unchanged('select oq_lease(''p'')', '{}', 'a paused one');
select unchanged('select oq_lease(''p'', max_jobs => 10)', '{}', 'a paused one, many');
select oq_resume('p') as x \gset
select is((select count(*) from oq_lease('p')), 1::bigint, 'after it went on');
select oq_enqueue('s', run_at => now() + interval '1 h') as x \gset
select unchanged('select oq_lease(''s'')', '{}', 'a scheduled one');

-- Bad input.
select refuses_bad_names('select oq_lease(%L)');
select throws_ok('select oq_lease(''q'', max_jobs => ' || n || ')', 'OQ001',
    'max_jobs%' || n || '%', 'max_jobs ' || n)
  from unnest('{0,-1,10001,2147483647,-2147483648}'::text[]) n;
select throws_ok('select oq_lease(''q'', max_jobs => null)', 'OQ001', 'max_jobs%null%',
    'max_jobs null');
select throws_ok('select oq_lease(' || q || ', lease_seconds => ' || n || ')', 'OQ001',
    'lease_seconds%' || n || '%', 'lease_seconds ' || n)
  from unnest('{0,-1,604801,2147483647,-2147483648}'::text[]) n,
      unnest('{''q'',''nowhere'',''p''}'::text[]) q;
select throws_ok('select oq_lease(''q'', repeat(''w'', 201))', 'OQ001', 'worker_id%www%',
    'worker_id of 201');
select oq_enqueue('edge') as x, oq_enqueue('edge') as y \gset
select ok((select lease_expires_at > now() + interval '604790 s'
    from oq_lease('edge', repeat('w', 200), 604800)), 'a week, a worker_id of 200');
select ok((select lease_expires_at < now() + interval '5 s' from oq_lease('edge', '', 1, 10000)),
    'a second, worker_id empty');

-- A job of an earlier generation, and of the one before: its payload is found.
select oq_enqueue('g', '"old"') as x, oq_enqueue('g', '"old"') as y, nextval('oq.generation') as z
    \gset
select oq_enqueue('g', '"mid"') as x, oq_enqueue('g', '"mid"') as y, nextval('oq.generation') as z
    \gset
select oq_enqueue('g', '"new"') as x, oq_enqueue('g', '"new"') as y \gset
select is((select array_agg(payload #>> '{}' order by i) from generate_series(1, 3) i cross
    join lateral
    oq_lease(case when i > 0 then 'g' end)), '{old,old,mid}', 'one by one');
select is((select array_agg(payload #>> '{}') from oq_lease('g', max_jobs => 9)), '{mid,new,new}',
    'at once');

-- In a transaction: a rollback gives all back.
select count(oq_enqueue('tx')) as x from generate_series(1, 3) \gset
begin;
select count(*) as n from oq_lease('tx', max_jobs => 2) \gset
select is(:n, 2, 'two are leased');
select is((select count(*) from oq_lease('tx', max_jobs => 2)), 1::bigint, 'one is left');
rollback;
select is((select array_agg(attempt) from oq_lease('tx', max_jobs => 9)), '{1,1,1}',
    'all three came back, at attempt 1');

select finish();
