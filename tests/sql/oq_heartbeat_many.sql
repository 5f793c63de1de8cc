-- oq_heartbeat_many: extends many leases; one row per job asked for.

select oq_create_queue('q', '{"lease_seconds": 100}') as x, array_agg(oq_enqueue('q')) as y
    from generate_series(1, 5) \gset
select array_agg(job_id) as ids, array_agg(lease_token) as tokens from oq_lease('q', max_jobs => 5)
    \gset
select results_eq(format('select * from oq_heartbeat_many(%L, %L)', :'ids', :'tokens'),
    format('select i, ''ok'' from unnest(%L::bigint[]) i', :'ids'), 'all');
select ok(bool_and(abs(extract(epoch from lease_expires_at - clock_timestamp()) - 100) < 5),
    'the queue''s lease_seconds') from oq_jobs;
select is((select count(*) from oq_heartbeat_many(:'ids', :'tokens', 604800) where status = 'ok'),
    5::bigint, 'a week');
select ok(bool_and(abs(extract(epoch from lease_expires_at - clock_timestamp()) - 604800) < 5),
    'from now') from oq_jobs;

-- Mixed, in the order asked for, repeated ones twice.
select oq_cancel((:'ids'::bigint[])[2]) as x, oq_ack((:'ids'::bigint[])[3],
    (:'tokens'::bigint[])[3]) as y \gset
select is((select array_agg(h.status) from (select :'ids'::bigint[] as i,
    :'tokens'::bigint[] as t) x
    cross join lateral oq_heartbeat_many(array[i[5], i[2], i[3], 0, i[1], null, i[1], i[4]],
        array[t[5], t[2], t[3], 0, t[1], null, t[1] + 1, null]) h),
    '{ok,cancelled,lost,lost,ok,lost,lost,lost}', 'each its answer');
select is((select array_agg(h.job_id) from oq_heartbeat_many('{7,5,7}', '{0,0,0}') h), '{7,5,7}',
    'in the order asked for');
select unchanged('select * from oq_heartbeat_many(''{1,2}'', ''{-1,9223372036854775807}'')',
    '{"(1,lost)","(2,lost)"}', 'lost ones change nothing');

-- Broken arrays.
select unchanged('select * from oq_heartbeat_many(''{}'', ''{}'')', '{}', 'empty');
select throws_ok('select * from oq_heartbeat_many(' || a || ')', 'OQ001', m, a)
  from (values ('null, null', 'job_ids%null%'), ('null, ''{1}''', 'job_ids%null%'),
      ('''{1}'', null', 'lease_tokens%null%'), ('''{1}'', ''{}''', 'lease_tokens%0%'),
    ('''{1}'', ''{1,2}''', 'lease_tokens%2%'), ('''{{1},{2}}'', ''{1,2}''', '%dimensions%'),
    ('''{1,2}'', ''{{1,2}}''', 'lease_tokens%dimensions%'),
    ('''{1}'', ''{1}'', 0', 'lease_seconds%0%'), ('''{1}'', ''{1}'', -1', 'lease_seconds%-1%'),
    ('''{1}'', ''{1}'', 604801', 'lease_seconds%604801%'),
    ('array_fill(1, ''{10001}''), array_fill(1, ''{10001}'')', 'job_ids%10001%')) v(a, m);
select is((select count(*) from oq_heartbeat_many(array_fill(0, '{10000}'),
    array_fill(0, '{10000}')) where status = 'lost'), 10000::bigint, 'ten thousand');

select finish();
