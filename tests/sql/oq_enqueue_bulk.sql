-- oq_enqueue_bulk: many jobs of one queue.

-- Ids come in the order of the payloads, which is the order of the leases.
select array_agg(i order by n) as ids from oq_enqueue_bulk('q',
    array['"a"', '"b"', '"a"', 'null', '{}']::jsonb[])
    with ordinality b(i, n) \gset
select results_eq(format('select job_id, payload from unnest(%L::bigint[]) i cross
    join lateral oq_get(i)', :'ids'),
    format($$select i, p from unnest(%L::bigint[], array['"a"', '"b"', '"a"', 'null',
    '{}']::jsonb[]) x(i, p)$$, :'ids'),
    'ids in the order of payloads');
select is((select array_agg(i order by i) from unnest(:'ids'::bigint[]) i), :'ids'::bigint[],
    'ids rise');
select is((select array_agg(job_id) from oq_lease('q', max_jobs => 10)), :'ids'::bigint[],
    'first in, first out');

-- One payload, none, too many.
select is((select count(*) from oq_enqueue_bulk('q', array['1']::jsonb[])), 1::bigint, 'one');
select is_empty($$select oq_enqueue_bulk('q', '{}')$$, 'none');
select throws_ok($$select oq_enqueue_bulk('q', array_fill(jsonb '1', '{100001}'))$$, 'OQ001',
    'payloads%100001%', '100001');
select is((select array_agg(payload #>> '{}' order by job_id)
    from oq_enqueue_bulk('lower', '[5:6]={1,2}'::jsonb[]) i
    cross join lateral oq_get(i)), '{1,2}', 'an array that begins at 5');

-- The other arguments count for all.
select results_eq($$select state, priority, max_retries, run_at
    from oq_enqueue_bulk('later', '{1,2}', -3, '2999-01-01', 0) i
    cross join lateral oq_get(i)$$, $$values ('scheduled', -3, 0, timestamptz '2999-01-01'),
        ('scheduled', -3, 0, '2999-01-01')$$,
    'priority, run_at, max_retries');
select results_eq($$select state, priority from oq_enqueue_bulk('p', '{1}', 32767, '-infinity') i
    cross join lateral oq_get(i)$$,
    $$values ('ready', 32767)$$, 'the highest priority, run_at -infinity');

-- Bad input.
select refuses_bad_names('select oq_enqueue_bulk(%L, ''{1}'')');
select throws_ok(format('select oq_enqueue_bulk(''bad'', %s)', a), 'OQ001', m, a)
  from (values ('null', 'payloads%null%'), ('''{{1,2},{3,4}}''', 'payloads%dimensions%'),
      ('array[null]::jsonb[]', 'payload%null%'),
    ('array[''1'', null, ''2'']::jsonb[]', 'payload%null%'),
    ('''{1}'', priority => 32768', 'priority%32768%'), ('''{1}'', priority => -32769',
    'priority%-32769%'),
    ('''{1}'', priority => null', 'priority%null%'), ('''{1}'', max_retries => -1',
    'max_retries%-1%'),
    ('''{1}'', max_retries => 32768', 'max_retries%32768%'),
    ('''{1}'', run_at => ''infinity''', 'run_at%infinity%'),
    ('''{}'', priority => 99999', 'priority%99999%')) v(a, m);
select is_empty($$select from oq_queues where queue_name = 'bad'$$, 'and no queue was made');
select oq_create_queue('small', '{"max_payload_bytes": 10}') is null as x \gset
select is((select count(*) from oq_enqueue_bulk('small', array[to_jsonb(repeat('x', 8))])),
    1::bigint, 'exactly at the limit');
select throws_ok($$select oq_enqueue_bulk('small', array['1', to_jsonb(repeat('x', 9)), '2'])$$,
    'OQ001', 'payloads[2] %11 bytes%',
    'one over the limit, which is named; none is enqueued');
select throws_ok($$select oq_enqueue_bulk('small', array['1', '2', null]::jsonb[])$$, 'OQ001', 'payloads[3] must not be null',
    'a null in the array');
-- Few bytes that are long as text: the limit is on the text.
select throws_ok($$select oq_enqueue_bulk('q', array[to_jsonb(1), to_jsonb(array_fill(1e131071, array[8]))])$$, 'OQ001',
    'payloads[2] %1048592 bytes%', 'eight numbers of 131072 digits');
select is((select count(*) from oq_enqueue_bulk('long', array[to_jsonb(array_fill(1e131071, array[7]))])), 1::bigint,
    'seven are less than a megabyte');
create table stored as select to_jsonb(repeat('x', 2000000)) as payload;
select throws_ok('select oq_enqueue_bulk(''q'', (select array_agg(payload) from stored))', 'OQ001',
    'payload%2000002 bytes%',
    'a payload from a table');

-- Full queues: all or none.
select oq_create_queue('full', '{"max_depth": 3}') is null as x \gset
select is((select count(*) from oq_enqueue_bulk('full', '{1,2}')), 2::bigint, 'two of three');
select throws_ok('select oq_enqueue_bulk(''full'', ''{3,4}'')', 'OQ006', '%full%',
    'two more are too many');
select is((select count(*) from oq_enqueue_bulk('full', '{3}')), 1::bigint, 'one more is not');

-- Very many. At the end: each throws_ok compares all that there is before and after.
select is((select count(distinct i) from oq_enqueue_bulk('many',
    array_fill(jsonb '1', '{100000}')) i), 100000::bigint, '100000');
select is((select ready from oq_stats('many')), 100000::bigint, 'all of them ready');
select is((select count(*) from oq_lease('many', max_jobs => 10000)), 10000::bigint,
    '10000 leased at once');

select finish();
