-- oq_grant, oq_revoke: who may do what in a restricted queue; in every function, view and message.

-- Roles are the cluster's: all that uses them is rolled back.
begin;
create role tap_alice login in role oq_producer, oq_worker, oq_observer;
create role tap_bob login in role oq_producer, oq_worker, oq_observer;
create role tap_team;
create role tap_carol login in role oq_producer, oq_worker, oq_observer, tap_team;
create role tap_omar login in role oq_operator;
create role tap_noinherit login noinherit in role tap_team;

select oq_create_queue('secret', '{"restricted": true}') as x, oq_create_queue('open') as y \gset
select oq_enqueue('secret', '"s1"') as s1, oq_enqueue('secret', '"s2"') as s2,
    oq_enqueue('secret', '"s3"', run_at => now() + interval '1 h') as s3,
    oq_enqueue('secret', '"dead"') as x, oq_enqueue('open', '"o"') as o \gset
select oq_cancel(:s3) as x \gset
select job_id as held, lease_token as token from oq_lease('secret', 'root') \gset
select job_id as dead, oq_nack(job_id, lease_token, 'e', retry => false) from oq_lease('secret')
    \gset
select is(oq_grant('secret', 'tap_alice', '{produce,consume,observe}')::text, '',
    'grant all to alice');

-- Bob has the group roles and no grant: he sees nothing, may do nothing, and learns nothing from
-- the message.
set local session authorization tap_bob;
select is_empty('select from ' || v || ' where queue_name = ''secret''', v || ' shows nothing')
    from unnest('{oq_queues,oq_jobs,oq_dead,oq_workers}'::text[]) v;
select is((select array_agg(queue_name) from oq_queues), '{open}', 'the open one is shown');
select is_empty(format('select from oq_get(%s)', :s2), 'oq_get');
select is_empty(format('select from oq_result(%s)', :held), 'oq_result');
select is_empty(format('select from oq_attempts(%s)', :dead), 'oq_attempts');
select is_empty('select from oq_stats(''secret'')', 'oq_stats of it');
select is((select array_agg(queue_name) from oq_stats()), '{open}', 'oq_stats of all');
select throws_ok('select * from ' || c, '42501',
    '%tap_bob may not ' || p || ' in queue ''secret''%', c)
  from (values ('oq_enqueue(''secret'')', 'produce'), ('oq_enqueue(''secret'', priority => 5)',
      'produce'), ('oq_enqueue_bulk(''secret'', ''{1}'')', 'produce'),
    ('oq_enqueue_many(''[{"queue_name": "open"}, {"queue_name": "secret"}]'')', 'produce'),
    ('oq_lease(''secret'')', 'consume'),
    ('oq_lease(''secret'', max_jobs => 10)', 'consume'), ('oq_next(''secret'')', 'consume'),
    ('oq_listen(''secret'')', 'consume'),
    ('oq_throttle(''secret'', now())', 'consume')) v(c, p);
-- Who gives a job's id is not told its queue.
select throws_ok(c, '42501', '%tap_bob may not ' || p || ' in the queue of that job%', c)
  from (values (format('select oq_update(%s, ''{"priority": 1}'')', :s2), 'produce'),
      (format('select oq_cancel(%s)', :s2), 'produce'),
    (format('select oq_ack(%s, %s)', :held, :token), 'consume'),
    (format('select oq_ack(%s, %s, strict => true)', :held, :token), 'consume'),
    (format('select oq_ack_many(''{%s}'', ''{%s}'')', :held, :token), 'consume'),
    (format('select oq_nack(%s, %s)', :held, :token), 'consume'),
    (format('select oq_next(''open'', acked_job_ids => ''{%s}'', acked_tokens => ''{%s}'')', :held,
    :token), 'consume'),
    (format('select oq_next(''open'', acked_job_ids => ''{%s,0}'', acked_tokens => ''{%s,0}'')',
    :held, :token), 'consume'),
    (format('select oq_release(%s, %s)', :held, :token), 'consume'),
    (format('select oq_heartbeat(%s, %s)', :held, :token), 'consume'),
    (format('select * from oq_heartbeat_many(''{%s}'', ''{%s}'')', :held, :token), 'consume')) v(c,
    p);
select throws_ok('select ' || c, '42501', 'permission denied for function oq_%', c)
  from unnest(array['oq_grant(''secret'', ''tap_bob'', ''{observe}'')',
      'oq_revoke(''secret'', ''tap_alice'', ''{observe}'')', 'oq_create_queue(''secret'')',
    'oq_drop_queue(''secret'')', 'oq_pause(''secret'')', 'oq_resume(''secret'')',
    'oq_purge(''secret'', ''dead'')', 'oq_redrive(''secret'')', 'oq_adopt()', 'oq_repair()',
    'oq_tick()', 'oq_promote()', 'oq_reap()', 'oq_expire()', 'oq_advance()', 'oq_rotate()',
    'oq_compact()', 'oq_wake()', 'oq_lead()', 'oq_idle()', 'oq_run_schedules()']) c;
select throws_ok('select from oq.' || r, '42501', 'permission denied for schema oq', 'table ' || r)
    from unnest('{job,ready,queue,queue_now}'::text[]) r;
select throws_ok('select oq.may(1, ''observe'')', '42501', 'permission denied for schema oq',
    'a private function');

-- Alice has: each call works.
set local session authorization tap_alice;
select is((select array_agg(queue_name order by queue_name) from oq_queues), '{open,secret}',
    'alice sees it');
select is((select count(*) from oq_jobs where queue_name = 'secret'), 4::bigint, 'and its jobs');
select is((select count(*) from oq_dead), 1::bigint, 'the dead');
select is((select array_agg(worker_id) from oq_workers), '{root}', 'the workers');
select is((select payload from oq_get(:s3)), '"s3"'::jsonb, 'one job');
select is((select dead from oq_stats('secret')), 1::bigint, 'the numbers');
select ok(oq_enqueue('secret', '"s5"') > 0, 'enqueue');
select is(oq_heartbeat(:held, :token), 'ok', 'heartbeat');
select is(oq_ack(:held, :token), true, 'ack');
select job_id as j, lease_token as t from oq_lease('secret', 'alice') \gset
select is(oq_nack(:j, :t, retry_after => '0'), 'ready', 'lease, nack');
select is((select worker_id from oq_attempts(:j)), 'alice', 'attempts');

-- One privilege at a time, through a role that carol is a member of; revoked again.
reset session authorization;
select oq_grant('secret', 'tap_team', '{produce}') as x \gset
set local session authorization tap_carol;
select ok(oq_enqueue('secret') > 0, 'produce');
select throws_ok('select oq_lease(''secret'')', '42501', '%consume%', 'does not consume');
select is_empty('select from oq_jobs where queue_name = ''secret''', 'does not observe');
reset session authorization;
select oq_grant('secret', 'tap_team', '{consume,consume,produce}') as x \gset
select is(oq_revoke('secret', 'tap_team', '{produce,observe}')::text, '',
    'revoke, also what was not granted');
set local session authorization tap_carol;
select throws_ok('select oq_enqueue(''secret'')', '42501', '%produce%', 'no longer produces');
select is((select count(*) from oq_lease('secret')), 1::bigint, 'consumes');
reset session authorization;
select oq_revoke('secret', 'tap_team', '{consume}'), oq_grant('secret', 'tap_team', '{observe}')
    \g /dev/null
set local session authorization tap_carol;
select throws_ok('select oq_lease(''secret'')', '42501', '%consume%', 'no longer consumes');
select ok(count(*) > 0, 'observes') from oq_jobs where queue_name = 'secret';

-- The caller is the role that is set, else who logged in; a role that does not inherit has to be
-- set.
reset session authorization;
grant oq_observer to tap_noinherit;
grant tap_alice to tap_bob;
set local session authorization tap_bob;
select ok(oq_enqueue('secret') > 0, 'as a member of alice');
set local role tap_alice;
select ok(oq_enqueue('secret') > 0, 'as alice');
reset session authorization;
revoke tap_alice from tap_bob;
set local session authorization tap_bob;
select throws_ok('select oq_enqueue(''secret'')', '42501', '%tap_bob%', 'no longer');
create function pg_temp.deputy() returns bigint language sql security definer
    as 'select oq_enqueue(''secret'')';
select throws_ok('select pg_temp.deputy()', '42501', '%tap_bob%',
    'nor through a function of his own');
reset session authorization;
set local role tap_bob;
select throws_ok('select oq_enqueue(''secret'')', '42501', '%tap_bob%',
    'nor as a superuser who set his role');
reset role;
select ok(oq_enqueue('secret') > 0, 'a superuser may');

-- Operators may all, in every queue.
set local session authorization tap_omar;
select ok(oq_enqueue('secret') > 0, 'an operator enqueues');
select is((select count(*) from oq_lease('secret')), 1::bigint, 'leases');
select ok(count(*) > 3, 'sees') from oq_jobs where queue_name = 'secret';
select is((select count(*) from oq_redrive('secret')), 1::bigint, 'redrives');
select is(oq_purge('secret', 'cancelled'), 1::bigint, 'purges');
select is(oq_pause('secret')::text, '', 'pauses');
select is(oq_drop_queue('secret', true), true, 'drops');
select is((select count(*) from oq_tick() where duty = 'sleep_ms'), 1::bigint, 'ticks');
reset session authorization;

-- What is granted is gone with the queue, and with the role.
select oq_create_queue('secret', '{"restricted": true}') as x \gset
set local session authorization tap_alice;
select throws_ok('select oq_enqueue(''secret'')', '42501', '%', 'grants went with the queue');
reset session authorization;
select oq_grant('secret', 'tap_team', '{produce}') as x \gset
drop role tap_team;
select oq_grant('secret', 'tap_alice', '{observe}') as x \gset
select is((select count(*) from oq.queue_grant), 1::bigint,
    'the grants of a dropped role are cleared away');

-- A queue that becomes restricted is so for what is leased already, in every call.
select oq_create_queue('later') as x \gset
select oq_enqueue_bulk('later', array['1', '2', '3', '4']::jsonb[]) \g /dev/null
set local session authorization tap_bob;
select array_agg(job_id order by job_id) as ids, array_agg(lease_token order by job_id) as tokens,
    min(job_id) as j, min(lease_token) as t from oq_lease('later', 'bob', max_jobs => 4) \gset
reset session authorization;
select oq_create_queue('later', '{"restricted": true}') as x \gset
set local session authorization tap_bob;
select throws_ok(c, '42501', '%tap_bob may not consume in the queue of that job%', c)
  from (values (format('select oq_ack(%s, %s)', :j, :t)),
    (format('select oq_ack_many(%L, %L)', :'ids', :'tokens')),
    (format('select oq_next(''open'', acked_job_ids => array[%s]::bigint[], acked_tokens => array[%s]::bigint[])', :j, :t)),
    (format('select oq_next(''open'', acked_job_ids => %L, acked_tokens => %L)', :'ids', :'tokens')),
    (format('select oq_nack(%s, %s)', :j, :t)), (format('select oq_release(%s, %s)', :j, :t)),
    (format('select oq_heartbeat(%s, %s)', :j, :t))) v(c);
reset session authorization;
select is(oq_ack(:j, :t), true, 'an operator acks it');
select oq_create_queue('later', '{"restricted": false}') as x \gset
set local session authorization tap_bob;
select is((select count(*) from oq_ack_many(:'ids', :'tokens')), 3::bigint, 'restricted no more');
reset session authorization;

-- Who has no group role at all.
create role tap_nobody login;
set local session authorization tap_nobody;
select throws_ok('select ' || c, '42501', 'permission denied for function %', c)
  from unnest(array['oq_enqueue(''open'')', 'oq_lease(''open'')', 'oq_ack(1, 1)', 'oq_stats()',
      'oq_version()', 'oq_cancel(1)', 'oq_get(1)', 'oq_audit()']) c;
select throws_ok('select from ' || v, '42501', 'permission denied for view %', v)
    from unnest('{oq_queues,oq_jobs,oq_dead,oq_workers,oq_schedules}'::text[]) v;
reset session authorization;

-- Each group role has its own functions and no other's.
select results_eq(format('select string_agg(p.proname, '','' order by p.proname collate "C")
    from pg_proc p where p.pronamespace = ''public''::regnamespace
    and p.proname like ''oq\_%%'' and has_function_privilege(%L, p.oid, ''execute'')', r),
    format('values (%L)', regexp_replace(f, '\s', '', 'g')), r)
  from (values
    ('oq_producer', 'oq_batch,oq_batch_seal,oq_cancel,oq_enqueue,oq_enqueue_bulk,oq_enqueue_many,oq_enqueue_row,oq_next_runs,oq_publish,
    oq_schedule,oq_subscribe,oq_unschedule,oq_unsubscribe,oq_unwatch,oq_update,oq_version,oq_watch,oq_watch_fire'),
    ('oq_worker',
    'oq_ack,oq_ack_many,oq_heartbeat,oq_heartbeat_many,oq_lease,oq_listen,oq_nack,oq_next,
    oq_parents,oq_release,oq_throttle,oq_unlisten,oq_version'),
    ('oq_observer', 'oq_attempts,oq_audit,oq_explain,oq_get,oq_list,oq_next_runs,oq_parents,oq_result,oq_stats,oq_version'),
    ('oq_daemon',
    'oq_advance,oq_compact,oq_expire,oq_idle,oq_lead,oq_promote,oq_reap,oq_rotate,oq_run_schedules,oq_stats,oq_tick,
    oq_version,oq_wake')) v(r, f);
select ok(not rolcanlogin, rolname || ' can not log in') from pg_roles
    where rolname in ('oq_producer', 'oq_worker', 'oq_observer', 'oq_operator', 'oq_daemon')
        order by rolname;
rollback;

-- Bad input.
select oq_create_queue('q', '{"restricted": true}') as x \gset
select refuses_bad_names('select ' || f || '(%L, ''oq_worker'', ''{consume}'')')
    from unnest('{oq_grant,oq_revoke}'::text[]) f;
select throws_ok('select ' || f || '(''q'', ' || a || ')', 'OQ001', m, f || ' ' || a)
  from (values ('null, ''{consume}''', 'role_name%null%'), ('0::regrole, ''{consume}''',
      'role_name%'), ('4294967295::oid::regrole, ''{consume}''', 'role_name%4294967295%'),
    ('''oq_worker'', null', 'privileges%null%'), ('''oq_worker'', ''{}''', 'privileges%{}%'),
    ('''oq_worker'', ''{lease}''', 'privileges%lease%'),
    ('''oq_worker'', ''{Consume}''', 'privileges%Consume%'),
    ('''oq_worker'', ''{consume,null}''', 'privileges%NULL%'),
    ('''oq_worker'', ''{""}''', 'privileges%'),
    ('''oq_worker'', ''{{consume,produce}}''', 'privileges%')) v(a, m),
    unnest('{oq_grant,oq_revoke}'::text[]) f;
select throws_ok(format('select %s(''nowhere'', ''oq_worker'', ''{consume}'')', f), 'OQ003',
    '%nowhere%', f || ' in an unknown queue') from unnest('{oq_grant,oq_revoke}'::text[]) f;

select finish();
