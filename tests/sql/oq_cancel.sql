-- oq_cancel: a job in any unfinished state.

select oq_enqueue('q') as ready, oq_enqueue('q', run_at => now() + interval '1 h') as scheduled
    \gset
select is(oq_cancel(:ready, 'not wanted'), true, 'ready');
select is(oq_cancel(:scheduled), true, 'scheduled');
select is_empty('select from oq_lease(''q'')', 'none is leased');
select results_eq(format('select state, error, attempt, finished_at is not null from oq_get(%s)',
    :ready),
    $$values ('cancelled', 'not wanted', 0, true)$$, 'the reason is its error');
select results_eq(format('select state, error from oq_get(%s)', :scheduled),
    $$values ('cancelled', null)$$, 'no reason');

-- A leased job: its worker learns it at the next heartbeat, and can do nothing with it.
select job_id as job, lease_token as token from oq_lease(case when oq_enqueue('l') > 0 then 'l' end,
    'w') \gset
select is(oq_cancel(:job, 'stop'), true, 'leased');
select unchanged(format('select oq_heartbeat(%s, %s)', :job, :token), '{(cancelled)}', 'heartbeat');
select unchanged(format('select oq_heartbeat(%s, %s)', :job, :token), '{(cancelled)}', 'and again');
select unchanged(format('select oq_heartbeat(%s, %s)', :job, :token + 1), '{(lost)}',
    'heartbeat with another token');
select unchanged(format('select oq_ack(%s, %s)', :job, :token), '{(f)}', 'ack');
select throws_ok(format('select oq_ack(%s, %s, strict => true)', :job, :token), 'OQ002',
    '%' || :job || '%', 'strict ack');
select unchanged(format('select oq_nack(%s, %s)', :job, :token), '{()}', 'nack');
select unchanged(format('select oq_release(%s, %s)', :job, :token), '{(f)}', 'release');
select results_eq(format('select state, error, attempt, worker_id from oq_get(%s)', :job),
    $$values ('cancelled', 'stop', 1, 'w')$$, 'as it ended');
select results_eq(format('select attempt, worker_id, outcome, error from oq_attempts(%s)', :job),
    $$values (1, 'w', 'cancelled', 'stop')$$,
    'its attempt is recorded');

-- A dead job; one that came back after a failure, whose old lease is lost, not cancelled.
select oq_enqueue('d') as dead \gset
select tap.kill_job('d', 'boom') as x \gset
select is(oq_cancel(:dead, 'given up'), true, 'dead');
select results_eq(format('select state, error, attempt from oq_get(%s)', :dead),
    $$values ('cancelled', 'given up', 1)$$, 'cancelled');
select job_id as back, lease_token as old from oq_lease(case when oq_enqueue('b') > 0 then 'b' end)
    \gset
select oq_nack(:back, :old, 'e', retry_after => '0') as x \gset
select is(oq_cancel(:back), true, 'a job that came back');
select unchanged(format('select oq_heartbeat(%s, %s)', :back, :old), '{(lost)}',
    'its former lease was lost before');

-- An expired lease that nobody has taken back.
select job_id as late, lease_token as late_token
    from oq_lease(case when oq_enqueue('e') > 0 then 'e' end) \gset
select tap.pass_leases();
select is(oq_cancel(:late), true, 'an expired lease');
select is(oq_reap(), 0::bigint, 'is not reaped any more');
select is(oq_heartbeat(:late, :late_token), 'cancelled', 'and its worker learns it');

-- False, and nothing changed.
select unchanged(format('select oq_cancel(%s)', :ready), '{(f)}', 'cancelled before');
select oq_enqueue('a') as done \gset
select oq_ack(job_id, lease_token) from oq_lease('a') \g /dev/null
select unchanged(format('select oq_cancel(%s, ''late'')', :done), '{(f)}', 'completed');
select unchanged(format('select oq_cancel(%L)', i), '{(f)}', 'job ' || coalesce(i, 'null'))
  from unnest('{0,-1,9223372036854775807,-9223372036854775808,null}'::text[]) i;

-- Reasons.
select oq_enqueue('r') as r \gset
select throws_ok(format('select oq_cancel(%s, repeat(''x'', 1001))', :r), 'OQ001', 'reason%1001%',
    'a reason of 1001 characters');
select is(oq_cancel(:r, repeat('é', 1000)), true, 'a reason of 1000');
select is((select length(error) from oq_result(:r)), 1000, 'is kept whole');

-- keep none: nothing of it is shown.
select oq_create_queue('none', '{"keep": "none"}') as x \gset
select oq_enqueue('none') as n \gset
select is(oq_cancel(:n), true, 'in a queue that keeps nothing');
select is_empty(format('select from oq_get(%s)', :n), 'nothing to see');
select unchanged(format('select oq_cancel(%s)', :n), '{(f)}', 'nor to cancel again');
select job_id as nl, lease_token as nlt
    from oq_lease(case when oq_enqueue('none') > 0 then 'none' end) \gset
select is(oq_cancel(:nl), true, 'leased there');
select is(oq_heartbeat(:nl, :nlt), 'cancelled', 'its worker learns it even so');

-- What is rolled back was not cancelled.
select oq_enqueue('tx') as tx \gset
begin;
select oq_cancel(:tx) as x \gset
rollback;
select is((select job_id from oq_lease('tx')), :tx::bigint, 'rolled back');

select finish();
