-- oq_throttle: nobody gets these until then.

select oq_create_queue('q') \g /dev/null
select oq_enqueue('q') from generate_series(1, 3) \g /dev/null
select oq_enqueue('q', group_key => 'g') from generate_series(1, 3) \g /dev/null
select is((select array_agg(job_id) from oq_lease('q')), '{1}', 'one is leased');
select is(oq_throttle('q', now() + interval '1 hour')::text, '', 'a queue');
select is_empty('select from oq_lease(''q'', max_jobs => 9)', 'nobody gets any');
select is((select gate from oq.queue_gate((select queue_id from oq.queue limit 1))), 'throttled', 'the gate');
select is((select count(*) from oq_lease('q')), 0::bigint, 'none');
select is((select oq_ack(job_id, token) from oq.leased), true, 'what is leased goes on');
select oq_throttle('q', now() - interval '1 s') \g /dev/null
select is((select array_agg(job_id) from oq_lease('q', max_jobs => 2)), '{2,3}', 'a time that has passed lifts it');

-- A group, that has let one in already.
select is(oq_throttle('q', now() + interval '1 hour', 'g')::text, '', 'a group');
select is_empty('select from oq_lease(''q'', max_jobs => 9)', 'nobody gets any of it');
select is((select array_agg(state || attempt order by job_id) from oq_jobs where group_key = 'g'),
    '{scheduled0,waiting0,waiting0}', 'the first is due then, and no attempt is counted');
select is((select array_agg(gate) from oq_jobs j cross join lateral oq.group_gate(j.job_id)
    where j.state = 'waiting' and j.group_key = 'g' and not exists (
        select from oq.waiting w where w.job_id < j.job_id)), '{throttled,group}', 'the gates of the next');
select oq_throttle('q', '-infinity', 'g') \g /dev/null
select is((select array_agg(payload) from oq_lease('q', max_jobs => 9)), '{"{}"}', 'lifted: the first');
select is((select array_agg(group_key) from oq_jobs where state = 'leased' and group_key is not null), '{g}',
    'of the group');

-- Told to retry after: throttle, then release.
select oq_throttle('q', now() + interval '1 hour', 'g') \g /dev/null
select oq_release(job_id, token) from oq.leased where job_id in (select job_id from oq_jobs
    where group_key = 'g') \g /dev/null
select is_empty('select from oq_lease(''q'', max_jobs => 9)', 'not even what was released');
select is((select min(run_at) > now() + interval '59 min' and max(attempt) = 0 from oq_jobs
    where group_key = 'g' and state = 'scheduled'), true, 'until then');
select is((select count(*) from oq_jobs j where queue_name = 'q' and state = 'leased'), 2::bigint, 'others go on');

-- What came due while its group was throttled goes on when that is lifted, or ends earlier.
select oq_enqueue('late', group_key => 'g', run_at => clock_timestamp() + interval '1 hour') as a \gset
select oq_enqueue('late', group_key => 'g', run_at => clock_timestamp() + interval '1 hour') as b \gset
select oq_throttle('late', '2100-01-01', 'g') \g /dev/null
update oq.job set run_at = clock_timestamp() where run_at is not null;
select pass_delays() \g /dev/null
select oq_promote() \g /dev/null
select is((select array_agg(run_at) from oq_jobs where queue_name = 'late'), array_fill('2100-01-01'::timestamptz, '{2}'), 'parked');
select oq_throttle('late', '2090-01-01', 'g') \g /dev/null
select is((select array_agg(run_at) from oq_jobs where queue_name = 'late'), array_fill('2090-01-01'::timestamptz, '{2}'), 'earlier');
select oq_throttle('late', '-infinity', 'g') \g /dev/null
select oq_promote() \g /dev/null
select is((select array_agg(job_id) from oq_lease('late', max_jobs => 2)), array[:a]::bigint[], 'lifted');

-- A failure says where the job went.
select is(oq_nack(job_id, token, 'no', retry_after => '0'), 'ready', 'ready') from oq.leased where job_id = :a;
select oq_throttle('late', '2100-01-01', 'g') from oq_lease('late') \g /dev/null
select is(oq_nack(job_id, token, 'no', retry_after => '0'), 'scheduled', 'or scheduled, of a group that is throttled')
  from oq.leased where job_id = :a;

-- At every level.
select oq_enqueue('rr', group_key => 'g') from generate_series(1, 2) \g /dev/null
begin isolation level repeatable read;
select oq_throttle('rr', now() + interval '1 hour', 'g') \g /dev/null
commit;
select is_empty('select from oq_lease(''rr'')', 'at REPEATABLE READ');
select is((select array_agg(state order by job_id) from oq_jobs where queue_name = 'rr'), '{scheduled,waiting}', 'parked');
select oq_throttle('rr', '-infinity', 'g') \g /dev/null
select oq_release(job_id, lease_token) from oq_lease('rr') \g /dev/null
begin isolation level serializable;
select oq_throttle('rr', now() + interval '1 hour', 'g') \g /dev/null
commit;
select is_empty('select from oq_lease(''rr'')', 'at SERIALIZABLE');
-- What is ready all the same: oq_explain says it.
select oq_throttle('rr', '-infinity', 'g'), oq_promote() \g /dev/null
insert into oq.throttled (queue_id, group_id, until)
select t.queue_id, t.group_id, now() + interval '1 hour' from oq.throttled t order by t.throttle_id desc limit 1;
select results_eq(format('select step, verdict, retry_at > now() from oq_explain(%s) where verdict in (''closed'', ''held'')', job_id),
    'values (''group_throttled'', ''closed'', true), (''verdict'', ''held'', true)', 'one that is ready')
  from oq_jobs where queue_name = 'rr' and state = 'ready';

-- Bad input.
select refuses_bad_names('select oq_throttle(%L, now())');
select throws_ok('select oq_throttle(''nowhere'', now())', 'OQ003', '%nowhere%', 'no such queue');
select throws_ok(format('select oq_throttle(''q'', %s)', a), 'OQ001', m, a)
  from (values ('null', 'until%null%'), ('''infinity''', 'until%infinity%'),
    ('now(), ''''', 'group_key%'), ('now(), repeat(''x'', 1001)', 'group_key%')) v(a, m);

select finish();
