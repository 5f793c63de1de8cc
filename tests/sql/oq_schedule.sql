-- oq_schedule, oq_unschedule, oq_schedules: making, changing and ending schedules.
set timezone = 'UTC';

-- A nightly report: the example of the reference.
select is(oq_schedule('nightly report', '0 3 * * *', 'reports', '{"report": "sales"}', 'Europe/Berlin',
    '{"overlap": "skip", "max_retries": 5, "ttl": "12 hours"}'),
    (select min(r) from oq_next_runs('0 3 * * *', 'Europe/Berlin') r), 'the next run is returned');
select results_eq('select schedule_name, cron, timezone, queue_name, next_run_at = (select min(r) from
    oq_next_runs(''0 3 * * *'', ''Europe/Berlin'') r), last_run_at, last_job_id, paused, missed, overlap, owner, runs,
    skipped, last_error, payload, job_options from oq_schedules', format($$values ('nightly report'::text, '0 3 * * *'::text,
    'Europe/Berlin'::text, 'reports'::text, true, null::timestamptz, null::bigint, false, 'one'::text, 'skip'::text,
    %L::name, 0::bigint, 0::bigint, null::text, '{"report": "sales"}'::jsonb,
    '{"max_retries": 5, "options": {"ttl": "12 hours"}}'::jsonb)$$, session_user), 'it is shown');
select is((select count(*) from oq_jobs), 0::bigint, 'nothing is enqueued');
select is((select count(*) from oq_queues where queue_name = 'reports'), 1::bigint, 'its queue is there');
-- Night comes.
select tap.pass_schedules() \g /dev/null
select date_trunc('hour', now()) as night \gset
update oq.schedule set due_at = :'night';
select is(oq_run_schedules(), 1::bigint, 'one run');
select is(oq_run_schedules(), 0::bigint, 'and no other');
select results_eq('select queue_name, payload, headers, max_retries, expires_at is not null from oq_jobs',
    format($$values ('reports'::text, '{"report": "sales"}'::jsonb, '{"schedule": "nightly report", "scheduled_at": "%s"}'::jsonb,
    5, true)$$, to_char(:'night'::timestamptz, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), 'its job says which run it is');
select results_eq('select last_run_at, last_job_id, runs, next_run_at > now() from oq_schedules',
    format('select %L::timestamptz, max(job_id), 1::bigint, true from oq_jobs', :'night'), 'the schedule says when and which');
-- The job is not done: the next night is left out.
select tap.pass_schedules() \g /dev/null
update oq.schedule set due_at = date_trunc('hour', now());
select is(oq_run_schedules(), 0::bigint, 'overlap skip: not while the job before is unfinished');
select is((select skipped from oq_schedules), 1::bigint, 'and that is counted');
select oq_ack(job_id, lease_token) from oq_lease('reports') \g /dev/null
select tap.pass_schedules() \g /dev/null
update oq.schedule set due_at = date_trunc('hour', now());
select is(oq_run_schedules(), 1::bigint, 'done: it runs');
select is(oq_unschedule('nightly report'), true, 'ended');
select is(oq_unschedule('nightly report'), false, 'it was ended');
select is_empty('select from oq_schedules', 'and is not shown');
select is((select count(*) from oq_jobs where state = 'ready'), 1::bigint, 'what it enqueued stays');

-- Called again it changes what is named, and no other option.
select oq_schedule('s', '0 3 * * *', 'q', '1', options => '{"missed": "all", "priority": 7, "headers": {"h": 1},
    "tags": ["a"], "ttl": "1 h"}') as x \gset
select schedule_id as id, created_at as made from oq.schedule \gset
select is(oq_schedule('s', '0 4 * * *', 'q2', '2', 'Asia/Tokyo', '{"overlap": "skip", "ttl": null}'),
    (select min(r) from oq_next_runs('0 4 * * *', 'Asia/Tokyo') r), 'changed');
select results_eq('select cron, timezone, queue_name, payload, missed, overlap, job_options, created_at from oq_schedules',
    format($$values ('0 4 * * *'::text, 'Asia/Tokyo'::text, 'q2'::text, '2'::jsonb, 'all'::text, 'skip'::text,
    '{"headers": {"h": 1}, "options": {"tags": ["a"]}, "priority": 7}'::jsonb, %L::timestamptz)$$, :'made'),
    'options that are not named stay, null is the default again');
select is(oq_schedule('s', '0 4 * * *', 'q2', '2', 'Asia/Tokyo', '{"paused": true}'), null, 'paused');
select results_eq('select paused, next_run_at, missed, overlap from oq_schedules',
    $$values (true, null::timestamptz, 'all'::text, 'skip'::text)$$, 'nothing else is lost');
select is(oq_schedule('s', '0 4 * * *', 'q2', '2', 'Asia/Tokyo'), null, 'a call that does not speak of it leaves it paused');
select is(oq_run_schedules(), 0::bigint, 'no run');
select is(oq_schedule('s', '0 4 * * *', 'q2', '2', 'Asia/Tokyo', '{"paused": false}'),
    (select min(r) from oq_next_runs('0 4 * * *', 'Asia/Tokyo') r), 'it goes on from now');
select oq_schedule('s', '0 4 * * *', 'q2', options => '{"options": {"retry": {"kind": "fixed"}}, "delay": "5 s"}') as x \gset
select is((select job_options from oq_schedules), '{"headers": {"h": 1}, "options": {"delay": "5 s", "retry": {"kind": "fixed"}},
    "priority": 7}', 'options replaces those of the job');

-- A change loses no run and doubles none.
begin;
select tap.pass_schedules() \g /dev/null
update oq.schedule set due_at = now() - interval '1 s';
select is(oq_schedule('s', '0 5 * * *', 'q2'), now() - interval '1 s', 'a run that is due stays due');
select is(oq_run_schedules(), 1::bigint, 'and comes');
select is((select next_run_at from oq_schedules), (select min(r) from oq_next_runs('0 5 * * *') r), 'then the new time');
-- What has run does not run again, though the clock went back an hour.
update oq.schedule set last_run_at = now() + interval '1 h';
select is(oq_schedule('s', '* * * * *', 'q2'), (select min(r) from oq_next_runs('* * * * *', after => now() + interval '1 h') r),
    'never an instant twice');
rollback;
select oq_unschedule('s') as x \gset
select oq_schedule('e', 'every 10 minutes', 'q') as first \gset
update oq.schedule set due_at = due_at - interval '3 minutes' returning due_at as moved \gset
select is(oq_schedule('e', 'every 10 minutes', 'q', '{"new": true}'), :'moved', 'an interval keeps its rhythm');
select ok(oq_schedule('e', 'every 11 minutes', 'q') > now() + interval '10 minutes', 'another one begins now');
select oq_unschedule('e') as x \gset

-- start and end.
select is(oq_schedule('w', '0 0 * * *', 'q', options => '{"start": "2090-01-01 00:00+00"}'), '2090-01-01 00:00+00',
    'the first instant may be start');
select is(oq_schedule('w', '0 1 * * *', 'q', options => '{"end": "2090-01-01 01:00+00"}'), '2090-01-01 01:00+00',
    'the last may be end');
select is(oq_schedule('w', '0 2 * * *', 'q'), null, 'none in between');
select results_eq('select next_run_at, start_at, end_at from oq_schedules',
    $$values (null::timestamptz, timestamptz '2090-01-01 00:00+00', timestamptz '2090-01-01 01:00+00')$$, 'it is shown');
select is(oq_schedule('w', '0 2 * * *', 'q', options => '{"start": null, "end": null}'),
    (select min(r) from oq_next_runs('0 2 * * *') r), 'without');
select is(oq_schedule('w', 'every 1 h', 'q', options => '{"start": "2090-01-01 00:00:07+00"}'), '2090-01-01 00:00:07+00',
    'an interval begins with start');
select is(oq_schedule('w2', '@daily', 'q', options => '{"end": "2000-01-01 00:00+00"}'), null, 'over before it began');
select is((select count(*) from oq_schedules where next_run_at is null), 1::bigint, 'shown all the same');
select oq_unschedule('w'), oq_unschedule('w2') \g /dev/null

-- What an enqueue would refuse is refused now; nothing is changed.
select oq_schedule('s', '@daily', 'q', options => '{"tags": ["x"]}') as x \gset
select refuses_bad_names('select oq_schedule(''t'', ''@daily'', %L)');
select throws_ok(format('select %s', c), 'OQ001', m, c)
  from (values
    ('oq_schedule(null, ''@daily'', ''q'')', 'schedule_name%NULL%'), ('oq_schedule('''', ''@daily'', ''q'')', 'schedule_name%'),
    ('oq_schedule('' a'', ''@daily'', ''q'')', 'schedule_name% a%'),
    ('oq_schedule(E''a\nb'', ''@daily'', ''q'')', 'schedule_name%'),
    ('oq_schedule(repeat(''n'', 101), ''@daily'', ''q'')', 'schedule_name%nnn%'),
    ('oq_unschedule(null)', 'schedule_name%NULL%'), ('oq_unschedule('''')', 'schedule_name%'),
    ('oq_schedule(''s'', null, ''q'')', 'cron%null%'), ('oq_schedule(''s'', ''61 * * * *'', ''q'')', 'cron%minute: 61%'),
    ('oq_schedule(''s'', ''0 0 30 2 *'', ''q'')', 'cron%day of month: 30%'),
    ('oq_schedule(''s'', ''@daily'', ''q'', timezone => null)', 'timezone%null%'),
    ('oq_schedule(''s'', ''@daily'', ''q'', timezone => ''Mars/Olympus'')', 'timezone%Mars/Olympus%'),
    ('oq_schedule(''s'', ''@daily'', ''q'', null)', 'payload%null%'),
    ('oq_schedule(''s'', ''@daily'', ''q'', to_jsonb(repeat(''x'', 2000000)))', 'payload%2000002 bytes%')) v(c, m);
select throws_ok(format('select oq_schedule(''s'', ''@daily'', ''q'', options => %L)', o), 'OQ001', m, o)
  from (values ('[]', 'options%[]%'), ('"x"', 'options%'), ('null', 'options%null%'), ('{"mised": "one"}', 'options%mised%'),
    ('{"missed": "never"}', 'options.missed%never%'), ('{"overlap": true}', 'options.overlap%true%'),
    ('{"paused": "yes"}', 'options.paused%yes%'), ('{"paused": 1}', 'options.paused%1%'),
    ('{"start": "soon"}', 'options.start%soon%'), ('{"start": "infinity"}', 'options.start%infinity%'),
    ('{"end": []}', 'options.end%[]%'), ('{"end": "-infinity"}', 'options.end%-infinity%'),
    ('{"start": "2030-01-02", "end": "2030-01-01"}', 'options.end%2030-01-01%'),
    ('{"priority": 40000}', 'priority%40000%'), ('{"priority": "high"}', 'options.priority%high%'),
    ('{"priority": 1.5}', 'options.priority%1.5%'), ('{"max_retries": -1}', 'max_retries%-1%'),
    ('{"max_retries": "x"}', 'options.max_retries%x%'), ('{"unique_key": 5}', 'options.unique_key%5%'),
    ('{"group_key": {}}', 'options.group_key%{}%'), ('{"headers": "x"}', 'options.headers%x%'),
    ('{"headers": {"x": "' || repeat('h', 65500) || '"}}', 'headers%hhh%'),
    ('{"ttl": "1 s", "options": {"ttl": "2 s"}}', 'options.ttl%1 s%'),
    ('{"options": 1}', 'options.options%1%'), ('{"options": {"unknown": 1}}', 'options%unknown%'),
    ('{"options": {"missed": "one"}}', 'options%missed%'), ('{"ttl": "x"}', 'options.ttl%x%'), ('{"retry": 1}', 'options.retry%1%'),
    ('{"run_at": "2030-01-01"}', 'options%run_at%'), ('{"payload": 1}', 'options%payload%')) v(o, m);
select results_eq('select schedule_name, cron, job_options from oq_schedules',
    $$values ('s'::text, '@daily'::text, '{"options": {"tags": ["x"]}}'::jsonb)$$, 'as it was');
select is((select count(*) from oq_jobs where state = 'ready' and queue_name = 'q'), 0::bigint, 'no job of a trial is left');
-- A queue that is full now may have room at the time.
select oq_create_queue('full', '{"max_depth": 1}') as x \gset
select oq_enqueue('full') as x \gset
select ok(oq_schedule('f', '@daily', 'full') > now(), 'a full queue');
select oq_unschedule('f') as x \gset

-- Times without an offset mean what they do where the schedule is made.
set timezone = 'Asia/Tokyo';
select oq_schedule('tokyo', '@daily', 'tokyo', options => '{"expires_at": "2100-01-01 12:00"}'),
    oq_schedule('tokyo2', '@daily', 'tokyo', options => '{"options": {"expires_at": "2100-01-01 12:00", "tags": ["t"]}}') \g /dev/null
reset timezone;
select is((select array_agg((job_options -> 'options' ->> 'expires_at')::timestamptz) from oq_schedules where queue_name = 'tokyo'),
    array['2100-01-01 03:00+00', '2100-01-01 03:00+00']::timestamptz[], 'the instants of Tokyo');
select oq_unschedule('tokyo'), oq_unschedule('tokyo2') \g /dev/null

-- A session with other rules for strings.
set standard_conforming_strings = off;
set escape_string_warning = off;
select is((select count(*) from unnest(array['*/5 1-2,4 ? * *', '  @daily ', 'every 90.0 seconds', 'every hour', '@every 1h30m']) c(cron),
    oq_next_runs(c.cron, count => 1)), 5::bigint, 'cron expressions');
select ok(oq_schedule('strings', '*/5 * * * *', 'strings') is not null, 'a schedule');
select throws_ok($$select oq_schedule(' strings', '* * * * *', 'strings')$$, 'OQ001', 'schedule_name%', 'and its name');
select oq_enqueue('strings', group_key => 'g'), oq_enqueue('strings', group_key => 'h') \g /dev/null
select is((select count(oq_ack(job_id, lease_token)) from oq_lease('strings', max_jobs => 2)), 2::bigint, 'groups');
create table strings (t text);
select oq_watch('strings', 'strings', ' insert , update or delete', condition => $$new.t ~ '^\d+$'$$) \g /dev/null
insert into strings values ('12'), ('d'), ('');
reset standard_conforming_strings;
insert into strings values ('13'), ('d'), ('');
select is((select array_agg(payload -> 'new' ->> 't' order by job_id) from oq_jobs where queue_name = 'strings' and state = 'ready'),
    '{12,13}', 'a watch, made in one and written in both');
reset escape_string_warning;
drop table strings;
select oq_unschedule('strings') \g /dev/null

-- At every isolation level, and gone with its transaction.
begin isolation level serializable;
select ok(oq_schedule('r', '@daily', 'q') > now() and oq_schedule('r', '@hourly', 'q') > now(), 'serializable');
select is(oq_unschedule('s'), true, 'and the end');
rollback;
select is((select array_agg(schedule_name) from oq_schedules), '{s}', 'rolled back');

-- A queue that has schedules is dropped only by force, and they go with it.
select throws_ok('select oq_drop_queue(''q'')', '55000', 'queue ''q'' has schedules', 'not without force');
select is(oq_drop_queue('q', force => true), true, 'by force');
select is_empty('select from oq_schedules', 'with its schedules');

-- Who may: producers, in restricted queues those with a grant; change and end: the owner, members of that role, operators.
begin;
create role tap_alice login in role oq_producer, oq_observer;
create role tap_bob login in role oq_producer, oq_observer;
create role tap_team in role oq_producer;
create role tap_carol login in role oq_observer, tap_team;
create role tap_omar login in role oq_operator;
create role tap_watcher login in role oq_observer;
create role tap_worker login in role oq_worker;
create role tap_daemon login in role oq_daemon;
select oq_create_queue('secret', '{"restricted": true}') as x \gset
select oq_grant('secret', 'tap_alice', '{produce,observe}') as x \gset
set local session authorization tap_alice;
select ok(oq_schedule('a', '@daily', 'secret') > now(), 'alice');
select is((select owner from oq_schedules), 'tap_alice', 'is the owner');
set local session authorization tap_bob;
select is_empty('select from oq_schedules', 'bob does not see it');
select throws_ok('select oq_schedule(''b'', ''@daily'', ''secret'')', '42501', '%tap_bob may not produce in queue ''secret''%', 'bob');
select throws_ok('select oq_schedule(''a'', ''@daily'', ''open'')', '42501', '%tap_bob may not change schedule ''a''%', 'not hers');
select throws_ok('select oq_unschedule(''a'')', '42501', '%tap_bob may not change schedule ''a''%', 'nor end it');
set local session authorization tap_watcher;
select throws_ok('select oq_schedule(''b'', ''@daily'', ''open'')', '42501', 'permission denied%', 'an observer');
select throws_ok('select oq_unschedule(''a'')', '42501', 'permission denied%', 'an observer');
select is((select count(*) from oq_next_runs('@daily')), 5::bigint, 'may ask');
select throws_ok('select oq_run_schedules()', '42501', 'permission denied%', 'not run them');
set local session authorization tap_worker;
select throws_ok('select ' || c, '42501', 'permission denied%', 'a worker: ' || c) from unnest(array['oq_next_runs(''@daily'')',
    'oq_schedule(''b'', ''@daily'', ''open'')', 'oq_unschedule(''a'')', 'oq_run_schedules()']) c;
set local session authorization tap_carol;
set local role tap_team;
select ok(oq_schedule('t', '@daily', 'open') > now(), 'made by a team');
reset role;
select ok(oq_schedule('t', '@daily', 'open', '{"by": "carol"}') > now(), 'a member changes it');
select is((select owner from oq_schedules where schedule_name = 't'), 'tap_team', 'it stays the team''s');
set local session authorization tap_omar;
select ok(oq_schedule('a', '@hourly', 'secret') > now(), 'an operator changes it');
select is((select owner from oq_schedules where schedule_name = 'a'), 'tap_alice', 'it stays hers');
select ok(oq_schedule('t', '@hourly', 'open') > now(), 'and theirs');
select throws_ok('select oq_schedule(''t'', ''@hourly'', ''secret'')', '42501', '%tap_team may not produce in queue ''secret''%',
    'but not into a queue where they may not');
reset session authorization;

-- At the run it is the owner's right that counts, not that of whoever runs the duty.
select tap.pass_schedules() \g /dev/null
set local session authorization tap_daemon;
select is(oq_run_schedules(), 2::bigint, 'the daemon runs both');
select throws_ok('select oq_enqueue(''secret'')', '42501', '%', 'and may not enqueue itself');
reset session authorization;
select is((select count(*) from oq.deputy), 0::bigint, 'nothing is left of the deputy');
select oq_revoke('secret', 'tap_alice', '{produce}') as x \gset
select tap.pass_schedules() \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'alice has lost the right');
select is((select last_error from oq_schedules where schedule_name = 'a'), 'role tap_alice may not produce in queue ''secret'' (42501)',
    'which is noted');
select ok((select next_run_at from oq_schedules where schedule_name = 'a') > now(), 'it goes on');
set local session authorization tap_alice;
select throws_ok('select oq_schedule(''a'', ''@hourly'', ''secret'')', '42501', '%', 'nor can she change it');
select is(oq_schedule('a', '@hourly', 'secret', options => '{"paused": true}'), null, 'but pause it');
reset session authorization;
select oq_grant('secret', 'tap_alice', '{produce}') as x \gset
set local session authorization tap_alice;
select ok(oq_schedule('a', '@hourly', 'secret', options => '{"paused": false}') > now(), 'and again');
select is((select last_error from oq_schedules where schedule_name = 'a'), null, 'a change clears the error');
reset session authorization;
revoke oq_producer from tap_alice;
select tap.pass_schedules() \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'no producer any more');
grant oq_producer to tap_alice;
select tap.pass_schedules() \g /dev/null
select is(oq_run_schedules(), 2::bigint, 'a producer again');
select is((select last_error from oq_schedules where schedule_name = 'a'), null, 'a run clears the error');
-- A role that is gone, and one of the same name that is another.
revoke oq_producer from tap_team;
drop role tap_team;
create role tap_team in role oq_producer;
select tap.pass_schedules() \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'the team is gone');
select is((select last_error from oq_schedules where schedule_name = 't'), 'role tap_team may not produce in queue ''open'' (42501)',
    'which is noted');
set local session authorization tap_carol;
select throws_ok('select oq_unschedule(''t'')', '42501', '%', 'nobody inherits it');
set local session authorization tap_omar;
select ok(oq_schedule('t', '@hourly', 'open') > now(), 'an operator takes it over');
select is((select owner from oq_schedules where schedule_name = 't'), 'tap_omar', 'and owns it');
reset session authorization;
rollback;

-- role_may: the rights of a stored role, as may has the caller's.
begin;
create role tap_p in role oq_producer;
create role tap_w in role oq_worker;
create role tap_o in role oq_observer;
create role tap_op in role oq_operator;
create role tap_none;
create role tap_outer noinherit in role tap_p;
create role tap_granted in role oq_producer, oq_worker, oq_observer;
select oq_create_queue('secret', '{"restricted": true}'), oq_create_queue('open') \g /dev/null
select oq_grant('secret', 'tap_granted', '{produce,observe}') as x \gset
select is((select string_agg(left(p, 1) || case when oq.role_may(r::regrole, q.queue_id, p) then '+' else '-' end, ' ' order by n)
    from unnest('{produce,consume,observe}'::text[]) with ordinality x(p, n)), want, r || ' in ' || q.queue_name)
  from (values ('tap_p', 'open', 'p+ c- o-'), ('tap_w', 'open', 'p- c+ o-'), ('tap_o', 'open', 'p- c- o+'),
    ('tap_op', 'open', 'p+ c+ o+'), ('tap_none', 'open', 'p- c- o-'), ('tap_outer', 'open', 'p- c- o-'),
    ('tap_p', 'secret', 'p- c- o-'), ('tap_op', 'secret', 'p+ c+ o+'), ('tap_granted', 'secret', 'p+ c- o+'),
    (session_user, 'secret', 'p+ c+ o+')) v(r, queue, want)
  join oq.queue q on q.queue_name = v.queue;
select is(oq.role_may(4000000000, queue_id, 'produce'), false, 'a role that is gone') from oq.queue;
rollback;

-- Nobody can make himself a deputy.
begin;
create role tap_bob login in role oq_producer;
select oq_create_queue('secret', '{"restricted": true}') as x \gset
set local session authorization tap_bob;
select throws_ok('insert into oq.deputy (xid, queue_id) values (pg_current_xact_id(), 1)', '42501', 'permission denied%', 'deputy');
rollback;

select finish();
