-- oq_reap, oq_promote, oq_expire: what time does; each bounded by max_rows.

-- Expired leases come back; the third is the end, counted apart from failures.
select oq_create_queue('q', '{"retry": {"kind": "fixed", "base": "0"}}') as x,
    oq_enqueue('q') as job \gset
select is(oq_reap(), 0::bigint, 'nothing to reap');
select lease_token as t from oq_lease('q', 'w1') \gset
select is(oq_reap(), 0::bigint, 'a lease that runs');
select tap.pass_leases();
select is(oq_reap(), 1::bigint, 'a lease that expired');
select is(oq_reap(), 0::bigint, 'once');
select results_eq(format('select state, attempt, failures, lost_leases, worker_id from oq_get(%s)',
    :job), $$values ('ready', 1, 0, 1, null)$$, 'ready: one attempt, lost');
select oq_nack(job_id, lease_token, 'e') from oq_lease('q', 'w2') \g /dev/null
select count(*) from oq_lease('q', 'w3') \g /dev/null
select tap.pass_leases(), oq_reap() \g /dev/null
select results_eq(format('select state, attempt, failures, lost_leases from oq_get(%s)', :job),
    $$values ('ready', 3, 1, 2)$$, 'two lost and a failure');
select lease_token as t from oq_lease('q', 'w4') \gset
select tap.pass_leases();
select is(oq_reap(), 1::bigint, 'the third lost lease');
select results_eq(format('select state, reason, attempt, failures, lost_leases, worker_id,
    left(error, 17) from oq_get(%s)', :job),
    $$values ('dead', 'lost_lease', 4, 1, 3, 'w4', 'lease expired at ')$$, 'dead, with its reason');
select unchanged(format('select oq_ack(%s, %s), oq_heartbeat(%1$s, %2$s)', :job, :t),
    '{"(f,lost)"}', 'and its worker comes too late');
select results_eq(format('select attempt, worker_id, outcome from oq_attempts(%s)', :job),
    $$values (1, 'w1', 'lost'), (2, 'w2', 'failed'), (3, 'w3', 'lost'), (4, 'w4', 'lost')$$,
    'every attempt is recorded');
select oq_create_queue('one', '{"max_lost_leases": 1}') as x,
    oq_enqueue('one', max_retries => 100) as one \gset
select count(*) from oq_lease('one') \g /dev/null
select tap.pass_leases(), oq_reap() \g /dev/null
select is(tap.state_of(:one), 'dead', 'max_lost_leases 1, whatever max_retries');
select oq_enqueue('none', max_retries => 0) as none \gset
select count(*) from oq_lease('none') \g /dev/null
select tap.pass_leases(), oq_reap() \g /dev/null
select is(tap.state_of(:none), 'ready',
    'a lost lease is no retry: max_retries 0 does not count it');

-- A heartbeat in time keeps it.
select oq_enqueue('hb') as hb \gset
select lease_token as t from oq_lease('hb') \gset
select tap.pass_leases();
select is(oq_heartbeat(:hb, :t), 'ok', 'a heartbeat in the last moment');
select is(oq_reap(), 0::bigint, 'keeps the lease');

-- max_rows.
select count(oq_enqueue('many')) as x from generate_series(1, 5) \gset
select count(*) as x from oq_lease('many', max_jobs => 5) \gset
select tap.pass_leases();
select results_eq('select oq_reap(2) union all select oq_reap(100000) union all select oq_reap()',
    'values (2), (4), (0)', 'two, the rest, none');

-- Delays that are over, in the order in which they were due.
select is(oq_promote(), 0::bigint, 'nothing to promote');
select oq_enqueue('p', to_jsonb(i), run_at => now() + (10 - i) * interval '1 h') as x
    from generate_series(1, 5) i \g /dev/null
select is(oq_promote(), 0::bigint, 'not due');
update oq.scheduled set due_at = clock_timestamp() + (job_id % 2) * interval '1 us';
select pg_sleep(0.001) \g /dev/null
select results_eq('select oq_promote(2) union all select oq_promote(100000)
    union all select oq_promote()', 'values (2), (3), (0)', 'two, the rest, none');
select is((select count(*) from oq_lease('p', max_jobs => 9)), 5::bigint, 'they are leased');
select oq_enqueue('o', to_jsonb(i), run_at => now() + interval '1 h') as x
    from generate_series(1, 3) i \g /dev/null
update oq.scheduled s set due_at = c.at + (3 - j.payload::int) * interval '1 ms'
  from oq.job j join oq.queue q using (queue_id), (select clock_timestamp() as at offset 0) c
 where j.job_id = s.job_id and q.queue_name = 'o';
select pg_sleep(0.01) \g /dev/null
select oq_promote() \g /dev/null
select is((select array_agg(payload::text) from oq_lease('o', max_jobs => 3)), '{3,2,1}',
    'the first due is the first out');

-- A promoted job keeps its attempts; it goes behind what is ready.
select oq_enqueue('keep') as k \gset
select oq_nack(job_id, lease_token, 'e', retry_after => '1 h') from oq_lease('keep') \g /dev/null
select oq_enqueue('keep') as x \gset
select tap.pass_delays(), oq_promote() \g /dev/null
select is((select array_agg(attempt) from oq_lease('keep', max_jobs => 2)), '{1,2}',
    'behind the others, the second attempt');

-- Lives that are over: ready and scheduled jobs end, a leased one is left to its worker.
select is(oq_expire(), 0::bigint, 'nothing to expire');
select oq_enqueue('t', options => '{"ttl": "1 h"}') as held \gset
select lease_token as t from oq_lease('t') \gset
select oq_enqueue('t', options => '{"ttl": "1 h"}') as a, oq_enqueue('t',
    run_at => now() + interval '2 h', options => '{"ttl": "1 h"}') as b,
    oq_enqueue('t', options => '{"expires_at": "2000-01-01"}') as past,
    oq_enqueue('t', options => '{"ttl": "1 day"}') as c, oq_enqueue('t') as d \gset
select is(oq_expire(), 1::bigint, 'one that was born too late');
update oq.ttl set expires_at = clock_timestamp() where job_id <> :c;
update oq.ready set expires_at = clock_timestamp() where job_id = :a;
update oq.scheduled set expires_at = clock_timestamp() where job_id = :b;
update oq.leased set job_expires_at = clock_timestamp() where job_id = :held;
select results_eq('select oq_expire(2) + oq_expire(100000) union all select oq_expire()',
    'values (2), (0)', 'two more');
select is((select array_agg(state order by job_id) from oq_jobs where queue_name = 't'),
    '{leased,expired,expired,expired,ready,ready}', 'who is expired');
select results_eq(format('select attempt, error, finished_at is not null, leased_at
    from oq_get(%s)', :a), 'values (0, null::text, true, null::timestamptz)', 'as it ended');
select is((select array_agg(job_id) from oq_lease('t', max_jobs => 9)), array[:c, :d]::bigint[],
    'the others are leased');
select is(oq_ack(:held, :t), true, 'the worker of the leased one can end it');
select unchanged(format('select oq_cancel(%s), oq_update(%1$s, ''{"priority": 1}'')', :a),
    '{"(f,f)"}', 'an expired job is finished');

-- One that was born too late when the marks had moved: they are behind its time.
select count(*) from oq_tick() \g /dev/null
select pg_sleep(0.15) \g /dev/null
select count(*) from oq_tick() \g /dev/null
select count(*) from oq_tick() \g /dev/null
select oq_enqueue('past', options => '{"expires_at": "2000-01-01"}') as p1 \gset
select job_id as p2 from oq_enqueue_many('[{"queue_name": "past", "expires_at": "2000-01-01"}]')
    \gset
select count(*) from oq_tick() \g /dev/null
select count(*) from oq_tick() \g /dev/null
select is(array[tap.state_of(:p1), tap.state_of(:p2)], '{expired,expired}',
    'born too late, after some ticks');
select is((select expires_at from oq_get(:p1)), timestamptz '2000-01-01',
    'its time is as it was said');

-- One that comes back after its time is expired, whoever brings it back.
create function came_back(how text) returns text language plpgsql as $$
declare v_lease oq.leased_job;
begin
    perform oq_enqueue('back', options => '{"ttl": "1 h"}', max_retries => 1);
    select * into v_lease from oq_lease('back', 'w');
    perform tap.pass_lives(), oq_expire();
    case how when 'nack' then perform oq_nack(v_lease.job_id, v_lease.lease_token, 'e');
        when 'release' then perform oq_release(v_lease.job_id, v_lease.lease_token);
        when 'delay' then perform oq_release(v_lease.job_id, v_lease.lease_token, '1 h');
        when 'reap' then perform tap.pass_leases(), oq_reap();
    end case;
    return (select state || ' ' || attempt || ' ' || (select count(*) from oq_attempts(job_id))
    from oq_get(v_lease.job_id));
end $$;
select is(came_back(h), w, 'back too late: ' || h) from (values ('nack', 'expired 1 1'),
    ('release', 'expired 0 0'), ('delay', 'expired 0 0'), ('reap', 'expired 1 1')) v(h, w);
-- In time it keeps its timer.
select oq_enqueue('in', options => '{"ttl": "1 h"}') as i \gset
select oq_release(job_id, lease_token) from oq_lease('in') \g /dev/null
select tap.pass_lives();
select is(oq_expire(), 1::bigint, 'back in time, and expired while it is ready');
select is(tap.state_of(:i), 'expired', 'expired');

-- Bad input; a queue that keeps nothing.
select throws_ok('select ' || f || '(' || n || ')', 'OQ001', 'max_rows%' || n || '%', f || ' ' || n)
    from unnest('{0,-1,100001,2147483647}'::text[]) n,
    unnest('{oq_reap,oq_promote,oq_expire,oq_tick}'::text[]) f;
select throws_ok('select ' || f || '(null)', 'OQ001', 'max_rows%null%', f || ' null')
    from unnest('{oq_reap,oq_promote,oq_expire,oq_tick}'::text[]) f;
select oq_create_queue('gone', '{"keep": "none"}') as x, oq_enqueue('gone',
    options => '{"ttl": "1 h"}') as g \gset
select tap.pass_lives();
select is(oq_expire(), 1::bigint, 'expired in a queue that keeps nothing');
select is_empty(format('select from oq_get(%s)', :g), 'nothing to see');

select finish();
