-- Without any daemon a lease promotes, reaps and expires for itself. Nobody ticks in this file.

-- A scheduled job that is due.
select oq_enqueue('s', '"due"', run_at => now() + interval '1 h') as x \gset
select is_empty('select from oq_lease(''s'')', 'not due');
select tap.pass_delays();
select is((select array_agg(payload #>> '{}') from oq_lease('s')), '{due}', 'one that is due');
select is_empty('select from oq_lease(''s'')', 'once');

-- As many as are asked for: what is ready, then what is due, in order of priority and of due time.
select oq_enqueue('m', '"ready"', -1) as x, oq_enqueue('m', '"low"', -2,
    now() + interval '1 h') as y, oq_enqueue('m', '"high"', 3, now() + interval '1 h') as z \gset
select tap.pass_delays();
select is((select array_agg(payload #>> '{}') from oq_lease('m')), '{ready}',
    'what is ready goes first, if it is enough');
select oq_enqueue('m', '"ready"', -1) as x \gset
select is((select array_agg(payload #>> '{}') from oq_lease('m', max_jobs => 2)), '{ready,high}',
    'then what was due');
select is((select array_agg(payload #>> '{}') from oq_lease('m', max_jobs => 2)), '{low}',
    'the rest');

-- Expired leases: back to the next lease; the third is the end.
select oq_enqueue('r') as r \gset
select count(*) from oq_lease('r', 'w1') \g /dev/null
select is_empty('select from oq_lease(''r'')', 'held');
select tap.pass_leases();
select is((select attempt from oq_lease('r', 'w2')), 2, 'taken back and leased in one call');
select tap.pass_leases();
select is((select attempt from oq_lease('r', 'w3', max_jobs => 10)), 3, 'again, in a batch');
select tap.pass_leases();
select is_empty('select from oq_lease(''r'', ''w4'')', 'the third lost lease is the last');
select results_eq(format('select state, reason, lost_leases, failures, attempt from oq_get(%s)',
    :r), $$values ('dead', 'lost_lease', 3, 0, 3)$$, 'dead');
select results_eq(format('select attempt, worker_id, outcome from oq_attempts(%s)', :r),
    $$values (1, 'w1', 'lost'), (2, 'w2', 'lost'), (3, 'w3', 'lost')$$, 'recorded');

-- oq_next does the same.
select oq_enqueue('n', run_at => now() + interval '1 h') as n \gset
select tap.pass_delays();
select is((select job_id from oq_next('n')), :n::bigint, 'oq_next promotes');
select tap.pass_leases();
select is((select attempt from oq_next('n')), 2, 'and reaps');

-- A time to live that has passed: not leased, and expired by whoever comes by.
select oq_enqueue('t', options => '{"ttl": "1 h"}') as t, oq_enqueue('t',
    run_at => now() + interval '1 h', options => '{"ttl": "2 h"}') as u \gset
select tap.pass_lives(), tap.pass_delays() \g /dev/null
select is_empty('select from oq_lease(''t'')', 'not leased');
select is_empty('select from oq_lease(''t'', max_jobs => 10)', 'nor in a batch');
select is((select array_agg(state) from oq_jobs where queue_name = 't'), '{expired,expired}',
    'expired');

-- All queues are looked after, so that one that is leased from helps the others.
select oq_create_queue('idle') as y, oq_enqueue('x', run_at => now() + interval '1 h') as x \gset
select tap.pass_delays();
select is_empty('select from oq_lease(''idle'')', 'a lease of an empty queue');
select is(tap.state_of(:x), 'ready', 'promotes another''s jobs');

-- While a daemon ticks, a lease that finds too little looks after its own queue only.
select tap.daemon_ticks(true);
select oq_enqueue('own', run_at => now() + interval '1 h') as own,
    oq_enqueue('their', run_at => now() + interval '1 h') as their \gset
select tap.pass_delays();
select is((select count(*) from oq_lease('own')), 1::bigint, 'its own are promoted');
select is(tap.state_of(:their), 'scheduled', 'another''s are left to the daemon');
select oq_enqueue('own2') as x, oq_enqueue('their2') as y \gset
select count(*) from oq_lease('own2') l, oq_lease('their2') m \g /dev/null
select tap.pass_leases();
select is((select attempt from oq_lease('own2')), 2, 'its own are reaped');
select is(tap.state_of(:y), 'leased', 'another''s are left to the daemon');
select tap.daemon_ticks(false);

-- A paused queue is looked after by nobody's lease of it.
select oq_enqueue('p', run_at => now() + interval '1 h'), oq_pause('p') \g /dev/null
select tap.pass_delays();
select unchanged('select oq_lease(''p'')', '{}', 'paused');

-- The clock of a lease is read after what it did for itself: attempts of a job don't overlap, and none begins before it was due.
create function overlaps()
returns bigint
language sql
as $$
    select count(*) from oq.attempt a
      join (select l.job_id, l.leased_at from oq.leased l union all select n.job_id, n.leased_at from oq.attempt n) n
        on n.job_id = a.job_id
     where n.leased_at > a.leased_at and n.leased_at < a.ended_at
$$;
select oq_create_queue('o', '{"max_lost_leases": 9}'), oq_enqueue('o') \g /dev/null
select count(*) from oq_lease('o') \g /dev/null
select pass_leases() \g /dev/null
select is((select attempt from oq_lease('o')), 2, 'one of a lease');
select pass_leases() \g /dev/null
select is((select attempt from oq_lease('o', max_jobs => 9)), 3, 'in a batch');
select pass_leases() \g /dev/null
select is((select attempt from oq_next('o')), 4, 'by oq_next');
select oq_limit('o', max_running => 1), pass_leases() \g /dev/null
select is((select attempt from oq_lease('o')), 5, 'from a queue with limits');
select oq_limit('o', max_running => 1), pass_leases(), oq_enqueue('o', priority => 1) \g /dev/null
select count(*) from oq_lease('o', max_jobs => 2) \g /dev/null
select is(overlaps(), 0::bigint, 'attempts do not overlap');
select oq_enqueue('o2', run_at => now() + interval '1 h') as o2 \gset
select pass_delays() \g /dev/null
select due_at from oq.scheduled where job_id = :o2 \gset
select is((select job_id from oq_lease('o2')), :o2::bigint, 'promoted');
select ok(l.leased_at > :'due_at', 'leased after it was due') from oq.leased l where l.job_id = :o2;

-- What is due, has expired or is free in another queue is in nobody's way, however much it is.
select count(*) from oq_enqueue_bulk('crowd', array_fill('{}'::jsonb, '{3500}'), run_at => now() + interval '1 h') \g /dev/null
select pass_delays() \g /dev/null
select oq_enqueue('beside', run_at => now() + interval '1 h') as beside \gset
update oq.scheduled set due_at = clock_timestamp() where job_id = :beside;
select is((select job_id from oq_lease('beside')), :beside::bigint, 'due behind 3500 that are due');
select oq_tick(10000) \g /dev/null
select tap.daemon_ticks(false);
select is((select count(*) from oq_lease('crowd', max_jobs => 3500)), 3500::bigint, 'all are leased');
select oq_create_queue('beside', '{"max_lost_leases": 9}') \g /dev/null
select pass_leases() \g /dev/null
select oq_release(job_id, token) from oq.leased where job_id = :beside \g /dev/null
select is((select job_id from oq_lease('beside')), :beside::bigint, 'leased again');
update oq.leased set expires_at = clock_timestamp() where job_id = :beside;
select setval('oq.reap_after', 0) \g /dev/null
select is((select attempt from oq_lease('beside')), 2, 'expired behind 3500 that have expired');
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'groups', 'group_key', i::text) order by i)
    from generate_series(1, 1500) i)) \g /dev/null
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'few', 'group_key', i::text, 'payload', i)
    order by i) from generate_series(1, 130) i)) \g /dev/null
select is((select count(*) from oq_lease('few', max_jobs => 130)), 130::bigint, 'groups behind 1500 groups');
select is((select count(*) from oq_lease('groups', max_jobs => 1500)), 700::bigint, 'many of them at once');
select is((select count(*) from oq_lease('groups', max_jobs => 1500)), 500::bigint, 'many more');
select is((select count(*) from oq_lease('groups', max_jobs => 1500)), 300::bigint, 'and the rest');

-- The highest priority first, whether it is ready already or has to be made so: where nobody has raised the lane's mark
-- for a second.
create function priorities(queue text, jobs int)
returns text
language sql
as $$
    update oq.mark set raised_at = raised_at - interval '1 min' where lane > 0;
    select string_agg(priority::text, ' ') from oq_lease(priorities.queue, max_jobs => jobs)
$$;
select oq_enqueue('high', priority => 9, run_at => now() + interval '1 h'), oq_enqueue('high') \g /dev/null
select pass_delays() \g /dev/null
select is(priorities('high', 1), '9', 'one that is due before one that is ready');
select oq_enqueue('high') \g /dev/null
select pass_leases() \g /dev/null
select is(priorities('high', 3), '9 0 0', 'one of a lease that has expired');
select oq_enqueue('high-next', priority => 9, run_at => now() + interval '1 h'), oq_enqueue('high-next') \g /dev/null
select pass_delays() \g /dev/null
update oq.mark set raised_at = raised_at - interval '1 min' where lane > 0;
select is((select priority from oq_next('high-next')), 9, 'by oq_next');
select oq_limit('high-limit', max_running => 9) from oq_create_queue('high-limit') \g /dev/null
select oq_enqueue('high-limit', priority => 9, run_at => now() + interval '1 h'), oq_enqueue('high-limit') \g /dev/null
select pass_delays() \g /dev/null
select is(priorities('high-limit', 1), '9', 'in a queue with limits');
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'high-groups', 'group_key', i::text,
    'priority', (i > 200)::int) order by i) from generate_series(1, 500) i)) \g /dev/null
select is((select array_agg(distinct p) from unnest(string_to_array(priorities('high-groups', 300), ' ')) p), '{1}',
    'groups that wait to be let in');
-- While a daemon ticks it does that.
select tap.daemon_ticks(true);
select oq_enqueue('ticks', priority => 9, run_at => now() + interval '1 h'), oq_enqueue('ticks') \g /dev/null
select pass_delays() \g /dev/null
select is(priorities('ticks', 1), '0', 'beside a daemon');
select tap.daemon_ticks(false);

-- More groups in one transaction than it lets in at its commit: no lower priority goes before them, and all come.
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'many', 'group_key', i::text,
    'priority', (i > 200)::int) order by i) from generate_series(1, 600) i)) \g /dev/null
select is(priorities('many', 400), repeat('1 ', 399) || '1', 'four hundred of the higher priority');
select is((select count(*) from oq_lease('many', max_jobs => 500)), 200::bigint, 'then the others');
begin;
select count(oq_enqueue('many', group_key => i::text, priority => (i % 2)::int)) from generate_series(1001, 1400) i \g /dev/null
select is((select array_agg(distinct priority) from oq_lease('many', max_jobs => 200)), '{1}', 'in their own transaction');
rollback;

-- Wake-ups aside, all of a job's life passed without a tick.
select is((select last_value from oq.beat), 0::bigint, 'nobody ticked');

select finish();
