-- oq_ack_many: completes many jobs; lost leases are left out.

select count(oq_enqueue('q', to_jsonb(i))) as x from generate_series(1, 6) i \gset
select array_agg(job_id) as ids, array_agg(lease_token) as tokens from oq_lease('q', max_jobs => 6)
    \gset
select results_eq(format('select oq_ack_many((%L::bigint[])[1:2],
    (%L::bigint[])[1:2], array[''"r1"'', ''"r2"'']::jsonb[])', :'ids', :'tokens'),
    format('select unnest((%L::bigint[])[1:2])', :'ids'), 'two, with results');
select is((select array_agg(result #>> '{}') from unnest((:'ids'::bigint[])[1:2]) i cross
    join lateral oq_result(i)), '{r1,r2}', 'each its own');

-- In another order; ids come ascending, results stay with their jobs.
select results_eq(format('select oq_ack_many(array[(%1$L::bigint[])[4], (%1$L::bigint[])[3]],
    array[(%2$L::bigint[])[4], (%2$L::bigint[])[3]],
    array[''"r4"'', ''"r3"'']::jsonb[])', :'ids', :'tokens'),
    format('select unnest((%L::bigint[])[3:4])', :'ids'), 'descending');
select is((select array_agg(result #>> '{}') from unnest((:'ids'::bigint[])[3:4]) i cross
    join lateral oq_result(i)), '{r3,r4}', 'results of descending');

-- Lost ones beside good ones; repeated ones; nulls.
select unchanged(format('select oq_ack_many(%L, %L)', :'ids'::bigint[] || 0,
    (select array_agg(t + 1) from unnest(:'tokens'::bigint[]) t) || 5), '{}',
    'tokens that are none');
select unchanged(format('select oq_ack_many((%L::bigint[])[1:2], (%L::bigint[])[1:2])', :'ids',
    :'tokens'), '{}', 'done before');
select unchanged(format('select oq_ack_many(array[null, (%L::bigint[])[5]]::bigint[],
    array[(%L::bigint[])[5], null]::bigint[])', :'ids', :'tokens'), '{}',
    'null elements');
select unchanged(format('select oq_ack_many(array[(%1$L::bigint[])[5], (%1$L::bigint[])[6]],
    array[(%2$L::bigint[])[6], (%2$L::bigint[])[5]])', :'ids', :'tokens'),
    '{}', 'each with the other''s token')
    where (:'tokens'::bigint[])[5] <> (:'tokens'::bigint[])[6];
select results_eq(format('select oq_ack_many(array[(%1$L::bigint[])[5], (%1$L::bigint[])[5], 0],
    array[1, (%2$L::bigint[])[5], 0],
    array[''"wrong"'', ''"right"'', null]::jsonb[])', :'ids', :'tokens'),
    format('select (%L::bigint[])[5]', :'ids'), 'twice, once with its token');
select is((select result #>> '{}' from oq_result((:'ids'::bigint[])[5])), 'right',
    'the result beside the token counts');
select results_eq(format('select oq_ack_many(format(''[7:7]={%%s}'', (%L::bigint[])[6])::bigint[],
    array[(%L::bigint[])[6]], ''[3:3]={5}'')', :'ids', :'tokens'),
    format('select (%L::bigint[])[6]', :'ids'), 'arrays that do not begin at 1');
select is((select result from oq_result((:'ids'::bigint[])[6])), '5'::jsonb, 'and their result');
select is((select completed from oq_stats('q')), 6::bigint, 'all are completed');

-- The token of one call for jobs of two.
select count(oq_enqueue('two', to_jsonb(i))) as x from generate_series(1, 3) i \gset
select job_id as a, lease_token as ta from oq_lease('two') \gset
select job_id as b, lease_token as tb from oq_lease('two') \gset
select results_eq(format('select oq_ack_many(array[%s, %s], array[%s, %3$s])', :a, :b, :ta),
    format('values (%s::bigint)', :a), 'only those of that call');
select is_empty(format('select from oq_next(''no'', acked_job_ids => array[0, %s], acked_tokens => array[%s, %2$s])',
    :b, :ta), 'nor by oq_next');
select is(tap.state_of(:b), 'leased', 'the other is leased still');

-- Two leases of one call share no job; ten thousand go.
select count(*) as x from oq_enqueue_bulk('many', array_fill(jsonb '1', '{10000}')) \gset
select array_agg(job_id) as ids, array_agg(lease_token) as tokens
    from oq_lease('many', max_jobs => 10000) \gset
select is((select count(*) from oq_ack_many(:'ids', :'tokens')), 10000::bigint, 'ten thousand');
select throws_ok('select oq_ack_many(array_fill(1, ''{10001}''), array_fill(1, ''{10001}''))',
    'OQ001', 'job_ids%10001%', 'ten thousand and one');

-- A thousand in any order, some twice, each with its own result.
select count(*) as x from oq_enqueue_bulk('own', array_fill(jsonb '1', '{1000}')) \gset
create temp table l as select job_id, lease_token from oq_lease('own', max_jobs => 1000);
create temp table asked as
    select job_id, lease_token, to_jsonb(job_id) as result from l
    union all select job_id, lease_token - 1, '"wrong"' from l where job_id % 3 = 0
    union all select job_id - 100000, lease_token, '"wrong"' from l where job_id % 5 = 0;
select is((select count(*) from oq_ack_many((select array_agg(job_id order by md5(job_id::text || lease_token)) from asked),
    (select array_agg(lease_token order by md5(job_id::text || lease_token)) from asked),
    (select array_agg(result order by md5(job_id::text || lease_token)) from asked))), 1000::bigint, 'a thousand');
select is((select count(*) from oq_jobs j where queue_name = 'own' and result = to_jsonb(job_id)), 1000::bigint,
    'each has its own result');

-- Broken arrays.
select unchanged('select oq_ack_many(''{}'', ''{}'')', '{}', 'empty');
select unchanged('select oq_ack_many(''{}'', ''{}'', ''{}'')', '{}', 'empty, with results');
select oq_enqueue('b') as b \gset
select lease_token as t from oq_lease('b') \gset
select throws_ok(format('select oq_ack_many(%s)', replace(replace(a, 'J', :'b'), 'T', :'t')),
    'OQ001', m, a)
  from (values ('null, null', 'job_ids%null%'), ('null, ''{T}''', 'job_ids%null%'),
      ('''{J}'', null', 'lease_tokens%null%'),
    ('''{J}'', ''{}''', 'lease_tokens%0%'), ('''{J}'', ''{T,T}''', 'lease_tokens%2%'),
    ('''{}'', ''{T}''', 'lease_tokens%1%'),
    ('''{J}'', ''{T}'', ''{}''', 'results%0%'), ('''{J}'', ''{T}'', ''{1,2}''', 'results%2%'),
    ('''{{J,J},{J,J}}'', ''{{T,T},{T,T}}''', 'job_ids%dimensions%'),
    ('''{{J,J}}'', ''{T,T}''', 'job_ids%dimensions%'),
    ('''{J,J}'', ''{{T,T}}''', 'lease_tokens%dimensions%'), ('''{J,J}'', ''{T,T}'', ''{{1,2}}''',
    'results%dimensions%'),
    ('''{J}'', ''{T}'', array[to_jsonb(repeat(''x'', 1048575))]', 'result%1048577 bytes%'),
    ('''{J}'', ''{T}'', array[to_jsonb(array_fill(1e131071, array[8]))]', 'results[1] must not be 1048592 bytes%')) v(a, m);
select is((select count(*) from oq_ack_many(array[:b], array[:t], array[null::jsonb])), 1::bigint,
    'a null result');

-- keep none, an expired lease.
select oq_create_queue('none', '{"keep": "none"}') as x, oq_enqueue('none') as n \gset
select lease_token as nt from oq_lease('none') \gset
select tap.pass_leases();
select is((select count(*) from oq_ack_many(array[:n], array[:nt], '{1}')), 1::bigint,
    'expired, not taken back, not kept');
select is_empty(format('select from oq_get(%s)', :n), 'nothing to see');

select finish();
