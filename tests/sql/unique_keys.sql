-- oq_enqueue, oq_enqueue_many: unique_key, unique_mode, unique_for, debounce_max.

-- skip, the default: one unfinished job a key and queue.
select oq_enqueue('q', '{"n": 1}', unique_key => 'k') as a \gset
select is(oq_enqueue('q', '{"n": 2}', unique_key => 'k'), :a::bigint, 'the same key gives the first job');
select ok(oq_enqueue('q', '{"n": 2}', unique_key => 'K') <> :a, 'another key, another job');
select ok(oq_enqueue('other', '{"n": 2}', unique_key => 'k') <> :a, 'keys are a queue''s own');
select results_eq(format('select payload, unique_key from oq_get(%s)', :a), $$values ('{"n": 1}'::jsonb, 'k'::text)$$,
    'skip changes nothing');

-- The key is free again when the job is over, however it ended.
select job_id as id, lease_token as token from oq_lease('q') where job_id = :a \gset
select is(oq_enqueue('q', unique_key => 'k'), :a::bigint, 'taken while leased');
select oq_nack(:a, :token, 'no') \gset
select is(oq_enqueue('q', unique_key => 'k'), :a::bigint, 'taken while it waits for its retry');
select oq_cancel(:a) as x \gset
select oq_enqueue('q', unique_key => 'k') as b \gset
select ok(:b <> :a, 'free after a cancel');
select oq_enqueue('dies', '{}', max_retries => 0, unique_key => 'k') as d \gset
select is(kill_job('dies', 'x'), :d::bigint, 'dead');
select oq_enqueue('dies', unique_key => 'k') as e \gset
select ok(:e <> :d, 'a dead job gives its key free');
select oq_enqueue('done', unique_key => 'k') as f \gset
select oq_ack(job_id, lease_token) as x from oq_lease('done') \gset
select ok(oq_enqueue('done', unique_key => 'k') <> :f, 'free after an ack');
select oq_enqueue('gone', unique_key => 'k') as g \gset
select oq_purge('gone', 'ready') as x \gset
select ok(oq_enqueue('gone', unique_key => 'k') <> :g, 'free after a purge');

-- A job whose time to live has passed swallows nothing, though nobody has ended it yet; one that a worker has is no such.
select oq_enqueue('lives', '{"n": 1}', unique_key => 'k', options => '{"ttl": "1 hour"}') as a \gset
select pass_lives() \g /dev/null
select oq_enqueue('lives', '{"n": 2}', unique_key => 'k') as b \gset
select ok(:b <> :a, 'free when its time to live has passed');
select is((select array_agg(concat_ws(' ', job_id, unique_key) order by job_id) from oq_jobs where queue_name = 'lives'),
    array[:'a', :'b' || ' k'], 'and the new job has it');
select oq_expire() \g /dev/null
select is(state_of(:a), 'expired', 'ended by the tick');
select is(oq_enqueue('lives', '{"n": 3}', unique_key => 'k', options => '{"unique_mode": "replace"}'), :b::bigint, 'taken again');
select oq_enqueue('lives2', unique_key => 'k', options => '{"ttl": "1 hour"}') as a \gset
select count(*) from oq_lease('lives2') \g /dev/null
select pass_lives() \g /dev/null
select is(oq_enqueue('lives2', unique_key => 'k'), :a::bigint, 'taken while a worker has it');

-- unique_for outlives the job, and its row.
select oq_enqueue('long', unique_key => 'k', options => '{"unique_for": "1 hour"}') as h \gset
select oq_ack(job_id, lease_token, '"sent"') as x from oq_lease('long') \gset
select is(oq_enqueue('long', unique_key => 'k', options => '{"unique_for": "1 hour"}'), :h::bigint, 'taken though it is over');
select results_eq(format('select state, result from oq_result(%s)', :h), $$values ('completed', '"sent"'::jsonb)$$,
    'its result is there');
select throws_ok($$select oq_enqueue('long', unique_key => 'k', options => '{"unique_mode": "reject"}')$$, 'OQ005',
    'job%has the unique key%k%', 'reject sees it too');
select is(oq_enqueue('long', '{"n": 9}', unique_key => 'k', options => '{"unique_mode": "replace"}'), :h::bigint,
    'and nothing is left to replace');
select oq_purge('long', 'completed') as x \gset
select is(oq_enqueue('long', unique_key => 'k'), :h::bigint, 'taken though every row of the job is gone');
select oq_rotate() as x \gset
select is(oq_enqueue('long', unique_key => 'k'), :h::bigint, 'the sweep leaves it');
update oq.unique_key set until = until - interval '2 hours';
select ok(oq_enqueue('long', unique_key => 'k') <> :h, 'free when the time has passed');

-- The sweep takes what is stale and nothing else.
select oq_enqueue('swept', unique_key => 'stale') as s \gset
select oq_cancel(:s) as x \gset
select oq_enqueue('swept', unique_key => 'live') as l \gset
select oq_rotate() as x \gset
select results_eq('select u.job_id from oq.unique_key u join oq.queue q using (queue_id) where q.queue_name = ''swept''',
    format('values (%s::bigint)', :l), 'only the unfinished job keeps its row');
select is(oq_enqueue('swept', unique_key => 'live'), :l::bigint, 'and its key');

-- reject.
select throws_ok($$select oq_enqueue('swept', unique_key => 'live', options => '{"unique_mode": "reject"}')$$, 'OQ005',
    format('job %s has the unique key ''live''', :l), 'reject names the job');
select ok(oq_enqueue('swept', unique_key => 'new', options => '{"unique_mode": "reject"}') > :l, 'reject of a free key');

-- replace: the waiting job becomes what the last call says.
select oq_enqueue('r', '{"v": 1}', 3, now() + interval '1 hour', 7, unique_key => 'k', headers => '{"h": 1}') as r \gset
select is(oq_enqueue('r', '{"v": 2}', unique_key => 'k', options => '{"unique_mode": "replace"}'), :r::bigint, 'replace: the same job');
select results_eq(format('select state, payload, priority, max_retries, headers, run_at from oq_get(%s)', :r),
    $$values ('ready', '{"v": 2}'::jsonb, 0, 3, null::jsonb, null::timestamptz)$$, 'and all of it is new');
select lease_token as token from oq_lease('r') \gset
select oq_enqueue('r', '{"v": 3}', unique_key => 'k', options => '{"unique_mode": "replace"}') as t \gset
select ok(:t <> :r, 'while a worker holds it the change gets a job of its own');
select is(oq_enqueue('r', '{"v": 4}', unique_key => 'k', options => '{"unique_mode": "replace"}'), :t::bigint, 'which has the key now');
select ok(oq_ack(:r, :token), 'the worker is not disturbed');
select results_eq('select payload from oq_lease(''r'')', $$values ('{"v": 4}'::jsonb)$$, 'and the change runs after it');

-- Its time to live, retry policy, tags and unique_for are the last call's too; what ties it to others stays.
select oq_enqueue('r2', '{"v": 1}', unique_key => 'k', options => '{"ttl": "1 hour", "tags": ["a"], "unique_for": "1 day"}') as r \gset
select is(oq_enqueue('r2', '{"v": 2}', unique_key => 'k', options => '{"unique_mode": "replace", "ttl": "3 hours", "tags": ["b"],
    "retry": {"kind": "fixed", "base": "7 s"}, "unique_for": "2 days"}'), :r::bigint, 'replaced');
select results_eq(format($$select j.tags, j.retry ->> 'base', j.expires_at - j.created_at between '2 hours' and '4 hours',
        r.expires_at = j.expires_at, (select array_agg(t.expires_at) from oq.ttl t where t.job_id = j.job_id) = array[j.expires_at],
        (select k.until - k.taken_at > '47 hours' from oq.unique_key k where k.job_id = j.job_id)
      from oq.job j join oq.ready r using (job_id) where job_id = %s$$, :r),
    $$values ('{b}'::text[], '00:00:07', true, true, true, true)$$, 'time to live with one timer, retry, tags and unique_for are new');
select is(oq_enqueue('r2', '{"v": 3}', unique_key => 'k', options => '{"unique_mode": "replace", "delay": "1 hour"}'), :r::bigint,
    'replaced by less');
select results_eq(format($$select j.tags, j.retry, j.expires_at, s.expires_at,
        (select count(*) from oq.ttl t where t.job_id = j.job_id),
        (select k.until from oq.unique_key k where k.job_id = j.job_id)
      from oq.job j join oq.scheduled s using (job_id) where job_id = %s$$, :r),
    $$values (null::text[], null::jsonb, null::timestamptz, null::timestamptz, 0::bigint, null::timestamptz)$$,
    'what it does not say is gone');
select is(oq_enqueue('r2', '{"v": 4}', unique_key => 'k', options => '{"unique_mode": "debounce", "delay": "1 hour", "ttl": "2 hours"}'),
    :r::bigint, 'a time to live comes');
select results_eq(format($$select s.expires_at = j.expires_at and s.expires_at > s.due_at,
        (select array_agg(t.expires_at) from oq.ttl t where t.job_id = j.job_id) = array[j.expires_at]
      from oq.job j join oq.scheduled s using (job_id) where job_id = %s$$, :r), $$values (true, true)$$, 'with its timer');
select is_empty('select from oq_audit() where violations > 0', 'the tables agree');
select oq_enqueue('r2', unique_key => 'g', group_key => 'one', options => '{"ttl": "1 hour"}') as r \gset
select is((select array_agg(m.job_id) from oq_enqueue_many('[{"queue_name": "r2", "unique_key": "g", "group_key": "two", "unique_mode":
    "replace", "ttl": "3 hours"}]') m), array[:r::bigint], 'in many');
select results_eq(format($$select group_key, w.expires_at - created_at > '2 hours' from oq.job j join (select job_id, expires_at
    from oq.waiting union all select job_id, expires_at from oq.ready) w using (job_id) where job_id = %s$$, :r),
    $$values ('one', true)$$, 'its group stays');

-- debounce: put off by each call, at most to debounce_max after the first.
select oq_enqueue('b', '{"v": 1}', unique_key => 'k',
    options => '{"unique_mode": "debounce", "delay": "10 s", "debounce_max": "25 s"}') as d \gset
select is(oq_enqueue('b', '{"v": 2}', unique_key => 'k',
    options => '{"unique_mode": "debounce", "delay": "20 s", "debounce_max": "25 s"}'), :d::bigint, 'debounce: the same job');
select results_eq(format('select payload, state, run_at - created_at between ''19 s'' and ''22 s'' from oq_get(%s)', :d),
    $$values ('{"v": 2}'::jsonb, 'scheduled', true)$$, 'put off');
select is(oq_enqueue('b', '{"v": 3}', unique_key => 'k',
    options => '{"unique_mode": "debounce", "delay": "1 hour", "debounce_max": "25 s"}'), :d::bigint, 'and again');
select ok((select run_at - created_at = interval '25 s' from oq_get(:d)), 'not beyond debounce_max');
select throws_ok($$select oq_enqueue('b', unique_key => 'k', options => '{"unique_mode": "debounce"}')$$, 'OQ001',
    'options.delay%', 'debounce needs a delay');

-- So is the first one.
select oq_enqueue('b1', unique_key => 'k', options => '{"unique_mode": "debounce", "delay": "1 hour", "debounce_max": "25 s"}'),
    oq_enqueue('b1', unique_key => 'k2', run_at => now() + interval '1 hour', options => '{"unique_mode": "debounce",
        "debounce_max": "25 s"}') \g /dev/null
select count(*) from oq_enqueue_many('[{"queue_name": "b1", "unique_key": "k3", "unique_mode": "debounce", "delay": "1 hour",
    "debounce_max": "25 s"}, {"queue_name": "b1", "delay": "1 hour"}]') \g /dev/null
select is(array(select run_at - created_at from oq_jobs where queue_name = 'b1' order by job_id),
    '{25 s,25 s,25 s,1 hour}'::interval[], 'nor is the first');

-- Two debounces in one call are bound by the same first enqueue.
update oq.unique_key set taken_at = taken_at - interval '10 s';
select results_eq($$select idx, job_id, inserted from oq_enqueue_many('[
        {"queue_name": "b", "unique_key": "k", "unique_mode": "debounce", "delay": "1 hour", "debounce_max": "25 s"},
        {"queue_name": "b", "unique_key": "k", "unique_mode": "debounce", "delay": "1 hour", "debounce_max": "25 s",
            "payload": {"v": 5}}]')$$,
    format('values (0, %s::bigint, false), (1, %1$s, false)', :d), 'twice in one call');
select ok((select run_at - created_at = interval '15 s' and payload = '{"v": 5}' from oq_get(:d)), 'not beyond the first''s');

-- What makes no sense.
select throws_ok(format('select oq_enqueue(''x'', unique_key => %s, options => %L)', k, o), 'OQ001', m, o)
  from (values
    ('null', '{"unique_mode": "skip"}', 'unique_key must not be null'),
    ('null', '{"unique_for": "1 s"}', 'unique_key must not be null'),
    ('''k''', '{"unique_mode": "first"}', 'options.unique_mode%first%'),
    ('''k''', '{"unique_for": "0 s"}', 'options.unique_for%0 s%'),
    ('''k''', '{"unique_for": "101 years"}', 'options.unique_for%'),
    ('''k''', '{"debounce_max": "1 s"}', 'options.debounce_max must not be 00:00:01'),
    ('''''', '{}', 'unique_key%'),
    ('repeat(''x'', 1001)', '{}', 'unique_key%')) v(k, o, m);
select throws_ok($$select * from oq_enqueue_many('[{"queue_name": "x"}, {"queue_name": "x", "unique_for": "1 s"}]')$$,
    'OQ001', 'jobs[1].unique_key%', 'an element is named');
select is_empty('select from oq_jobs where queue_name = ''x''', 'nothing was made');

-- Many: one statement, and one key in it several times is as several calls.
select oq_enqueue('m', '{"v": 0}', unique_key => 'there') as m \gset
select results_eq($$select m.idx, m.inserted, m.job_id = min(m.job_id) over (partition by e.job ->> 'unique_key'), j.payload
      from oq_enqueue_many('[
        {"queue_name": "m", "payload": {"v": 1}, "unique_key": "a"},
        {"queue_name": "m", "payload": {"v": 2}},
        {"queue_name": "m", "payload": {"v": 3}, "unique_key": "there"},
        {"queue_name": "m", "payload": {"v": 4}, "unique_key": "a"},
        {"queue_name": "m", "payload": {"v": 5}, "unique_key": "b", "unique_mode": "replace"},
        {"queue_name": "m", "payload": {"v": 6}, "unique_key": "b", "unique_mode": "replace", "priority": 4}]') m
      join lateral jsonb_array_element('[{"unique_key": "a"}, {"unique_key": "-"}, {"unique_key": "there"},
        {"unique_key": "a"}, {"unique_key": "b"}, {"unique_key": "b"}]', m.idx) e(job) on true
      join lateral oq_get(m.job_id) j on true order by m.idx$$,
    $$select * from (values (0, true, true, '{"v": 1}'::jsonb), (1, true, true, '{"v": 2}'), (2, false, true, '{"v": 0}'),
        (3, false, true, '{"v": 1}'), (4, true, true, '{"v": 6}'), (5, false, true, '{"v": 6}')) v$$,
    'inserted, and whose id');
-- A change behind another of its key finds what a call of its own would: here a worker with the job.
select oq_enqueue('n', '{"v": 0}', unique_key => 'k') as n \gset
select lease_token as token from oq_lease('n') \gset
select results_eq(format($$select m.idx, m.inserted, m.job_id = %s, j.payload from oq_enqueue_many('[
        {"queue_name": "n", "payload": {"v": 1}, "unique_key": "k"},
        {"queue_name": "n", "payload": {"v": 2}, "unique_key": "k", "unique_mode": "replace"},
        {"queue_name": "n", "payload": {"v": 3}, "unique_key": "k"},
        {"queue_name": "n", "payload": {"v": 4}, "unique_key": "k", "unique_mode": "replace"},
        {"queue_name": "n", "payload": {"v": 5}, "unique_key": "k"}]') m
      join lateral oq_get(m.job_id) j on true order by m.idx$$, :n),
    $$select * from (values (0, false, true, '{"v": 0}'::jsonb), (1, true, false, '{"v": 4}'), (2, false, false, '{"v": 4}'),
        (3, false, false, '{"v": 4}'), (4, false, false, '{"v": 4}')) v$$, 'the change has a job of its own');
select results_eq(format('select state, unique_key from oq_get(%s)', :n), $$values ('leased', null::text)$$,
    'which took the key over');
select ok(oq_nack(:n, :token, 'no') = 'scheduled', 'what comes back has no key any more');
select is_empty('select law from oq_audit() where violations > 0', 'so one job has it');
-- An element that waits for one before it, by its ref.
select lease_token as token, job_id as n from oq_lease('n') \gset
select oq_enqueue_many as r from oq_enqueue_many('[{"queue_name": "n", "ref": "a", "payload": {"v": 6}},
    {"queue_name": "n", "unique_key": "k"},
    {"queue_name": "n", "payload": {"v": 7}, "unique_key": "k", "unique_mode": "replace", "depends_on_refs": ["a"]}]') \g /dev/null
select results_eq($$select c.state, p.payload from oq_jobs c, oq_parents(c.job_id) d, oq_get(d.parent_id) p
    where c.payload = '{"v": 7}'$$, $$values ('waiting', '{"v": 6}'::jsonb)$$, 'refs hold in the job of its own');
select throws_ok($$select * from oq_enqueue_many('[{"queue_name": "m", "unique_key": "c"},
    {"queue_name": "m", "unique_key": "c", "unique_mode": "reject"}]')$$, 'OQ005', 'jobs[1]%', 'reject within a call');
select is_empty($$select from oq_jobs where unique_key = 'c'$$, 'which makes nothing');
select results_eq($$select count(*), count(distinct job_id), count(*) filter (where inserted) from oq_enqueue_many((
    select jsonb_agg(jsonb_build_object('queue_name', 'bulk', 'unique_key', 'k' || i % 3000)) from generate_series(1, 6000) i))$$,
    'values (6000::bigint, 3000::bigint, 3000::bigint)', '6,000 jobs of 3,000 keys');
select results_eq($$select count(*), count(*) filter (where inserted) from oq_enqueue_many((
    select jsonb_agg(jsonb_build_object('queue_name', 'bulk', 'unique_key', 'k' || i)) from generate_series(0, 3999) i))$$,
    'values (4000::bigint, 1000::bigint)', 'and again, a thousand of them new');

-- Redriven: the newest of a key takes it back where it is free; else a job comes back without.
select oq_enqueue('d', '{"v": 1}', max_retries => 0, unique_key => 'k') as a \gset
select kill_job('d', 'x') as x \gset
select oq_enqueue('d', '{"v": 2}', max_retries => 0, unique_key => 'k') as b \gset
select kill_job('d', 'x') as x \gset
select is((select array_agg(j order by j) from oq_redrive('d') j), array[:a, :b]::bigint[], 'both come back');
select results_eq('select job_id, unique_key from oq_jobs where queue_name = ''d'' order by job_id',
    format('values (%s::bigint, null), (%s, ''k'')', :a, :b), 'one with the key');
select is(oq_enqueue('d', unique_key => 'k'), :b::bigint, 'which is taken');
select oq_cancel(:b) as x, oq_rotate() as y \gset
select oq_enqueue('d', unique_key => 'k') as c \gset
select is((select array_agg(j) from oq_redrive('d', '{"state": "cancelled"}') j), array[:b]::bigint[], 'from cancelled');
select results_eq('select job_id, unique_key from oq_jobs where queue_name = ''d'' order by job_id',
    format('values (%s::bigint, null), (%s, null), (%s, ''k'')', :a, :b, :c), 'another has it by then');
select oq_cancel(:c) as x \gset
select count(oq_rotate()) as y from generate_series(1, 30) \gset
select is_empty('select from oq.unique_key k join oq.queue q using (queue_id) where q.queue_name = ''d''', 'swept');
select oq_redrive('d', '{"state": "cancelled"}') as x \gset
select is(oq_enqueue('d', unique_key => 'k'), :c::bigint, 'and taken again');
select oq_enqueue('e', max_retries => 0, unique_key => 'k', options => '{"unique_for": "1 hour"}') as e \gset
select kill_job('e', 'x') as x, oq_redrive('e') as y \gset
select results_eq('select until > now() + interval ''59 min'' from oq.unique_key u where u.job_id = ' || :e, 'values (true)',
    'unique_for goes on');

-- A full queue still gives the job that has the key, and takes a change.
select oq_create_queue('full', '{"max_depth": 1}') as x \gset
select oq_enqueue('full', unique_key => 'k') as f \gset
select is(oq_enqueue('full', unique_key => 'k'), :f::bigint, 'a full queue: skip');
select is(oq_enqueue('full', '{"v": 2}', unique_key => 'k', options => '{"unique_mode": "replace"}'), :f::bigint, 'replace');
select throws_ok('select oq_enqueue(''full'', unique_key => ''l'')', 'OQ006', '%full%', 'a new key does not fit');
select throws_ok($$select * from oq_enqueue_many('[{"queue_name": "full", "unique_key": "k"}, {"queue_name": "full"}]')$$,
    'OQ006', '%full%', 'nor what stands beside it');

-- A dropped queue takes its keys along.
select oq_enqueue('dropped', unique_key => 'k', options => '{"unique_for": "1 day"}') as f \gset
select oq_drop_queue('dropped', force => true) as x \gset
select ok(oq_enqueue('dropped', unique_key => 'k') <> :f, 'a new queue, a new key');

select is_empty('select law from oq_audit() where violations > 0', 'the laws hold');
select finish();
