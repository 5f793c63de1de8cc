-- oq_nack: a failed attempt, its retries and their pauses.

-- Retries: 3 of them are 4 attempts, then the job is dead.
select oq_create_queue('q', '{"retry": {"kind": "fixed", "base": "1 h", "jitter": 0}}') as x,
    oq_enqueue('q') as job \gset
create procedure fail_once(job bigint, error text, retry_after interval, out state text)
language plpgsql as $$
begin
    update oq.scheduled set due_at = clock_timestamp();
    select oq_nack(l.job_id, l.lease_token, fail_once.error, retry_after => fail_once.retry_after)
      into state from oq_lease('q', 'w') l where l.job_id = fail_once.job;
end $$;
call fail_once(:job, 'e1', null, null) \gset
select is(:'state', 'scheduled', 'the first failure');
select results_eq(format('select state, attempt, failures, lost_leases, error,
    abs(extract(epoch from run_at - clock_timestamp()) - 3600) < 5,
    worker_id, lease_expires_at from oq_get(%s)', :job), $$values ('scheduled', 1, 1, 0, 'e1', true,
    null, null)$$, 'comes back in an hour');
call fail_once(:job, 'e2', null, null) \gset
call fail_once(:job, 'e3', '0', null) \gset
select is(:'state', 'ready', 'retry_after 0');
call fail_once(:job, 'e4', null, null) \gset
select is(:'state', 'dead', 'the fourth failure');
select results_eq(format('select state, reason, attempt, failures, error, finished_at is not null
    from oq_get(%s)', :job),
    $$values ('dead', 'retries_exhausted', 4, 4, 'e4', true)$$, 'dead, with a reason');
select results_eq(format('select attempt, worker_id, outcome, error, leased_at <= ended_at
    from oq_attempts(%s)', :job),
    $$values (1, 'w', 'failed', 'e1', true), (2, 'w', 'failed', 'e2', true),
    (3, 'w', 'failed', 'e3', true), (4, 'w', 'failed', 'e4', true)$$,
    'every attempt can be read');
select is_empty('select from oq_lease(''q'')', 'it is not leased any more');

-- max_retries of the job, of the queue, none; retry => false.
select oq_enqueue('z', max_retries => 0) as z \gset
select is(oq_nack(job_id, lease_token), 'dead', 'max_retries 0') from oq_lease('z');
select results_eq(format('select reason, error from oq_dead where job_id = %s', :z),
    $$values ('retries_exhausted', null)$$, 'without an error');
select oq_create_queue('one', '{"max_retries": 1}') as x, oq_enqueue('one') as one \gset
select is(oq_nack(job_id, lease_token, retry_after => '0'), 'ready',
    'the queue''s max_retries 1, first') from oq_lease('one');
select oq_create_queue('one', '{"max_retries": 0}') as x \gset
select is(oq_nack(job_id, lease_token, retry_after => '0'), 'dead',
    'then 0: it holds for jobs that are there') from oq_lease('one');
select oq_enqueue('n') as n \gset
select is(oq_nack(job_id, lease_token, 'bad payload', retry => false), 'dead', 'retry false')
    from oq_lease('n');
select results_eq(format('select reason, error, failures from oq_dead where job_id = %s', :n),
    $$values ('no_retry', 'bad payload', 1)$$, 'no_retry');
select oq_enqueue('n') as n \gset
select is(oq_nack(job_id, lease_token, 'x', false, '1 h'), 'dead',
    'retry false, whatever retry_after') from oq_lease('n');

-- The pauses. Without jitter exactly, with jitter between its bounds, never above max, nowhere an
-- overflow.
create function pause(policy jsonb, retries int) returns numeric language sql as $$
    select round(extract(epoch from oq.backoff(policy, retries))::numeric, 3) $$;
select is((select array_agg(pause('{"kind": "exponential", "base": "1 s", "factor": 2, "max": "1 h",
    "jitter": 0}', n) order by n) from unnest('{1,2,3,4,11,12,13}'::int[]) n),
    '{1.000,2.000,4.000,8.000,1024.000,2048.000,3600.000}', 'exponential');
select is((select array_agg(pause('{"kind": "linear", "base": "10 s", "max": "1 min", "jitter": 0}',
    n) order by n) from unnest('{1,2,6,7,30000}'::int[]) n),
    '{10.000,20.000,60.000,60.000,60.000}', 'linear');
select is((select array_agg(pause('{"kind": "fixed", "base": "10 s", "max": "1 h", "jitter": 0}', n)
    order by n) from unnest('{1,2,30000}'::int[]) n),
    '{10.000,10.000,10.000}', 'fixed');
select is(pause('{"kind": "fixed", "base": "1 day", "max": "1 h", "jitter": 0}', 1), 3600.000,
    'max binds a fixed pause');
select is(pause('{"kind": "exponential", "base": "5 s", "factor": 1, "jitter": 0}', 30000), 5.000,
    'factor 1');
select is(pause(format('{"kind": "%s", "base": "3660 days", "factor": 1000, "max": "3660 days",
    "jitter": 0}', k)::jsonb, n), 316224000.000, k || ' at the limits, retry ' || n)
  from unnest('{exponential,linear,fixed}'::text[]) k, unnest('{1,30000,2147483647}'::int[]) n;
select is(pause(format('{"kind": "%s", "base": "0", "max": "1 h"}', k)::jsonb, 30000), 0.000,
    k || ' with base 0') from unnest('{exponential,linear,fixed}'::text[]) k;
select is(pause(format('{"kind": "%s", "base": "1 s", "max": "0"}', k)::jsonb, 30000), 0.000,
    k || ' with max 0') from unnest('{exponential,linear,fixed}'::text[]) k;
select ok(min(p) >= 50 and max(p) <= 150 and max(p) - min(p) > 50, 'jitter 0.5: 50 to 150 of 100 s')
  from (select pause('{"kind": "fixed", "base": "100 s", "jitter": 0.5}', n) as p
      from generate_series(1, 1000) n) x;
select ok(min(p) >= 0 and max(p) <= 200 and max(p) - min(p) > 150, 'jitter 1: 0 to 200 of 100 s')
  from (select pause('{"kind": "fixed", "base": "100 s", "jitter": 1}', n) as p
      from generate_series(1, 1000) n) x;
select ok(max(p) <= 3600 and min(p) < 3500, 'where max binds, jitter shortens')
  from (select pause('{"kind": "exponential", "base": "1 s", "factor": 10, "jitter": 0.1}', n) as p
      from generate_series(10, 1000) n) x;
select ok(pause('{}', 1) between 0.9 and 1.1 and pause('{}', 3) between 3.6 and 4.4 and pause('{}',
    30000) between 3240 and 3600, 'the defaults');

-- The job's policy goes before the queue's; retry_after before both.
select oq_create_queue('pol', '{"retry": {"kind": "fixed", "base": "100 s", "jitter": 0}}') as x
    \gset
select oq_enqueue('pol', options => '{"retry": {"kind": "linear", "base": "500 s", "jitter": 0}}')
    as own, oq_enqueue('pol') as its, oq_enqueue('pol') as after \gset
select is(array_agg(oq_nack(job_id, lease_token,
    retry_after => case when job_id = :after then interval '9000 s' end)),
    '{scheduled,scheduled,scheduled}', 'three failures')
  from oq_lease('pol', max_jobs => 3);
select is((select round(extract(epoch from run_at - clock_timestamp()) / 100) from oq_get(j)),
    w::numeric, d)
  from (values (:own, 5, 'the job''s policy'), (:its, 1, 'the queue''s'),
      (:after, 90, 'retry_after, above max')) v(j, w, d);

-- Not its lease: null, and nothing changed.
select oq_enqueue('l') as l \gset
select lease_token as t from oq_lease('l') \gset
select unchanged(format('select oq_nack(%s, %s, ''e'')', j, t), '{()}',
    format('job %s, token %s', j, t))
  from (values (:'l', (:t + 1)::text), (:'l', '0'), (:'l', 'null'), ('null', :'t'), ('0', :'t'),
      ('-1', '-1')) v(j, t);
select tap.pass_leases();
select is(oq_nack(:l, :t, retry_after => '0'), 'ready', 'expired, and not taken back');
select unchanged(format('select oq_nack(%s, %s)', :l, :t), '{()}', 'a second time');

-- Bad input, and the lease is still there.
select lease_token as t from oq_lease('l') \gset
select throws_ok(format('select oq_nack(%s, %s, %s)', :l, :t, a), 'OQ001', m, a)
  from (values ('retry_after => ''-1 s''', 'retry_after%-00:00:01%'),
      ('retry_after => ''3661 days''', 'retry_after%3661%'),
    ('retry_after => ''999999 years''', 'retry_after%999999%'),
    ('retry => null', 'retry%null%')) v(a, m);
select is(oq_heartbeat(:l, :t), 'ok', 'still leased');

-- Errors: kept up to 10000 characters.
select oq_nack(:l, :t, repeat('é', 10001)) as x \gset
select is((select error from oq_attempts(:l) order by attempt desc limit 1), repeat('é', 10000),
    'the first 10000 characters');
select oq_enqueue('e') as e \gset
select oq_nack(job_id, lease_token, '') as x from oq_lease('e') \gset
select is((select error from oq_result(:e)), '', 'an empty error');

-- The 32767th retry, the most there can be.
select oq_enqueue('max', max_retries => 32767) as m \gset
update oq.ready set failed = 32766 where job_id = :m;
select is(oq_nack(job_id, lease_token, retry_after => '0'), 'ready', 'failure 32767')
    from oq_lease('max');
select is(oq_nack(job_id, lease_token), 'dead', 'failure 32768') from oq_lease('max');

select finish();
