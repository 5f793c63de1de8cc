-- oq_enqueue: one job, its arguments and options.

-- The queue is created at first use; defaults.
select oq_enqueue('q') as a \gset
select results_eq(format('select queue_name, state, priority, attempt, max_retries, lost_leases,
    payload, headers,
    group_key, unique_key, tags, result, error from oq_get(%s)', :a),
    $$values ('q', 'ready', 0, 0, 3, 0, '{}'::jsonb, null, null, null, null, null, null)$$,
    'defaults');
select ok((select created_at between clock_timestamp() - interval '1 minute' and clock_timestamp()
    and run_at is null and expires_at is null from oq_get(:a)), 'created now');
select results_eq('select queue_name, paused, restricted from oq_queues',
    $$values ('q', false, false)$$,
    'the queue is there');

-- Every argument comes out again.
select oq_enqueue('all', '{"k": [1, "two", null]}', 7, now() + interval '1 hour', 9,
    headers => '{"trace": "t"}', options => '{"retry": {"kind": "fixed"}, "tags": ["a", "b"]}') as b
    \gset
select results_eq(format('select queue_name, state, priority, max_retries, payload, headers, tags
    from oq_get(%s)', :b),
    $$values ('all', 'scheduled', 7, 9, '{"k": [1, "two", null]}'::jsonb, '{"trace": "t"}'::jsonb,
    '{a,b}'::text[])$$,
    'arguments come out again');
select ok(:b > :a, 'ids rise');

-- Payloads: any JSON value.
select is((select payload from oq_get(oq_enqueue('p', p))), p, 'payload ' || left(p::text, 60))
  from unnest(array['null', 'true', '0', '-1e300', '""', '[]', '[[]]', '{"a": {"b": [null]}}',
    '"\u20ac \ud83d\ude00"', '12345678901234567890123456789']::jsonb[]) p;

-- The limit is of the text's bytes: at it, and one over.
select oq_create_queue('small', '{"max_payload_bytes": 100}') is null as x \gset
select ok(oq_enqueue('small', to_jsonb(repeat('x', 98))) > 0, '100 bytes of 100');
select throws_ok($$select oq_enqueue('small', to_jsonb(repeat('x', 99)))$$, 'OQ001',
    'payload%101 bytes%',
    '101 bytes of 100');
select ok(oq_enqueue('small', to_jsonb(repeat('é', 49))) > 0, '49 characters of two bytes');
select throws_ok($$select oq_enqueue('small', to_jsonb(repeat('é', 50)))$$, 'OQ001',
    'payload%102 bytes%',
    'bytes are counted, not characters');
select throws_ok($$select oq_enqueue('small', to_jsonb(array_fill(1, '{40}')))$$, 'OQ001',
    'payload%120 bytes%',
    'an array of small numbers');
-- Sixteen bytes each in binary, 131072 as text.
select throws_ok(format('select oq_enqueue(''p'', (select jsonb_agg(jsonb ''1e131071'') from generate_series(1, %s)))', n),
    'OQ001', 'payload%bytes long%', n || ' huge numbers')
  from unnest(array[8, 100]) n;
select ok(oq_enqueue('p', (select jsonb_agg(jsonb '1e131071') from generate_series(1, 7))) > 0, 'seven');
select throws_ok('select oq_enqueue_bulk(''p'', array[''1'', (select jsonb_agg(jsonb ''1e131071'') from generate_series(1, 8))])',
    'OQ001', 'payload%', 'in bulk');
select throws_ok($$select oq_enqueue('q', null)$$, 'OQ001', 'payload%null%', 'payload null');

-- Names.
select refuses_bad_names('select oq_enqueue(%L)');
select is((select queue_name from oq_get(oq_enqueue(n))), n, 'queue_name ' || n)
  from unnest(array['a', repeat('a', 57), '-', '.', '0', 'a:b/c.d_e-F9', 'NULL', 'null', 'Queue',
      'queue']) n;
select is((select count(distinct queue_name) from oq_queues where lower(queue_name) in ('queue',
    'null')), 4::bigint,
    'case counts');

-- Priorities: any smallint.
select is((select priority from oq_get(oq_enqueue('prio', priority => p))), p, 'priority ' || p)
  from unnest('{-32768,-1,0,1,32767}'::int[]) p;
select throws_ok(format('select oq_enqueue(''q'', priority => %s)', p), 'OQ001',
    'priority%' || p || '%', 'priority ' || p)
  from unnest('{-32769,32768,-2147483648,2147483647,null}'::text[]) p where p is not null;
select throws_ok('select oq_enqueue(''q'', priority => null)', 'OQ001', 'priority%null%',
    'priority null');
select is_empty($$select from oq_jobs where priority not between -32768 and 32767$$,
    'nothing came through');

-- max_retries.
select is((select max_retries from oq_get(oq_enqueue('q', max_retries => r))), r,
    'max_retries ' || r)
  from unnest('{0,1,32767}'::int[]) r;
select throws_ok(format('select oq_enqueue(''q'', max_retries => %s)', r), 'OQ001',
    'max_retries%' || r || '%',
    'max_retries ' || r) from unnest('{-1,32768,-2147483648,2147483647}'::int[]) r;

-- run_at: the future is scheduled, the past and -infinity are ready, infinity is refused.
select is((select state from oq_get(oq_enqueue('r', run_at => t))), s, 'run_at ' || t)
  from (values (timestamptz '-infinity', 'ready'), ('0001-01-01 00:00:00+00 BC', 'ready'),
      ('2000-01-01', 'ready'),
    (now(), 'ready'), (now() + interval '1 day', 'scheduled'), ('9999-12-31', 'scheduled'),
    ('294276-12-31 00:00:00+00', 'scheduled')) v(t, s);
select is((select run_at from oq_get(oq_enqueue('r', run_at => '2999-01-01'))),
    timestamptz '2999-01-01', 'run_at is kept');
select throws_ok($$select oq_enqueue('r', run_at => 'infinity')$$, 'OQ001', 'run_at%infinity%',
    'run_at infinity');

-- delay.
select is(tap.state_of(oq_enqueue('d', options => '{"delay": "1 hour"}')), 'scheduled', 'delay');
select is(tap.state_of(oq_enqueue('d', options => '{"delay": "0"}')), 'ready', 'delay 0');
select ok((select abs(extract(epoch from run_at - created_at - interval '90 minutes')) < 1
    from oq_get(oq_enqueue('d', options => '{"delay": "90 minutes"}'))), 'delay counts from now');
select throws_ok($$select oq_enqueue('d', run_at => now(), options => '{"delay": "1 hour"}')$$,
    'OQ001', '%delay%1 hour%',
    'run_at and delay');

-- Times to live.
select ok((select abs(extract(epoch from expires_at - created_at - interval '1 hour')) < 1
    from oq_get(oq_enqueue('t', options => '{"ttl": "1 hour"}'))), 'ttl counts from now');
select is((select expires_at from oq_get(oq_enqueue('t',
    options => '{"expires_at": "2999-01-01T00:00:00Z"}'))),
    timestamptz '2999-01-01T00:00:00Z', 'expires_at');
select ok((select expires_at < now() + interval '2 hours' from oq_get(oq_enqueue('t',
    options => o))), 'the earlier counts')
  from unnest(array['{"ttl": "1 hour", "expires_at": "2999-01-01"}',
      '{"expires_at": "2999-01-01", "ttl": "1 hour"}']::jsonb[]) o;

-- Bad options: the message names key and value.
select throws_ok(format('select oq_enqueue(''o'', options => %L)', o), 'OQ001', like_this,
    'options ' || o)
  from (values
    ('null', 'options%null%'), ('[]', 'options%[]%'), ('"x"', 'options%"x"%'), ('1', 'options%1%'),
    ('["depends_on"]', 'options%["depends_on"]%'), ('"batch_id"', 'options%batch_id%'),
    ('{"dealy": "1 s"}', '%dealy%'), ('{"Delay": "1 s"}', '%Delay%'), ('{"": 1}', 'options%'),
    ('{"dealy": null}', '%dealy%'),
    ('{"delay": "soon"}', '%delay%soon%'), ('{"delay": "-1 s"}', '%delay%-1 s%'),
    ('{"delay": {}}', '%delay%{}%'),
    ('{"delay": "99999999 years"}', '%delay%99999999 years%'),
    ('{"delay": "infinity"}', '%delay%infinity%'),
    ('{"ttl": "0"}', '%ttl%0%'), ('{"ttl": "-1 s"}', '%ttl%-1 s%'), ('{"ttl": "x"}', '%ttl%x%'),
    ('{"ttl": "99999999 years"}', '%ttl%99999999 years%'), ('{"ttl": true}', '%ttl%true%'),
    ('{"ttl": "infinity"}', '%ttl%infinity%'),
    ('{"expires_at": "infinity"}', '%expires_at%infinity%'),
    ('{"expires_at": "-infinity"}', '%expires_at%-infinity%'),
    ('{"expires_at": "yesterdays"}', '%expires_at%yesterdays%'),
    ('{"expires_at": []}', '%expires_at%[]%'),
    ('{"retry": "fixed"}', 'options.retry%fixed%'), ('{"retry": []}', 'options.retry%[]%'),
    ('{"retry": {"kind": "cubic"}}', '%kind%cubic%'),
    ('{"retry": {"kind": null}}', '%kind%null%'), ('{"retry": {"bas": "1 s"}}', '%bas%'),
    ('{"retry": {"base": "-1 s"}}', '%base%-1 s%'), ('{"retry": {"base": null}}', '%base%null%'),
    ('{"retry": {"max": "x"}}', '%max%x%'), ('{"retry": {"max": "20000 years"}}',
    '%max%20000 years%'),
    ('{"retry": {"factor": 0}}', '%factor%0%'), ('{"retry": {"factor": -2}}', '%factor%-2%'),
    ('{"retry": {"factor": "2"}}', '%factor%2%'), ('{"retry": {"factor": 1e9}}',
    '%factor%1000000000%'),
    ('{"retry": {"jitter": 1.1}}', '%jitter%1.1%'), ('{"retry": {"jitter": -0.1}}',
    '%jitter%-0.1%'),
    ('{"retry": {"jitter": null}}', '%jitter%null%'),
    ('{"tags": "a"}', '%tags%a%'), ('{"tags": [1]}', '%tags%1%'), ('{"tags": [""]}', '%tags%""%'),
    ('{"tags": [null]}', '%tags%null%'), ('{"tags": {"a": 1}}', '%tags%')) v(o, like_this);
select throws_ok(format('select oq_enqueue(''o'', options => %L)', jsonb_build_object('tags', t)),
    'OQ001', '%tags%', d)
  from (values (to_jsonb(array_fill('t'::text, '{33}')), '33 tags'),
      (to_jsonb(array[repeat('t', 101)]), 'a tag of 101')) v(t, d);
select is(cardinality((select tags from oq_get(oq_enqueue('o', options =>
    jsonb_build_object('tags', array_fill(repeat('t', 100), '{32}')))))), 32, '32 tags of 100');
select ok(oq_enqueue('o', options => '{}') > 0, 'no options');

-- Headers: an object.
select throws_ok(format('select oq_enqueue(''h'', headers => %L)', h), 'OQ001',
    'headers%' || h || '%', 'headers ' || h)
  from unnest(array['[]', '1', '"x"', 'null', 'true']) h;
select throws_ok($$select oq_enqueue('h', headers => jsonb_build_object('h', repeat('x', 65536)))$$,
    'OQ001', 'headers%',
    'headers over 64 kB');
select ok(oq_enqueue('h', headers => jsonb_build_object('h', repeat('x', 65527))) > 0,
    'headers of 64 kB');

select throws_ok(format('select oq_enqueue(''f'', %I => %L)', a, v), 'OQ001', a || '%' || left(v, 9) || '%',
    a || ' of ' || length(v) || ' characters')
  from unnest(array['unique_key', 'group_key']) a, unnest(array['', repeat('x', 1001)]) v;
select is_empty($$select from oq_queues where queue_name in ('f')$$,
    'a refused enqueue makes no queue');

-- Full queues.
select oq_create_queue('full', '{"max_depth": 3}') is null as x \gset
select is((select count(oq_enqueue('full',
    run_at => case when i = 2 then now() + interval '1 h' end))
    from generate_series(1, 3) i), 3::bigint, 'three of three, one of them scheduled');
select throws_ok('select oq_enqueue(''full'')', 'OQ006', '%full%', 'the fourth');
select throws_ok('select oq_enqueue(''full'', run_at => now() + interval ''1 h'')', 'OQ006',
    '%full%', 'the fourth, scheduled');
select is((select count(*) from oq_lease('full')), 1::bigint, 'one is leased');
select ok(oq_enqueue('full') > 0, 'leased jobs do not count');
select oq_create_queue('full', '{"max_depth": null}') is null as x \gset
select ok(oq_enqueue('full') > 0, 'no limit any more');

-- A rollback leaves nothing; a commit everything; savepoints count.
begin;
select oq_enqueue('tx', '1') as gone \gset
rollback;
select is_empty(format('select from oq_get(%s)', :gone), 'rolled back');
select is_empty($$select from oq_queues where queue_name = 'tx'$$, 'its queue, too');
begin;
select oq_enqueue('tx', '2') as x \gset
savepoint s;
select oq_enqueue('tx', '3') as x \gset
rollback to s;
select oq_enqueue('tx', '4') as x \gset
commit;
select results_eq('select payload from oq_lease(''tx'', max_jobs => 9)',
    $$values ('2'::jsonb), ('4')$$, 'what was committed');
begin isolation level serializable;
select is(tap.state_of(oq_enqueue('tx')), 'ready', 'serializable');
commit;
begin isolation level repeatable read;
select is(tap.state_of(oq_enqueue('tx2')), 'ready', 'repeatable read, first use');
commit;
select throws_ok('set transaction read only; select oq_enqueue(''q'')', '25006', '%read-only%',
    'not in a read-only transaction');

-- The limit of queues that name none is a megabyte.
select ok(oq_enqueue('q', to_jsonb(repeat('x', 1048574))) > 0, '1 MB');
select throws_ok($$select oq_enqueue('q', to_jsonb(repeat('x', 1048575)))$$, 'OQ001',
    'payload%1048577 bytes%',
    '1 MB and a byte');
create table stored as select to_jsonb(repeat('x', 2000000)) as payload;
select throws_ok('select oq_enqueue(''q'', payload) from stored', 'OQ001', 'payload%2000002 bytes%',
    'a payload that comes compressed from a table');

select finish();
