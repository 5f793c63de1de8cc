-- oq_update: a job that nobody holds.

select oq_enqueue('q', '"old"', headers => '{"h": 1}') as a \gset
select is(oq_update(:a,
    '{"payload": {"new": true}, "headers": {"h": 2}, "max_retries": 7, "priority": 3}'), true,
    'four at once');
select results_eq(format('select state, payload, headers, max_retries, priority from oq_get(%s)',
    :a),
    $$values ('ready', '{"new": true}'::jsonb, '{"h": 2}'::jsonb, 7, 3)$$, 'they are changed');
select is(oq_update(:a, '{}'), true, 'nothing is a change as well');
select is(oq_update(:a, '{"headers": null, "max_retries": null, "payload": null}'), true, 'nulls');
select results_eq(format('select payload, headers, max_retries, priority from oq_get(%s)', :a),
    $$values ('null'::jsonb, null::jsonb, 3, 3)$$,
    'the queue''s max_retries, no headers, a null payload; the priority stays');

-- Priority: the job is leased where it then belongs, behind the others.
select count(*) as x from oq_enqueue_bulk('p', '{1,2,3}', 5) \gset
select oq_enqueue('p', '4') as low \gset
select is(oq_update(:low, '{"priority": 5}'), true, 'raised to the others'' priority');
select is((select array_agg(payload #>> '{}') from oq_lease('p', max_jobs => 3)), '{1,2,3}',
    'behind those of that priority');
select is((select job_id from oq_lease('p')), :low::bigint, 'then it');
select oq_enqueue('pp', '"x"') as x, oq_enqueue('pp', '"y"') as y \gset
select is(oq_update(:y, '{"priority": 32767}'), true, 'to the front');
select is(oq_update(:x, '{"priority": -32768}'), true, 'to the end');
select is((select array_agg(payload #>> '{}') from oq_lease('pp', max_jobs => 2)), '{y,x}',
    'a new order');

-- run_at: later, sooner, now.
select oq_enqueue('r') as r \gset
select is(oq_update(:r, '{"run_at": "2999-01-01T00:00:00Z"}'), true, 'later');
select results_eq(format('select state, run_at from oq_get(%s)', :r),
    $$values ('scheduled', timestamptz '2999-01-01T00:00:00Z')$$, 'scheduled');
select is_empty('select from oq_lease(''r'')', 'not leased');
select is(oq_update(:r, '{"run_at": "2998-01-01T00:00:00Z", "priority": 9}'), true,
    'a little sooner');
select results_eq(format('select state, run_at, priority from oq_get(%s)', :r),
    $$values ('scheduled', timestamptz '2998-01-01T00:00:00Z', 9)$$, 'still scheduled');
select is(oq_update(:r, '{"run_at": null}'), true, 'now');
select is((select priority from oq_lease('r')), 9, 'leased');
select is(oq_update(oq_enqueue('s', run_at => now() + interval '1 h'),
    jsonb_build_object('run_at', t)), true, 'run_at ' || t)
  from unnest(array['-infinity', '2000-01-01', 'now']) t;
select is((select count(*) from oq_lease('s', max_jobs => 9)), 3::bigint, 'all three are ready');

-- A retry keeps its attempts; a job that came back is found as well.
select oq_enqueue('f') as f \gset
select oq_nack(job_id, lease_token, 'e', retry_after => '1 h') from oq_lease('f') \g /dev/null
select is(oq_update(:f, '{"run_at": null, "priority": 1}'), true, 'a retry now');
select results_eq(format('select state, attempt, failures, error from oq_get(%s)', :f),
    $$values ('ready', 1, 1, 'e')$$, 'with its past');
select is(oq_update(:f, '{"priority": 2}'), true, 'a job that came back');
select is((select attempt from oq_lease('f')), 2, 'the second attempt');

-- False, and nothing changed: held, dead, finished, unknown.
select job_id as held, lease_token as token
    from oq_lease(case when oq_enqueue('h') > 0 then 'h' end) \gset
select unchanged(format('select oq_update(%s, ''{"priority": 1, "payload": 1}'')', :held), '{(f)}',
    'leased');
select oq_ack(:held, :token) as x \gset
select unchanged(format('select oq_update(%s, ''{"priority": 1}'')', :held), '{(f)}', 'completed');
select oq_enqueue('h') as c \gset
select oq_cancel(:c) as x \gset
select unchanged(format('select oq_update(%s, ''{"priority": 1}'')', :c), '{(f)}', 'cancelled');
select oq_enqueue('h') as d \gset
select tap.kill_job('h', 'e') as x \gset
select unchanged(format('select oq_update(%s, ''{"priority": 1}'')', :d), '{(f)}', 'dead');
select unchanged(format('select oq_update(%s, ''{"priority": 1}'')', i), '{(f)}',
    'job ' || coalesce(i, 'null'))
  from unnest('{0,-1,9223372036854775807,-9223372036854775808}'::text[]) i;
select unchanged('select oq_update(null, ''{"priority": 1}'')', '{(f)}', 'job null');

-- Bad patches, and the job stays as it was.
select oq_enqueue('bad') as b \gset
select throws_ok(format('select oq_update(%s, %L)', :b, p), 'OQ001', m, coalesce(p, 'null'))
  from (values (null, 'patch%null%'), ('null', 'patch%null%'), ('[]', 'patch%[]%'),
      ('1', 'patch%1%'), ('{"state": "dead"}', '%state%'),
    ('{"priority": 1, "prio": 1}', '%prio%'), ('{"priority": null}', 'patch.priority%null%'),
    ('{"priority": 32768}', 'patch.priority%32768%'),
    ('{"priority": -32769}', 'patch.priority%-32769%'), ('{"priority": 1.5}',
    'patch.priority%1.5%'), ('{"priority": "x"}', 'patch.priority%x%'),
    ('{"priority": 1e300}', 'patch.priority%1000%'), ('{"run_at": "infinity"}',
    'patch.run_at%infinity%'),
    ('{"run_at": "Infinity"}', 'patch.run_at%Infinity%'),
    ('{"run_at": "soon"}', 'patch.run_at%soon%'), ('{"run_at": []}', 'patch.run_at%[]%'),
    ('{"max_retries": -1}', 'patch.max_retries%-1%'),
    ('{"max_retries": 32768}', 'patch.max_retries%32768%'), ('{"max_retries": "x"}',
    'patch.max_retries%x%'),
    ('{"headers": []}', 'patch.headers%[]%'), ('{"headers": 1}', 'patch.headers%1%'),
    ('{"queue_name": "r"}', '%queue_name%'),
    ('{"group_key": "g"}', '%group_key%')) v(p, m);
select oq_create_queue('bad', '{"max_payload_bytes": 10}') as x \gset
select is(oq_update(:b, jsonb_build_object('payload', repeat('x', 8))), true,
    'a payload at the limit');
select throws_ok(format('select oq_update(%s, jsonb_build_object(''payload'', repeat(''x'', 9)))',
    :b), 'OQ001', '%payload%11 bytes%',
    'a payload over it');

-- Whoever has its group's turn keeps it, with another priority and before its retry is due; put off it gives it on.
select oq_enqueue('g', group_key => 'k') as a, oq_enqueue('g', group_key => 'k') as b \gset
select is(oq_update(:a, '{"priority": 5}'), true, 'the first in line gets a priority');
select results_eq('select job_id, priority from oq_lease(''g'', max_jobs => 9)', format('values (%s::bigint, 5)', :a),
    'and is the first still');
select oq_nack(l.job_id, l.token, 'e', retry_after => '1 h') from oq.leased l where l.job_id = :a \g /dev/null
select is(oq_update(:a, '{"run_at": null}'), true, 'its retry now');
select is(array(select job_id from oq_lease('g', max_jobs => 9)), array[:a::bigint], 'before the other');
select oq_release(l.job_id, l.token, '1 h') from oq.leased l where l.job_id = :a \g /dev/null
select is(oq_update(:a, jsonb_build_object('run_at', now() + interval '10 minutes')), true, 'a retry sooner');
select is_empty('select from oq_lease(''g'')', 'keeps the turn');
select is(oq_update(:a, '{"run_at": "2100-01-01"}'), true, 'a retry put off');
select is(array(select job_id from oq_lease('g', max_jobs => 9)), array[:b::bigint], 'gives it on');
select is(oq_update(:a, '{"run_at": null}'), true, 'now again');
select is(state_of(:a), 'waiting', 'behind whoever has it');
select oq_ack(l.job_id, l.token) from oq.leased l where l.job_id = :b \g /dev/null
select is(array(select job_id from oq_lease('g', max_jobs => 9)), array[:a::bigint], 'then it is its turn');
-- The same by replace.
select oq_enqueue('gr', '1', unique_key => 'u', group_key => 'k') as a, oq_enqueue('gr', '2', group_key => 'k') as b \gset
select oq_nack(job_id, lease_token, 'e', retry_after => '1 h') from oq_lease('gr') \g /dev/null
select oq_enqueue('gr', '3', 7, unique_key => 'u', group_key => 'k', options => '{"unique_mode": "replace"}') \g /dev/null
select results_eq('select payload, priority from oq_lease(''gr'', max_jobs => 9)', $$values (jsonb '3', 7)$$,
    'replaced while it waits for its retry: it keeps the turn');

select finish();
