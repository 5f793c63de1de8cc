-- oq_publish, oq_subscribe, oq_unsubscribe, oq_subscriptions: one job a matching queue, by the subscriber's right.

-- What matches, by AMQP's rules.
create table expected(pattern text, topic text, matches boolean);
insert into expected values
    ('a', 'a', true), ('a', 'a.b', false), ('a', 'b', false), ('a.b', 'a.b', true), ('a.b', 'a', false),
    ('*', 'a', true), ('*', 'a.b', false), ('a.*', 'a.b', true), ('a.*', 'a', false),
    ('a.*', 'a.b.c', false), ('*.b', 'a.b', true), ('*.*', 'a.b', true), ('*.*', 'a', false),
    ('a.*.c', 'a.b.c', true), ('a.*.c', 'a.c', false), ('a.*.*.d', 'a.b.c.d', true),
    ('#', 'a', true), ('#', 'a.b.c.d', true), ('a.#', 'a', true), ('a.#', 'a.b', true),
    ('a.#', 'a.b.c', true), ('a.#', 'ab', false), ('a.#', 'b.a', false), ('#.c', 'c', true),
    ('#.c', 'a.b.c', true), ('#.c', 'a.bc', false), ('a.#.c', 'a.c', true), ('a.#.c', 'a.b.b.c', true),
    ('a.#.c', 'a', false), ('a.#.c', 'a.c.d', false), ('#.b.#', 'b', true), ('#.b.#', 'a.b.c', true),
    ('#.b.#', 'a.c', false), ('#.#', 'a', true), ('*.#', 'a', true), ('*.#.*', 'a', false),
    ('*.#.*', 'a.b', true), ('a.#.a', 'a', false), ('a.#.a', 'a.a', true), ('A', 'a', false),
    ('a_b:c/d-e.*', 'a_b:c/d-e.f', true), ('a.*', 'a.b-c', true), ('*.c.#.f', 'b.c.d.e.f', true);
select oq_subscribe(pattern, 'q' || md5(pattern)) from (select distinct pattern from expected) p;
create function deliveries(topic text, pattern text)
returns bigint
language sql
as $$
    select count(*) from oq_jobs j
     where j.queue_name = 'q' || md5(pattern) and j.headers ->> 'topic' = topic
$$;
select oq_publish(topic) from (select distinct topic from expected) t;
select is(deliveries(topic, pattern) = 1, matches, pattern || ' and ' || topic)
  from expected order by pattern, topic;
select is_empty('select from expected where deliveries(topic, pattern) > 1', 'never two jobs in a queue');
select is(oq_publish('nothing.like.this.at.all.x'), 4, 'how many: for # #.# *.# *.#.*');
select is(bool_and(oq_unsubscribe(pattern, 'q' || md5(pattern))), true, 'end them all')
  from (select distinct pattern from expected) p;
select is(oq_publish('a'), 0, 'nobody is subscribed');

-- A queue with several matching subscriptions gets one job; the payload, headers and topic are in it.
select oq_subscribe(p, 'several') from unnest('{x.*,x.#,x.y,#.y}'::text[]) p;
select oq_subscribe('x.y', 'other');
select is(oq_publish('x.y', '{"n": 1}', '{"trace": "t", "topic": "forged"}'), 2, 'one job a queue');
select results_eq('select queue_name, payload, headers, priority, state from oq_jobs
        where queue_name in (''several'', ''other'') order by 1',
    $$values ('other', '{"n": 1}'::jsonb, '{"topic": "x.y", "trace": "t"}'::jsonb, 0, 'ready'),
        ('several', '{"n": 1}', '{"topic": "x.y", "trace": "t"}', 0, 'ready')$$, 'what is in the jobs');
select is((select headers ->> 'topic' from oq_lease('several')), 'x.y', 'the worker reads the topic');
select is(oq_publish('x.y.z', 'null'), 1, 'a null payload is one');

-- The transaction decides.
begin;
select oq_publish('x.y', '"rolled back"') as x \gset
rollback;
select is_empty('select from oq_jobs where payload = ''"rolled back"''', 'rolled back with its transaction');
begin isolation level serializable;
select is(oq_publish('x.y'), 2, 'serializable');
commit;

-- Subscriptions.
select is(oq_subscribe('x.y', 'several')::text, '', 'again');
select is((select count(*) from oq_subscriptions where queue_name = 'several'), 4::bigint, 'changes nothing');
select results_eq('select topic_pattern, queue_name, owner, problem, created_at <= now() + interval ''1 s''
        from oq_subscriptions where queue_name = ''other''',
    'values (''x.y'', ''other'', current_user::text, null::text, true)', 'oq_subscriptions');
select is(oq_unsubscribe('x.y', 'other'), true, 'unsubscribe');
select is(oq_unsubscribe('x.y', 'other'), false, 'gone');
select is(oq_unsubscribe('x.y', 'unknown'), false, 'an unknown queue');
select is(oq_publish('x.y', '2'), 1, 'nothing more for it');
select ok(exists (select from oq_queues where queue_name = 'other'), 'the queue stays');
select oq_subscribe('fresh', 'made_by_subscribe');
select ok(exists (select from oq_queues where queue_name = 'made_by_subscribe'), 'a subscription makes its queue');

-- What is refused.
select throws_ok(format('select oq_publish(%L)', t), 'OQ001', 'topic must not be %', 'topic ' || coalesce(left(t, 30), 'null'))
  from unnest(array[null, '', '.', 'a.', '.a', 'a..b', 'a b', 'a.*', '#', 'a.#', E'a\n', 'é', '''', repeat('a', 256)]) t;
select throws_ok(format('select oq_%ssubscribe(%L, ''q'')', u, p), 'OQ001', 'topic_pattern must not be %',
    u || 'subscribe ' || coalesce(left(p, 30), 'null'))
  from unnest(array[null, '', '.', 'a.', '.a', 'a..b', 'a*', '*a', '##', 'a.##', 'a b', '(a)', E'a\n', repeat('a', 256)]) p,
    unnest(array['', 'un']) u;
select refuses_bad_names('select oq_subscribe(''a'', %L)');
select refuses_bad_names('select oq_unsubscribe(''a'', %L)');
select throws_ok('select oq_publish(''x.y'', null)', 'OQ001', 'payload must not be null', 'no payload');
select throws_ok(format('select oq_publish(''x.y'', ''1'', %L)', h), 'OQ001', 'headers must not be %', 'headers ' || left(h, 20))
  from unnest(array['1', '[]', '"a"', 'null', '{"a": "' || repeat('x', 65536) || '"}']) h;
select oq_subscribe('*', 'long'), oq_subscribe('#.a', 'long');
select is(oq_publish(repeat('a', 255)), 1, 'the longest topic');
select is(oq_publish(rtrim(repeat('a.', 128), '.')), 1, 'as many words as there can be');
select oq_unsubscribe('*', 'long'), oq_unsubscribe('#.a', 'long');

-- Limits of a subscribed queue bind the publisher, all or none.
select oq_create_queue('small', '{"max_payload_bytes": 20}') as x, oq_create_queue('full', '{"max_depth": 1}') as y \gset
select oq_subscribe('limits.#', q) from unnest('{small,full,wide}'::text[]) q;
select throws_ok('select oq_publish(''limits'', to_jsonb(repeat(''x'', 30)))', 'OQ001', 'payload must not be 32 bytes long',
    'a payload too long for one of the queues');
select is(oq_publish('limits'), 3, 'then all three');
select throws_ok('select oq_publish(''limits'')', 'OQ006', 'queue ''full'' is full', 'one is full');
select is((select count(*) from oq_jobs where queue_name = 'wide'), 1::bigint, 'nothing in the others');

-- A dropped queue loses its subscriptions.
select oq_drop_queue('wide', force => true), oq_drop_queue('full', force => true);
select is(oq_publish('limits'), 1, 'dropped queues get nothing');
select is_empty('select from oq_subscriptions where queue_name = ''wide''', 'their subscriptions are gone');

-- Rights. The publisher needs none in the queue; the subscriber needs produce, then and later.
begin;
create role tap_pub login in role oq_producer;
create role tap_sub login in role oq_producer, oq_observer;
create role tap_sub2 login in role oq_producer;
create role tap_worker login in role oq_worker;
select oq_create_queue('closed', '{"restricted": true}') as x \gset
select oq_grant('closed', 'tap_sub', '{produce,observe}');
set local session authorization tap_worker;
select throws_ok('select oq_' || c, '42501', 'permission denied for function oq_%', 'a worker may not ' || c)
  from unnest(array['publish(''s.a'')', 'subscribe(''s.a'', ''closed'')', 'unsubscribe(''s.a'', ''closed'')']) c;
set local session authorization tap_sub2;
select throws_ok('select oq_subscribe(''s.#'', ''closed'')', '42501', 'role tap_sub2 may not produce in queue ''closed''',
    'subscribe without the right');
set local session authorization tap_sub;
select oq_subscribe('s.#', 'closed');
select is((select owner from oq_subscriptions where queue_name = 'closed'), 'tap_sub', 'who owns it');
set local session authorization tap_pub;
select is(oq_publish('s.a', '"secret"'), 1, 'the publisher needs no right there');
select throws_ok('select oq_unsubscribe(''s.#'', ''closed'')', '42501', '%tap_pub may not produce%', 'but to unsubscribe');
reset session authorization;
select oq_create_queue('closed', '{"max_depth": 1}');
set local session authorization tap_pub;
select throws_ok('select oq_publish(''s.a'')', 'OQ006', 'queue ''...'' is full', 'the error does not name what it may not see');
reset session authorization;
select oq_create_queue('closed', '{"max_depth": null}');
select oq_revoke('closed', 'tap_sub', '{produce}');
set local session authorization tap_pub;
select is(oq_publish('s.a'), 0, 'the subscriber lost the grant: passed over, no error');
set local session authorization tap_sub;
select is((select problem from oq_subscriptions where queue_name = 'closed'), 'role tap_sub may not produce in the queue',
    'oq_subscriptions says so');
reset session authorization;
select oq_grant('closed', 'tap_sub2', '{produce}');
set local session authorization tap_sub2;
select oq_subscribe('s.#', 'closed');
-- Who may not produce any more can end what is his own, and nothing else; what is not there is not told.
set local session authorization tap_sub;
select ok(oq_unsubscribe('s.#', 'closed'), 'its own, though it lost the right');
select throws_ok('select oq_unsubscribe(''s.#'', ''closed'')', '42501', '%tap_sub may not produce%', 'not that of another');
select throws_ok('select oq_unsubscribe(''t'', ''closed'')', '42501', '%tap_sub may not produce%', 'nor one that is not there');
reset session authorization;
select is((select array_agg(owner) from oq_subscriptions where queue_name = 'closed'), '{tap_sub2}', 'which stays');
select oq_grant('closed', 'tap_sub', '{produce}');
set local session authorization tap_sub;
select oq_subscribe('s.#', 'closed');
reset session authorization;
select oq_revoke('closed', 'tap_sub', '{produce}');
set local session authorization tap_sub2;
select is(oq_publish('s.a'), 1, 'somebody else subscribed the same: one of both is enough');
reset session authorization;
select oq_grant('closed', 'tap_sub', '{produce}');
select is(oq_publish('s.a'), 1, 'both may: still one job');
revoke oq_producer from tap_sub, tap_sub2;
select is(oq_publish('s.a'), 0, 'both are no producers any more');
grant oq_operator to tap_sub;
select is(oq_publish('s.a'), 1, 'an operator may');
delete from oq.queue_grant;
drop role tap_sub;
select is(oq_publish('s.a'), 0, 'a role that is gone may nothing');
select oq_create_queue('closed', '{"restricted": false}');
select is(oq_publish('s.a'), 0, 'even in an open queue');
select ok(oq_unsubscribe('s.#', 'closed'), 'unsubscribe ends what others subscribed');
select is_empty('select from oq_subscriptions where queue_name = ''closed''', 'all of it');
rollback;
select finish();
