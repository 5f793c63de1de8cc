-- oq_enqueue_many: many jobs, each with its own arguments.

select results_eq($$select idx, inserted, queue_name, state, priority, max_retries, payload,
    headers, tags
      from oq_enqueue_many('[
        {"queue_name": "b", "payload": [1]},
        {"queue_name": "a", "payload": null, "priority": 5, "max_retries": 0,
            "headers": {"h": 1}, "tags": ["t"]},
        {"queue_name": "b", "delay": "1 hour"},
        {"queue_name": "a", "run_at": "2999-01-01T00:00:00Z", "options": {"tags": ["u"]}},
        {"queue_name": "b", "run_at": "2000-01-01", "max_retries": null,
            "headers": null, "options": null},
        {"queue_name": "a", "run_at": "-infinity"}]') m
     cross join lateral oq_get(m.job_id)$$,
    $$values (0, true, 'b', 'ready', 0, 3, '[1]'::jsonb, null::jsonb, null::text[]),
        (1, true, 'a', 'ready', 5, 0, 'null', '{"h": 1}', '{t}'),
        (2, true, 'b', 'scheduled', 0, 3, '{}', null, null),
        (3, true, 'a', 'scheduled', 0, 3, '{}', null, '{u}'),
        (4, true, 'b', 'ready', 0, 3, '{}', null, null),
        (5, true, 'a', 'ready', 0, 3, '{}', null, null)$$,
        'every argument and option, one row an element');
select is((select array_agg(priority) from oq_lease('a', max_jobs => 9)), '{5,0}',
    'ready ones can be leased');
select results_eq($$select run_at from oq_jobs where queue_name = 'a' and state = 'scheduled'$$,
    $$values (timestamptz '2999-01-01T00:00:00Z')$$, 'run_at');
select ok((select bool_and(expires_at is not null and abs(extract(epoch
    from expires_at - created_at) - 3600) < 1)
    from oq_enqueue_many('[{"queue_name": "t", "ttl": "1 hour"},
        {"queue_name": "t", "options": {"ttl": "1 hour"}}]') m
    cross join lateral oq_get(m.job_id)), 'ttl, in either place');
select ok((select bool_and(a.job_id < b.job_id) from
    (select job_id, row_number() over () as n
    from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name',
        'o' || i % 3)) from generate_series(1, 100) i))) a
    join lateral (select a.job_id + 1 as job_id) b on true), 'a hundred over three queues');
select is((select array_agg(q.ready order by q.ready) from oq_queues q
    where queue_name in ('o0', 'o1', 'o2')), '{33,33,34}', 'a third each');
select is_empty('select * from oq_enqueue_many(''[]'')', 'none');

-- Bad input: which element, which argument, which value; and none is enqueued.
select throws_ok(format('select * from oq_enqueue_many(%L)', j), 'OQ001', m,
    coalesce(left(j, 100), 'null'))
  from (values (null, 'jobs%null%'), ('null', 'jobs%null%'), ('{"queue_name": "x"}', 'jobs%'),
      ('"x"', 'jobs%"x"%'),
    ('[1]', 'jobs[0]%1%'), ('[{"queue_name": "x"}, null]', 'jobs[1]%null%'),
    ('[[]]', 'jobs[0]%[]%'),
    ('[{}]', 'jobs[0].queue_name%null%'), ('[{"queue_name": "x"}, {"queue_name": null}]',
    'jobs[1].queue_name%null%'),
    ('[{"queue_name": "x"}, {"queue_name": "y z"}]', 'jobs[1].queue_name%y z%'),
    ('[{"queue_name": ""}]', '%queue_name%'),
    ('[{"queue_name": "x"}, {"queue_name": "x", "prioritee": 1}]', 'jobs[1]%prioritee%'),
    ('[{"queue_name": "x", "prioritee": null}]', 'jobs[0]%prioritee%'),
    ('[{"queue_name": "x", "priority": 32768}]', 'jobs[0].priority%32768%'),
    ('[{"queue_name": "x", "priority": null}]', 'jobs[0].priority%null%'),
    ('[{"queue_name": "x", "priority": -32769}]', 'jobs[0].priority%-32769%'),
    ('[{"queue_name": "x", "priority": 1.5}]', 'jobs[0].priority%1.5%'),
    ('[{"queue_name": "x", "priority": 1e99}]', 'jobs[0].priority%1000%'),
    ('[{"queue_name": "x", "priority": "high"}]', 'jobs[0].priority%high%'),
    ('[{"queue_name": "x", "priority": [1]}]', 'jobs[0].priority%[1]%'),
    ('[{"queue_name": "x", "max_retries": -1}]', 'jobs[0].max_retries%-1%'),
    ('[{"queue_name": "x", "max_retries": 32768}]', 'jobs[0].max_retries%32768%'),
    ('[{"queue_name": "x", "max_retries": "many"}]', 'jobs[0].max_retries%many%'),
    ('[{"queue_name": "x", "headers": []}]', 'jobs[0].headers%[]%'),
    ('[{"queue_name": "x", "options": 1}]', 'jobs[0].options%1%'),
    ('[{"queue_name": "x", "run_at": "infinity"}]', 'jobs[0].run_at%infinity%'),
    ('[{"queue_name": "x", "run_at": "Infinity"}]', 'jobs[0].run_at%Infinity%'),
    ('[{"queue_name": "x", "run_at": " infinity "}]', 'jobs[0].run_at%infinity%'),
    ('[{"queue_name": "x"}, {"queue_name": "x", "run_at": "soon"}]', 'jobs[1].run_at%soon%'),
    ('[{"queue_name": "x", "run_at": "9999999-01-01"}]', 'jobs[0].run_at%9999999%'),
    ('[{"queue_name": "x", "options": {"dealy": 1}}]', 'jobs[0].options%dealy%'),
    ('[{"queue_name": "x", "options": {"dealy": null}}]', '%dealy%'),
    ('[{"queue_name": "x"}, {"queue_name": "x", "ttl": "0"}]', 'jobs[1].ttl%0%'),
    ('[{"queue_name": "x", "delay": "soon"}]', '%delay%soon%'),
    ('[{"queue_name": "x", "delay": "1 hour", "run_at": "2030-01-01"}]', '%delay%1 hour%'),
    ('[{"queue_name": "x", "expires_at": "infinity"}]', '%expires_at%infinity%'),
    ('[{"queue_name": "x", "tags": "t"}]', '%tags%t%'), ('[{"queue_name": "x"}, {"queue_name": "x", "retry": 1}]',
    'jobs[1].retry must not be 1'),
    ('[{"queue_name": "x"}, {"queue_name": "x", "options": {"retry": {"factor": 0}}}]',
    'jobs[1].options.retry.factor%0%'), ('[{"queue_name": "x", "group_key": ""}]', 'jobs[0].group_key%'),
    ('[{"queue_name": "x", "group_key": 1}]', 'jobs[0].group_key%1%'),
    ('[{"queue_name": "x", "batch_id": "b"}]', 'jobs[0].batch_id%b%'),
    ('[{"queue_name": "x", "depends_on": 1}]', 'jobs[0].depends_on%1%'),
    ('[{"queue_name": "x", "options": {"unique_mode": "skipp"}}]', 'jobs[0].options.unique_mode%skipp%')) v(j, m);
select throws_ok($$select * from oq_enqueue_many((select jsonb_agg('{"queue_name": "x"}'::jsonb)
    from generate_series(1, 100001)))$$,
    'OQ001', 'jobs%100001%', '100001 elements');
select throws_ok($$select * from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name',
    'x' || i))
    from generate_series(1, 1001) i))$$, 'OQ001', 'jobs%1001%', '1001 queues');
select throws_ok($$select * from oq_enqueue_many(jsonb_build_array('{"queue_name": "x"}'::jsonb,
    jsonb_build_object('queue_name', 'x', 'payload', repeat('x', 1048575))))$$, 'OQ001',
    'jobs[1].payload%1048577 bytes%', 'a payload over 1 MB');
select is((select count(*) from oq_enqueue_many(jsonb_build_array(jsonb_build_object('queue_name',
    'x', 'payload', repeat('x', 1048574))))),
    1::bigint, 'a payload of 1 MB');
select throws_ok($$select * from oq_enqueue_many(jsonb_build_array(jsonb_build_object('queue_name',
    'x', 'headers',
    jsonb_build_object('h', repeat('x', 65536)))))$$, 'OQ001', '%headers%', 'headers over 64 kB');

-- Refs: a graph in one call.
select results_eq($$select m.idx, m.inserted, j.state
      from oq_enqueue_many('[{"queue_name": "g", "ref": "end", "depends_on_refs": ["l", "r", "l"]},
        {"queue_name": "g", "ref": "l", "depends_on_refs": ["start"]}, {"queue_name": "g2", "ref": "r", "depends_on_refs": ["start"]},
        {"queue_name": "g", "ref": "start", "depends_on_refs": []}, {"queue_name": "g", "ref": null, "depends_on_refs": null}]') m
      cross join lateral oq_get(m.job_id) j order by m.idx$$,
    $$values (0, true, 'waiting'), (1, true, 'waiting'), (2, true, 'waiting'), (3, true, 'ready'), (4, true, 'ready')$$,
    'in any order of elements');
select count(oq_ack(job_id, lease_token, '"s"')) from oq_lease('g', max_jobs => 9) \gset
select results_eq($$select queue_name, count(*) from oq_jobs where queue_name in ('g', 'g2') and state = 'ready' group by 1 order by 1$$,
    $$values ('g', 1::bigint), ('g2', 1)$$, 'both branches');
select oq_ack(job_id, lease_token, '"l"') from oq_lease('g') \gset
select oq_ack(job_id, lease_token, '"r"') from oq_lease('g2') \gset
select results_eq($$select p.result from oq_lease('g') l cross join lateral oq_parents(l.job_id) p order by 1$$,
    $$values ('"l"'::jsonb), ('"r"')$$, 'the end reads both results');
select throws_ok(format('select * from oq_enqueue_many(%L)', (select jsonb_agg(j || '{"queue_name": "y"}') from
    jsonb_array_elements(o) j)), 'OQ001', m, o::text)
  from (values ('[{"ref": "a"}, {"ref": "a"}]'::jsonb, 'jobs[1].ref must not be ''a'''),
    ('[{"depends_on_refs": ["b"]}, {"ref": "a"}]', 'jobs[0].depends_on_refs must not be ''b'''),
    ('[{}, {"ref": "a", "depends_on_refs": ["a"]}]', 'jobs[1].depends_on_refs must not be ["a"], a circle'),
    ('[{"depends_on_refs": ["a"]}, {"ref": "a", "depends_on_refs": ["c"]}, {"ref": "b", "depends_on_refs": ["a"]},
        {"ref": "c", "depends_on_refs": ["b"]}]', 'jobs[%].depends_on_refs must not be %, a circle'),
    ('[{"ref": "a"}, {"depends_on_refs": "a"}]', 'jobs[1].depends_on_refs%a%'),
    ('[{"depends_on_refs": [1]}]', 'jobs[0].depends_on_refs%[1]%'), ('[{"depends_on_refs": [null]}]', 'jobs[0].depends_on_refs%'),
    ('[{"depends_on_refs": {}}]', 'jobs[0].depends_on_refs%{}%'), ('[{"ref": ""}]', 'jobs[0].ref%'), ('[{"ref": 1}]', 'jobs[0].ref%1%'))
    v(o, m);
select is_empty($$select from oq_queues where queue_name = 'y'$$, 'and no queue was made');
-- A ref to an element that gave an existing job.
select oq_enqueue('uk', unique_key => 'k') as u \gset
select job_id as c from oq_enqueue_many('[{"queue_name": "uk", "unique_key": "k", "ref": "a", "depends_on_refs": ["b"]},
    {"queue_name": "uc", "ref": "b"}, {"queue_name": "uc", "depends_on_refs": ["a"]}]') where idx = 2 \gset
select is((select parent_id from oq_parents(:c)), :u::bigint, 'the existing job is the parent');
select oq_ack(job_id, lease_token) from oq_lease('uk') \gset
select is(state_of(:c), 'ready', 'and frees it');
-- Of several with one key in one call a ref to any means their one job; so a circle may go through it.
select job_id as c from oq_enqueue_many('[{"queue_name": "uk2", "unique_key": "k"}, {"queue_name": "uk2", "unique_key": "k",
    "ref": "b"}, {"queue_name": "uk2", "depends_on_refs": ["b"]}]') where idx = 2 \gset
select is(state_of(:c), 'waiting', 'a ref to the second of a key');
select oq_ack(job_id, lease_token) from oq_lease('uk2') \gset
select is(state_of(:c), 'ready', 'means the job of the first');
select throws_ok('select * from oq_enqueue_many(''' || j || ''')', 'OQ001', 'jobs[' || n || ']%a circle', 'a circle through a key')
  from (values (0, '[{"queue_name": "uk3", "unique_key": "k", "depends_on_refs": ["b"]},
        {"queue_name": "uk3", "unique_key": "k", "ref": "b"}]'),
    (1, '[{"queue_name": "uk3", "unique_key": "k", "depends_on_refs": ["c"]},
        {"queue_name": "uk3", "ref": "c", "depends_on_refs": ["b"]}, {"queue_name": "uk3", "unique_key": "k", "ref": "b"}]')) v(n, j);
select is((select count(*) from oq_enqueue_many('[{"queue_name": "uk3", "unique_key": "k", "depends_on_refs": ["b"]},
    {"queue_name": "uk4", "unique_key": "k", "ref": "b"}]')), 2::bigint, 'a key is a queue''s own');
-- Long chains, backwards too.
select is((select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'chain', 'ref', i::text,
    'depends_on_refs', case when i < 20000 then array[(i + 1)::text] else '{}' end) order by i) from generate_series(1, 20000) i))),
    20000::bigint, 'a chain of twenty thousand, from its end');
select is((select ready from oq_stats('chain')), 1::bigint, 'one may run');
select throws_ok($$select * from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'ring', 'ref', i::text,
    'depends_on_refs', array[(i % 20000 + 1)::text]) order by i) from generate_series(1, 20000) i))$$, 'OQ001', '%a circle', 'a long circle');

-- A full queue refuses all of them.
select oq_create_queue('full', '{"max_depth": 2}') is null as x \gset
select throws_ok($$select *
    from oq_enqueue_many('[{"queue_name": "full"}, {"queue_name": "free"}, {"queue_name": "full"},
    {"queue_name": "full"}]')$$, 'OQ006', '%full%', 'three into two');
select is((select count(*)
    from oq_enqueue_many('[{"queue_name": "full"}, {"queue_name": "full"}]')), 2::bigint,
        'two into two');
select is((select count(*) from oq_enqueue_many((select jsonb_agg('{"queue_name": "big"}'::jsonb)
    from generate_series(1, 20000)))), 20000::bigint, 'twenty thousand');

-- The name of a queue is a string.
select throws_ok(format('select * from oq_enqueue_many(''[{"queue_name": "q"}, {"queue_name": %s}]'')', n), 'OQ001',
    'jobs[1].queue_name%' || n || '%', 'queue_name ' || n) from unnest('{1,true}'::text[]) n;
-- What is empty is shown.
select throws_ok('select * from oq_enqueue_many(''[{"queue_name": "q", "' || k || '": ""}]'')', 'OQ001',
    'jobs[0].' || k || ' must not be ''''', k || ' empty')
  from unnest('{unique_key,group_key,ref,run_at,ttl,unique_mode,expires_at}'::text[]) k;

-- Groups of one call are leased in its order, whatever their hashes say; so are those that come back, or are freed, together.
create function keys(queue text)
returns text
language sql
as $$ select string_agg(group_key, ' ') from oq_lease(keys.queue, max_jobs => 20) $$;
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'fifo', 'group_key', 'g' || i) order by i)
    from generate_series(1, 10) i)) \g /dev/null
select is(keys('fifo'), 'g1 g2 g3 g4 g5 g6 g7 g8 g9 g10', 'groups of one call');
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'later', 'group_key', 'g' || i,
    'run_at', clock_timestamp() + i * interval '1 hour') order by i) from generate_series(1, 10) i)) \g /dev/null
update oq.job set run_at = clock_timestamp() where run_at > clock_timestamp();
begin;
select pass_delays() \g /dev/null
commit;
select is(keys('later'), 'g1 g2 g3 g4 g5 g6 g7 g8 g9 g10', 'groups that come due together');
select oq_enqueue('parent') as parent \gset
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'child', 'group_key', 'g' || i,
    'depends_on', jsonb_build_array(:parent)) order by i) from generate_series(1, 10) i)) \g /dev/null
select count(oq_ack(job_id, lease_token)) from oq_lease('parent') \g /dev/null
select is(keys('child'), 'g1 g2 g3 g4 g5 g6 g7 g8 g9 g10', 'children of one parent');

-- The same option twice.
select throws_ok($$select * from oq_enqueue_many('[{"queue_name": "x"}, {"queue_name": "x", "ttl": "1 s", "options": {"ttl": "2 s"}}]')$$,
    'OQ001', 'jobs[1].options.ttl must not be 2 s', 'beside options and in it');
select is((select count(*) from oq_enqueue_many('[{"queue_name": "x", "ttl": null, "options": {"ttl": "2 s"}},
    {"queue_name": "x", "options": null, "ttl": "2 s"}]')), 2::bigint, 'null is not given');

select finish();
