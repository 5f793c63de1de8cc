-- oq_limit: how many of a queue or a group run at once, or start in a time.

-- A queue.
select count(oq_enqueue('q')) from generate_series(1, 9) \g /dev/null
select is(oq_limit('q', max_running => 2)::text, '', 'a limit of a queue');
select is((select count(*) from oq_lease('q', max_jobs => 5)), 2::bigint, 'two of nine');
select is_empty('select from oq_lease(''q'')', 'no third');
select results_eq('select gate, held_by, until is not null from oq.queue_gate((select queue_id
    from oq.queue limit 1))', 'values (''max_running'', array[1, 2]::bigint[], true)',
    'the gate says by whom');
select oq_ack(job_id, token) from oq.leased where job_id = 1 \g /dev/null
select is((select array_agg(job_id) from oq_lease('q', max_jobs => 5)), '{3}',
    'a slot for each that ends');
select is((select array_agg(job_id) from oq_next('q', null, null, 5, array[2::bigint, 3],
    (select array_agg(token order by job_id) from oq.leased))), '{4,5}', 'oq_next takes what it gave');
select tap.pass_leases() \g /dev/null
select is((select array_agg(job_id) from oq_lease('q', max_jobs => 5)), '{6,7}',
    'the slots of leases that ended, which are taken back first');
select is((select count(*) from oq_jobs where lost_leases = 1 and state = 'ready'), 2::bigint,
    'what they held is ready');
select is(oq_limit('q')::text, '', 'taken away');
select is((select count(*) from oq_lease('q', max_jobs => 9)), 4::bigint, 'all the others');

-- What else a lease is.
select oq_limit('f', max_running => 1) from oq_create_queue('f', '{"lease_seconds": 77}') \g /dev/null
select oq_enqueue('f', '{"a": 1}', priority => i, max_retries => i, headers => '{"h": 1}')
    from generate_series(1, 3) i \g /dev/null
select results_eq('select queue_name, payload, headers, priority, attempt, max_retries, group_key,
    abs(extract(epoch from lease_expires_at - clock_timestamp()) - 77) < 5
    from oq_lease(''f'', ''me'', max_jobs => 3)',
    'values (''f'', ''{"a": 1}''::jsonb, ''{"h": 1}''::jsonb, 3, 1, 3, null::text, true)',
    'the highest priority, with all that belongs to it');
select is((select worker_id from oq_jobs where state = 'leased' and queue_name = 'f'), 'me', 'its worker');
begin isolation level read uncommitted;
select is_empty('select from oq_lease(''f'')', 'at READ UNCOMMITTED, which is READ COMMITTED here');
commit;
select is_empty('select from oq_lease(''f'', lease_seconds => 5)', 'one at a time');
select is(oq_nack(job_id, token, retry_after => '0'), 'ready', 'a failure gives the slot back')
  from oq.leased l where exists (select from oq_get(l.job_id) where queue_name = 'f');
select results_eq('select priority, attempt from oq_lease(''f'')', 'values (3, 2)', 'again');
select is((select oq_cancel(job_id) from oq_jobs where queue_name = 'f' and state = 'leased'), true,
    'cancelled');
select results_eq('select priority from oq_lease(''f'')', 'values (2)', 'gives it back as well');

-- A rate.
select oq_limit('r', rate => 3, per => '1 hour') from oq_create_queue('r') \g /dev/null
select count(oq_enqueue('r')) from generate_series(1, 9) \g /dev/null
select is((select count(*) from oq_lease('r', max_jobs => 5)), 3::bigint, 'three an hour');
select oq_ack(job_id, token) from oq.leased where job_id in (select job_id from oq_jobs
    where queue_name = 'r') \g /dev/null
select is_empty('select from oq_lease(''r'')', 'whatever became of them');
select ok((select gate = 'rate' and until between now() + interval '59 min' and now() + interval '1 hour'
    from oq.queue_gate((select queue_id from oq.queue where queue_name = 'r' limit 1))),
    'the gate says until when');
select oq_limit('r', rate => 0.5, per => '1 hour') \g /dev/null
select ok((select until > now() + interval '1 hour' from oq.queue_gate((select queue_id
    from oq.queue where queue_name = 'r' limit 1))), 'one in two hours');

-- What began before there was a rate of the queue is not in it; what began under another is.
select oq_create_queue('rb'), oq_enqueue_bulk('rb', '{1,2,3,4,5}') \g /dev/null
select oq_lease('rb') \g /dev/null
select oq_limit('rb', rate => 2, per => '1 hour') \g /dev/null
select is((select count(*) from oq_lease('rb', max_jobs => 5)), 2::bigint, 'two after the one before');
select oq_limit('rb', rate => 3, per => '1 hour') \g /dev/null
select is((select count(*) from oq_lease('rb', max_jobs => 5)), 1::bigint, 'and one more of three');

-- Never more than the rate in any time of its length, whatever it is; what is left of a fraction is cut off.
select oq_create_queue(n), oq_limit(n, rate => r, per => '1 s')
  from unnest('{0.5,1,1.5,2.5,999.5,1000,1001,1500,2999.5,3000,1000000}'::numeric[]) r
 cross join lateral (select 'rate-' || r as n) n \g /dev/null
select is_empty($$select r.rate from oq.limit_rule r join oq.queue_now q using (queue_id)
    cross join lateral oq.limit_of(q.queue_id, 0) l
    where q.queue_name ~ '^rate' and (l.slots not between 1 and 1000
        or l.slots * ceil(1 / extract(epoch from l.time_window)) > greatest(r.rate, 1)
        or l.slots / extract(epoch from l.time_window) < r.rate * 0.66)$$, 'rates of every size');
select count(oq_enqueue('rate-2.5')) from generate_series(1, 9) \g /dev/null
select is((select count(*) from oq_lease('rate-2.5', max_jobs => 9)), 2::bigint, 'two of two and a half');
update oq.limit_slot set taken_at = clock_timestamp() - interval '0.9 s';
select is_empty('select from oq_lease(''rate-2.5'', max_jobs => 9)', 'and no more in that second');
select oq_limit('s', rate => 0.000001, per => '366 days') from oq_create_queue('s') \g /dev/null
select count(oq_enqueue('s')) from generate_series(1, 2) \g /dev/null
select is((select count(*) from oq_lease('s', max_jobs => 2)), 1::bigint, 'one in a million years');
select ok(oq_lease is null, 'no second') from (select) x left join oq_lease('s') on true;

-- The rate of a group: a retry, a release and a lost lease begin again, and keep their turn.
select oq_limit('gr', 'g', rate => 2, per => '1 hour') from oq_create_queue('gr', '{"max_lost_leases": 9}') \g /dev/null
select oq_enqueue('gr', group_key => 'g') as g1, oq_enqueue('gr', group_key => 'g') as g2 \gset
select oq_enqueue('gr', group_key => 'h') as h \gset
select is((select array_agg(oq_nack(job_id, lease_token, 'no', retry_after => '0') order by job_id)
    from oq_lease('gr', max_jobs => 9) where job_id = :g1), '{ready}', 'the first start fails');
select is((select array_agg(oq_nack(job_id, lease_token, 'no', retry_after => '0') order by job_id)
    from oq_lease('gr', max_jobs => 9) where job_id = :g1), '{scheduled}', 'the second, too: the rate is used up');
select is_empty(format('select from oq_lease(''gr'', max_jobs => 9) where job_id in (%s, %s)', :g1, :g2), 'no third in that hour');
select ok(j.state = 'scheduled' and j.run_at between now() + interval '59 min' and now() + interval '1 hour', 'it has its time')
  from oq_get(:g1) j;
update oq.limit_slot set taken_at = taken_at - interval '1 hour';
select pass_delays() \g /dev/null
select is((select array_agg(job_id) from oq_lease('gr', max_jobs => 9)), array[:g1]::bigint[], 'it keeps its turn');
select oq_release(job_id, token) from oq.leased where job_id = :g1 \g /dev/null
select is((select array_agg(job_id) from oq_lease('gr', max_jobs => 9)), array[:g1]::bigint[], 'given back');
select pass_leases() \g /dev/null
select is((select array_agg(job_id) from oq_lease('gr', max_jobs => 9)), array[:h]::bigint[], 'lost: others go on');
select is(state_of(:g1), 'scheduled', 'and it waits for the rate');
-- What is only moved within ready has not begun.
update oq.limit_slot set taken_at = taken_at - interval '1 hour';
select pass_delays() \g /dev/null
select oq_promote() \g /dev/null
select is(state_of(:g1), 'ready', 'ready');
select oq_update(:g1, '{"priority": 2}'), oq_update(:g1, '{"priority": 1}'), oq_update(:g1, '{"priority": 2}') \g /dev/null
select is(state_of(:g1), 'ready', 'a change takes none of the rate');

-- It counts from when a job begins, however long it was ready before: what was ready, or ran, before there was a rate too.
select count(oq_enqueue('gi', group_key => 'g')) from generate_series(1, 5) \g /dev/null
select oq_limit('gi', 'g', rate => 1, per => '1 hour') \g /dev/null
select is((select count(oq_ack(job_id, lease_token)) from oq_lease('gi', max_jobs => 9)), 1::bigint, 'what was ready before the rate');
select is_empty('select from oq_lease(''gi'', max_jobs => 9)', 'takes the slot');
select ok((select until between now() + interval '59 min' and now() + interval '61 min' from oq.group_gates(
    hashtextextended('g', r.queue_id) & 9223372036854775807, r.queue_id)), 'the next has its time')
  from oq.limit_rule r where r.queue_id = (select queue_id from oq.queue where queue_name = 'gi' limit 1);
update oq.limit_slot set taken_at = taken_at - interval '1 hour';
update oq.todo set due_at = clock_timestamp();
select oq_tick() \g /dev/null
-- Ready for two hours, until a worker comes.
update oq.limit_slot set taken_at = taken_at - interval '2 hours';
update oq.todo set due_at = clock_timestamp();
select oq_tick() \g /dev/null
select is((select count(oq_ack(job_id, lease_token)) from oq_lease('gi', max_jobs => 9)), 1::bigint, 'one that was ready for long');
select is_empty('select from oq_lease(''gi'', max_jobs => 9)', 'begins when it is leased');
update oq.limit_slot set taken_at = taken_at - interval '1 hour';
update oq.todo set due_at = clock_timestamp();
select oq_tick() \g /dev/null
update oq.limit_slot set taken_at = taken_at - interval '2 hours';
select is((select count(oq_release(job_id, lease_token)) from oq_lease('gi')), 1::bigint, 'one that is given back');
select is_empty('select from oq_lease(''gi'', max_jobs => 9)', 'has begun');
update oq.limit_slot set taken_at = taken_at - interval '1 hour';
select pass_delays() \g /dev/null
select is((select count(oq_nack(job_id, lease_token, 'no', retry_after => '1 hour')) from oq_lease('gi')), 1::bigint,
    'one that fails');
update oq.todo set due_at = clock_timestamp();
select pass_delays(), oq_tick() \g /dev/null
select is_empty('select from oq_lease(''gi'', max_jobs => 9)', 'has begun as well');
select oq_enqueue('gl', group_key => k) from unnest('{a,a,a,b,b}'::text[]) k \g /dev/null
select job_id as gl, lease_token as token from oq_lease('gl') \gset
select oq_limit('gl', '*', max_running => 3, rate => 2, per => '1 hour') \g /dev/null
select oq_tick() \g /dev/null
select is((select array_agg(k order by k collate "C") from (select group_key as k from oq_lease('gl', max_jobs => 9)) l), '{a,b,b}',
    'what runs has a slot');
select oq_ack(job_id, token) from oq.leased where job_id in (select job_id from oq_jobs where queue_name = 'gl') \g /dev/null
select oq_tick() \g /dev/null
select is_empty('select from oq_lease(''gl'', max_jobs => 9)', 'of the rate');
-- Five at once, the rate five: ten are not ready, nor run, within one time.
select oq_limit('g5', 'g', max_running => 5, rate => 5, per => '1 hour') from oq_create_queue('g5') \g /dev/null
select count(oq_enqueue('g5', group_key => 'g')) from generate_series(1, 12) \g /dev/null
select oq_tick() \g /dev/null
update oq.limit_slot set taken_at = taken_at - interval '2 hours';
select oq_limit('g5', 'g', max_running => 9, rate => 5, per => '1 hour') \g /dev/null
select oq_tick() \g /dev/null
select is((select count(oq_ack(job_id, lease_token)) from oq_lease('g5', max_jobs => 20)), 5::bigint, 'five after two idle hours');
select oq_tick() \g /dev/null
select is_empty('select from oq_lease(''g5'', max_jobs => 20)', 'and no other five');
-- More are ready than the rate lets begin.
select oq_limit('gm', 'g', max_running => 4) from oq_create_queue('gm') \g /dev/null
select count(oq_enqueue('gm', to_jsonb(i), group_key => 'g')) from generate_series(1, 6) i \g /dev/null
select oq_tick() \g /dev/null
select is((select ready || ' ' || waiting from oq_stats('gm')), '4 2', 'four are ready');
select oq_limit('gm', 'g', max_running => 4, rate => 2, per => '1 hour') \g /dev/null
select is((select ready || ' ' || waiting from oq_stats('gm')), '2 4', 'two of them go back');
select is((select array_agg(payload::text) from oq_lease('gm', max_jobs => 9)), '{1,2}', 'the first are left');
update oq.limit_slot set taken_at = taken_at - interval '1 hour', token = 0;
update oq.todo set due_at = clock_timestamp();
select oq_tick() \g /dev/null
select is((select array_agg(payload::text) from oq_lease('gm', max_jobs => 9)), '{3,4}', 'the next are who went back');
-- One that is parked gives its slot back.
select oq_limit('gp', 'g', rate => 1, per => '1 hour') from oq_create_queue('gp') \g /dev/null
select oq_enqueue('gp', group_key => 'g') as gp \gset
select oq_throttle('gp', clock_timestamp() + interval '1 min', 'g') \g /dev/null
select is(state_of(:gp), 'scheduled', 'parked');
select oq_throttle('gp', '-infinity', 'g') \g /dev/null
select is((select job_id from oq_lease('gp')), :gp::bigint, 'it has not begun');

-- Groups.
select count(oq_enqueue('g', group_key => k)) from unnest('{a,b,*}'::text[]) k, generate_series(1, 4)
    \g /dev/null
select is((select string_agg(group_key, '' order by group_key collate "C") from oq_lease('g', max_jobs => 9)),
    '*ab', 'one of each group');
select oq_limit('g', 'a', 3), oq_limit('g', '*', 2) \g /dev/null
select oq_tick() \g /dev/null
select is((select string_agg(group_key, '' order by group_key collate "C") from oq_lease('g', max_jobs => 9)),
    '*aab', 'three of a, two of every other');
select oq_limit('g', 'a') \g /dev/null
select is((select count(*) from oq.limit_rule where group_key = 'a'), 0::bigint, 'the rule of a goes');
select results_eq('select gate, cardinality(held_by) from oq_jobs j
    cross join lateral oq.group_gate(j.job_id) where j.queue_name = ''g'' and j.state = ''waiting''
        and j.group_key = ''b'' order by j.job_id, gate',
    'values (''group'', 2), (''group'', 2), (''line'', 1)', 'the gate of a job says by whom');

-- A limit that is lowered, or goes, binds what is ready: the rest goes back to the head of the line, in its order.
create function payloads(jobs int)
returns text
language sql
as $$ select string_agg(payload::text, ',') from oq_lease('low', max_jobs => jobs) $$;
create function ends(way text)
returns text
language plpgsql
as $$
declare
    v_job  record;
    v_said text := '';
begin
    for v_job in
        select l.job_id, l.token from oq.leased l join oq.job j using (job_id)
          join oq.queue_now q on q.queue_id = j.queue_id where q.queue_name = 'low' order by 1
    loop
        v_said := v_said || case way when 'ack' then oq_ack(v_job.job_id, v_job.token)::text
            when 'release' then oq_release(v_job.job_id, v_job.token)::text
            else oq_nack(v_job.job_id, v_job.token, 'no', retry_after => way::interval) end || ' ';
    end loop;
    return v_said;
end
$$;
select oq_create_queue('low', '{"max_lost_leases": 99, "max_retries": 99}'), oq_limit('low', 'g', max_running => 3) \g /dev/null
select count(oq_enqueue('low', to_jsonb(i), group_key => 'g')) from generate_series(1, 6) i \g /dev/null
select is((select ready from oq_stats('low')), 3::bigint, 'three are let in');
select oq_limit('low', 'g', max_running => 1) \g /dev/null
select is(payloads(9), '1', 'one of them is left');
select is(ends('ack') || payloads(9), 'true 2', 'the next are those who went back');
select oq_limit('low', '*', max_running => 3), oq_limit('low', 'g'), oq_tick() \g /dev/null
select is(payloads(9), '3,4', 'two more of three');
-- What runs goes on; what comes back comes one by one, in its order.
select oq_limit('low', '*') \g /dev/null
select is(ends('release') || coalesce(payloads(9), ''), 'true true true 4', 'given back: one of them');
select oq_tick() \g /dev/null
select is(payloads(9), null, 'no second');
select is(ends('ack') || payloads(9), 'true 2', 'then the next');
select oq_limit('low', 'g', max_running => 3), oq_tick() \g /dev/null
select is(payloads(9), '3,5', 'three at once');
select oq_limit('low', 'g', max_running => 1) \g /dev/null
select is(ends('0') || payloads(9), 'ready ready ready 5', 'failed: one of them');
select is(ends('ack') || payloads(9), 'true 2', 'then the next');
select oq_limit('low', 'g', max_running => 3), oq_tick() \g /dev/null
select is(payloads(9), '3,6', 'three at once');
select oq_limit('low', 'g', max_running => 1) \g /dev/null
select pass_leases(), oq_reap() \g /dev/null
select is(payloads(9), '2', 'lost: one of them');
select oq_tick() \g /dev/null
select is(payloads(9), null, 'no second');
select oq_limit('low', 'g', max_running => 3), oq_tick() \g /dev/null
select is(payloads(9), '3,6', 'three at once');
select oq_limit('low', 'g', max_running => 1) \g /dev/null
select is(ends('1 hour'), 'scheduled scheduled scheduled ', 'put off, all three');
select pass_delays(), oq_promote() \g /dev/null
select is(payloads(9), '2', 'come due together: one of them');
select is(ends('ack') || payloads(9) || ends('ack') || payloads(9) || ends('ack') || coalesce(payloads(9), ''), 'true 3true 6true ',
    'and the rest in their order');
-- A rule that another transaction sees only later binds what is let in meanwhile.
select oq_limit('low', 'h', max_running => 5) \g /dev/null
select count(oq_enqueue('low', to_jsonb(i), group_key => 'h')) from generate_series(1, 6) i \g /dev/null
begin isolation level repeatable read;
select oq_limit('low', 'h', max_running => 2) \g /dev/null
commit;
select oq_tick() \g /dev/null
select is(payloads(9), '1,2', 'from an older snapshot, by the next tick');

-- Each slot has a lock of its own, up to the largest limit: slot 4096 of one holder is not slot 0 of the next.
begin;
insert into oq.leased (job_id, token, lane, expires_at, leased_at, attempt, failed, lost)
select -i, 1, 0, now() + interval '1 day', now(), 1, 0, 0 from generate_series(1, 4096) i;
insert into oq.limit_slot (holder, slot, job_id, token, taken_at)
select 4, i - 1, -i, 1, now() from generate_series(1, 4096) i;
select is(oq.free_slot(4, 4097), 4096, 'the slot behind 4096 that are taken');
select is(oq.rate_slots(5, 1, '1 s', 1), '{0}', 'the first of a rate');
select is((select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
    and classid = (hashtext('oq:limit')::bigint & 4294967295)::oid), 2::bigint, 'two locks');
rollback;

-- Bad input.
select refuses_bad_names('select oq_limit(%L)');
select throws_ok('select oq_limit(''nowhere'', max_running => 1)', 'OQ003', '%nowhere%', 'no such queue');
select throws_ok(format('select oq_limit(''q'', %s)', a), 'OQ001', m, a)
  from (values ('max_running => 0', 'max_running%0%'), ('max_running => -1', 'max_running%-1%'),
    ('max_running => 10001', 'max_running%10001%'), ('rate => 0', 'rate%0%'), ('rate => -1', 'rate%-1%'),
    ('rate => ''NaN''', 'rate%NaN%'), ('rate => 1000001', 'rate%1000001%'),
    ('rate => 1, per => null', 'per%null%'), ('rate => 1, per => ''0''', 'per%00:00%'),
    ('rate => 1, per => ''-1 s''', 'per%-00:00:01%'), ('rate => 1, per => ''2 years''', 'per%2 years%'),
    ('group_key => '''', max_running => 1', 'group_key%'),
    ('group_key => repeat(''x'', 1001), max_running => 1', 'group_key%xxx%')) v(a, m);
select oq_drop_queue('g', force => true) \g /dev/null
select is((select count(*) from oq.limit_rule r join oq.queue q using (queue_id) where q.queue_name = 'g'),
    0::bigint, 'a queue takes its rules along');

select finish();
