-- oq_release: gives a job back as if it had not been leased.

select oq_enqueue('q', '1') as a, oq_enqueue('q', '2') as b \gset
select lease_token as t from oq_lease('q') \gset
select is(oq_release(:a, :t), true, 'given back');
select results_eq(format('select state, attempt, failures, lost_leases, worker_id, error
    from oq_get(%s)', :a), $$values ('ready', 0, 0, 0, null, null)$$,
    'ready, no attempt counted');
select is_empty(format('select * from oq_attempts(%s)', :a), 'none recorded');
select is((select array_agg(payload::text || '/' || attempt) from oq_lease('q', max_jobs => 2)),
    '{2/1,1/1}', 'behind the others, attempt 1 again');

-- With a delay.
select oq_enqueue('d') as d \gset
select lease_token as t from oq_lease('d') \gset
select is(oq_release(:d, :t, '1 hour'), true, 'a delay');
select results_eq(format('select state, attempt, abs(extract(epoch
    from run_at - clock_timestamp()) - 3600) < 5 from oq_get(%s)', :d),
    $$values ('scheduled', 0, true)$$, 'scheduled');
select tap.pass_delays();
select lease_token as t2 from oq_lease('d') \gset
select ok(:t2 > :t, 'a later, larger token');
select is(oq_release(:d, :t2, '0'), true, 'a delay of 0');
select is(tap.state_of(:d), 'ready', 'is none');
-- A month less 29 days is a day, but in February it lies in the past, where no mark ever looks.
select oq_lease('d') \g /dev/null
begin;
select is(oq.put_back(l, '2027-01-31', '1 month -29 days'), 'ready', 'a delay that is over before it begins')
    from oq.leased l limit 1;
rollback;

-- However often: no retries are used up.
select oq_enqueue('n', max_retries => 0) as n \gset
select bool_and(oq_release(job_id, lease_token)) as x from generate_series(1, 20) i cross
    join lateral oq_lease(case when i > 0 then 'n' end) \gset
select is((select attempt from oq_lease('n')), 1, 'released twenty times, the first attempt');

-- Not its lease: false, and nothing changed.
select unchanged(format('select oq_release(%s, %s)', j, t), '{(f)}',
    format('job %s, token %s', j, t))
  from (values (:'d', :'t'), (:'d', '0'), (:'d', 'null'), ('null', :'t2'), ('0', '0'),
      ('-1', '9223372036854775807')) v(j, t);
select oq_enqueue('e') as e \gset
select lease_token as te from oq_lease('e') \gset
select tap.pass_leases();
select is(oq_release(:e, :te), true, 'expired, and not taken back');
select unchanged(format('select oq_release(%s, %s)', :e, :te), '{(f)}', 'a second time');

-- Bad delays, and the lease is still there.
select lease_token as te from oq_lease('e') \gset
select throws_ok(format('select oq_release(%s, %s, %L)', :e, :te, d), 'OQ001', m, 'delay ' || d)
  from (values ('-1 s', 'delay%-00:00:01%'), ('3661 days', 'delay%3661%'),
      ('9999999 years', 'delay%9999999%')) v(d, m);
select is(oq_release(:e, :te, '3660 days'), true, 'ten years');

select finish();
