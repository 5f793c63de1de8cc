-- oq_explain: which gate holds a job, and until when.

create function gates(job_id bigint)
returns text
language sql
as $$
    select string_agg(e.step || case when e.verdict in ('open', 'closed', 'unknown') then '' else ' ' || e.verdict end, ', ')
      from oq_explain(job_id) e
     where e.verdict <> 'open'
$$;
create function why(job_id bigint)
returns text
language sql
as $$ select e.detail from oq_explain(job_id) e where e.step = 'verdict' $$;
create function opens(job_id bigint)
returns timestamptz
language sql
as $$ select e.retry_at from oq_explain(job_id) e where e.step = 'verdict' $$;
select daemon_ticks(true) as x \gset

select is_empty('select * from oq_explain(12345)', 'an unknown job has no rows');
select is_empty('select * from oq_explain(null)', 'null has none');

-- Ready: what is before it, and whether somebody comes.
select oq_enqueue('q') as a \gset
select oq_enqueue('q') as b \gset
select oq_enqueue('q', priority => 5) as c \gset
select is(gates(:a), 'worker, verdict ready', 'ready, and no worker seen');
select is((select string_agg(e.step, ' ' order by e.n) from oq_explain(:a) with ordinality e(step, v, d, r, n)),
    'finished leased restored paused scheduled parent group group_throttled group_rate limit throttled rate line worker verdict',
    'the gates, in the order in which they bind');
select is((select detail from oq_explain(:c) where step = 'line'), 'the next', 'the highest priority');
select is((select detail from oq_explain(:a) where step = 'line'), '1 job before it', 'behind it');
select is((select detail from oq_explain(:b) where step = 'line'), '2 jobs before it', 'behind both');
select oq_listen('q') as x \gset
select is(gates(:a), 'verdict ready', 'a sleeping worker is seen');
select oq_unlisten('q') as x \gset

-- Leased, and each way to end.
select job_id as l, lease_token as token from oq_lease('q', 'w1') \gset
select is(:l::bigint, :c::bigint, 'leased');
select is(gates(:l), 'leased, verdict running', 'running');
select ok((select e.detail like '%worker w1%' and e.retry_at = j.lease_expires_at
    from oq_explain(:l) e, oq_get(:l) j where e.step = 'leased'), 'by whom and until when');
select is(gates(:a), 'verdict ready', 'a worker that has leased from the queue is seen');
select oq_ack(:l, :token) as x \gset
select is(gates(:l), 'finished, verdict finished', 'completed');
select oq_cancel(:b, 'not wanted') as x \gset
select is(gates(:b), 'finished, verdict finished', 'cancelled');
select ok((select detail like 'cancelled since %: not wanted' from oq_explain(:b) where step = 'finished'), 'and why');
select kill_job('d', 'boom') as x from oq_enqueue('d', max_retries => 0) \gset
select job_id as d from oq_dead \gset
select is(gates(:d), 'finished, verdict dead', 'dead');
select ok(why(:d) like '%oq_redrive(''d''%' || :d || '%', 'and how to bring it back');

-- Scheduled, retries, pauses.
select oq_enqueue('s', run_at => '2100-01-01') as s \gset
select is(gates(:s), 'scheduled, worker, verdict held', 'scheduled');
select is(opens(:s), '2100-01-01'::timestamptz, 'until when');
select oq_pause('s') as x \gset
select is(gates(:s), 'paused, scheduled, worker, verdict held', 'paused binds first');
select is(why(:s), 'paused: select oq_resume(''s'')', 'the first closed gate is the reason');
select is(opens(:s), null::timestamptz, 'a pause ends when somebody ends it');
select oq_resume('s') as x \gset
select oq_enqueue('r') as r \gset
select oq_nack(job_id, lease_token, 'no', retry_after => '1 hour') as x from oq_lease('r') \gset
select ok((select detail like 'attempt 1 %retry%' from oq_explain(:r) where step = 'scheduled'), 'a retry');

-- Groups: busy by whom, behind whom, throttled.
select oq_enqueue('g', group_key => 'k') as g1 \gset
select oq_enqueue('g', group_key => 'k') as g2 \gset
select oq_enqueue('g', group_key => 'k') as g3 \gset
select job_id as g, lease_token as gt from oq_lease('g', 'w') \gset
select is(gates(:g2), 'group, verdict held', 'its group is busy');
select is((select detail from oq_explain(:g2) where step = 'group'), 'held by jobs ' || :g1, 'with that job');
select ok((select detail like '%behind jobs ' || :g2 || '%' and detail like '%held by jobs ' || :g1 || '%'
    from oq_explain(:g3) where step = 'group'), 'the third stands behind the second');
select oq_throttle('g', '2100-01-01', 'k') as x \gset
select is(gates(:g2), 'group, group_throttled, verdict held', 'throttled as well');
select oq_ack(:g, :gt) as x \gset
select is(gates(:g2), 'group_throttled, worker, verdict held', 'and only throttled then');
select is(opens(:g2), '2100-01-01'::timestamptz, 'until when');

-- Limits of the queue.
select daemon_ticks(true) as x \gset
select oq_create_queue('m'), oq_create_queue('n') \g /dev/null
select oq_limit('m', max_running => 1) as x \gset
select oq_enqueue('m') as m1 \gset
select oq_enqueue('m') as m2 \gset
select job_id as m, lease_token as mt from oq_lease('m', 'w') \gset
select is(gates(:m2), 'limit, verdict held', 'the limit is full');
select is((select detail from oq_explain(:m2) where step = 'limit'), 'held by jobs ' || :m1, 'by that job');
select is(opens(:m2), (select lease_expires_at from oq_get(:m1)), 'its lease ends then at the latest');
select oq_throttle('m', '2100-01-01') as x \gset
select is(gates(:m2), 'limit, throttled, verdict held', 'the queue is throttled');
select oq_limit('n', rate => 1, per => '1 hour') as x \gset
select oq_enqueue('n') as n1 \gset
select oq_enqueue('n') as n2 \gset
select oq_ack(job_id, lease_token) as x from oq_lease('n') \gset
select is(gates(:n2), 'rate, worker, verdict held', 'the rate is used up');
select ok(opens(:n2) between clock_timestamp() and clock_timestamp() + interval '1 hour', 'until the next slot');

-- A long list of holders is cut; a group that is throttled has its first job parked.
select oq_limit('m', max_running => 12) as x \gset
select oq_throttle('m', '-infinity') as x \gset
select oq_enqueue('m') from generate_series(1, 12) \g /dev/null
select count(*) as x from oq_lease('m', max_jobs => 11) \gset
select job_id as m3 from oq_jobs where queue_name = 'm' and state = 'ready' limit 1 \gset
select is((select regexp_replace(detail, '[0-9]+(, [0-9]+){9} ', 'ten ') from oq_explain(:m3) where step = 'limit'),
    'held by jobs ten and 2 more', 'ten of twelve');
select oq_create_queue('p') as x \gset
select oq_enqueue('p', group_key => 'k') as p1 \gset
select oq_throttle('p', '2100-01-01', 'k') as x \gset
select is(why(:p1), 'scheduled: its group is throttled', 'parked until its group may go on');
select is(opens(:p1), '2100-01-01'::timestamptz, 'until then');
select oq_enqueue('p', group_key => 'k', run_at => '2050-01-01') as p2 \gset
select is(gates(:p2), 'scheduled, group_throttled, worker, verdict held', 'a job to come of a throttled group');
select is(opens(:p2), '2100-01-01'::timestamptz, 'goes no further before the group does');
select oq_throttle('p', '-infinity', 'k') as x, oq_promote() as y \gset
select oq_nack(job_id, lease_token, 'no', retry_after => '0') as x from oq_lease('p') \gset
select oq_throttle('p', '2100-01-01', 'k') as x \gset
select is(why(:p1), 'scheduled: its group is throttled', 'parked, not a retry, though it has failed once');

select daemon_ticks(true) as x \gset
-- A retry that waits for the rate of its group.
select oq_limit('gl', 'k', rate => 1, per => '1 hour') as x from oq_create_queue('gl') \gset
select oq_enqueue('gl', group_key => 'k') as gl \gset
select oq_nack(job_id, lease_token, 'no', retry_after => '0') as x from oq_lease('gl') \gset
select is(why(:gl), 'scheduled: the rate of its group is used up', 'the rate, not the backoff');
select ok(opens(:gl) between now() + interval '59 min' and now() + interval '1 hour', 'until then');

-- Due, and nobody has looked: nothing holds it. A paced redrive is no retry.
select pass_delays() as x from oq_throttle('p', '-infinity', 'k') \gset
select is(gates(:p1), 'worker, verdict due', 'due');
select is(why(:p1), 'nothing holds it any more: the next tick, or a READ COMMITTED lease that finds too little, makes it ready',
    'by whom, of a group');
select oq_enqueue('rr', group_key => 'k') as rr1, oq_enqueue('rr', group_key => 'k') as rr2 \gset
select lease_token as token from oq_lease('rr') \gset
begin isolation level repeatable read;
select oq_ack(:rr1, :token) as x \gset
select is_empty('select from oq_lease(''rr'')', 'an older snapshot passes no turn on');
commit;
select is(why(:rr2), 'nothing holds it any more: the next tick, or a READ COMMITTED lease that finds too little, makes it ready',
    'the same');
select is((select job_id from oq_lease('rr')), :rr2::bigint, 'which it does');
select oq_enqueue('plain', run_at => clock_timestamp() + interval '1 hour') as plain \gset
update oq.scheduled set due_at = clock_timestamp() where job_id = :plain;
select is(why(:plain), 'nothing holds it any more: the next tick, or a lease that finds too little, makes it ready', 'of none');
select kill_job('pr', 'no') as pr from oq_enqueue('pr') \gset
select kill_job('pr', 'no') as pr2 from oq_enqueue('pr') \gset
select count(*) as x from oq_redrive('pr', per_second => 0.001) \gset
select is(why(:pr2), 'scheduled: runs at a later time', 'redriven, for later');

-- A time to live that has passed: it waits for nothing but its end.
select oq_enqueue('t', options => '{"ttl": "1 hour"}') as t \gset
select is(gates(:t), 'worker, verdict ready', 'it may still run');
select pass_lives() as x \gset
select is(state_of(:t), 'ready', 'over, and nobody has looked');
select is(gates(:t), 'finished, verdict finished', 'it will not run');
select is(why(:t), 'its time to live passed while no worker held it', 'and why');

-- A restored copy.
update oq.instance set system_identifier = system_identifier + 1;
select is(gates(:a), 'restored, worker, verdict held', 'nothing runs in a copy');
select ok(why(:a) like '%oq_adopt()%', 'until it is adopted');
select oq_adopt() as x \gset
select is(gates(:a), 'worker, verdict ready', 'it is');

-- No daemon.
select daemon_ticks(false) as x \gset
select ok(why(:a) like '%no tick%is the daemon running?', 'no tick for long');

-- Rights: what may not be observed is not explained.
select oq_create_queue('secret', '{"restricted": true}') as x \gset
select oq_enqueue('secret') as z \gset
create role explainer;
grant oq_observer to explainer;
set role explainer;
select is_empty(format('select * from oq_explain(%s)', :z), 'a restricted queue''s job is not explained');
reset role;
select ok(exists (select from oq_explain(:z)), 'but to who may');
select oq_enqueue('q', options => jsonb_build_object('depends_on', array[:z])) as child \gset
select is((select detail from oq_explain(:child) where step = 'parent'), format('waits for jobs %s (ready)', :z), 'a parent');
select oq_enqueue('many', options => jsonb_build_object('depends_on', array(
    select oq_enqueue('many') from generate_series(1, 12)))) as many \gset
select ok((select detail like 'waits for jobs %' and detail like '%) and more' and length(detail) - length(replace(detail, '(', '')) = 10
    from oq_explain(:many) where step = 'parent'), 'ten of twelve parents, and that there are more');
set role explainer;
select is((select detail from oq_explain(:child) where step = 'parent'), format('waits for jobs %s (hidden)', :z),
    'which is one also where it may not be seen');
reset role;
drop role explainer;
select finish();
