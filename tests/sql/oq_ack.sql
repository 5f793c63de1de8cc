-- oq_ack: completes a job, if the token is its lease.

select oq_enqueue('q') as job \gset
select lease_token as token from oq_lease('q', 'w') \gset
select unchanged(format('select oq_ack(%s, %s)', :job, t), '{(f)}', 'token ' || t)
  from unnest(array[:token - 1, :token + 1, 0, -1, 9223372036854775807,
      -9223372036854775808]::bigint[]) t;
select unchanged(format('select oq_ack(%s, null)', :job), '{(f)}', 'token null');
select unchanged(format('select oq_ack(null, %s)', :token), '{(f)}', 'job null');
select unchanged(format('select oq_ack(%s, %s)', :job + 1, :token), '{(f)}', 'another job');
select throws_ok(format('select oq_ack(%s, %s, strict => true)', :job, :token + 1), 'OQ002',
    '%' || :job || '%', 'strict: OQ002 names the job');
select throws_ok('select oq_ack(0, 0, strict => true)', 'OQ002', '%0%', 'strict: an unknown job');
select throws_ok('select oq_ack(null, null, strict => true)', 'OQ002', '%null%', 'strict: null');

select is(oq_ack(:job, :token, '{"sum": 42}'), true, 'its own token');
select results_eq(format('select state, result, error, attempt, worker_id, finished_at is not null,
    lease_expires_at from oq_get(%s)', :job),
    $$values ('completed', '{"sum": 42}'::jsonb, null, 1, 'w', true, null)$$, 'completed');
select results_eq(format('select * from oq_result(%s)', :job),
    $$values ('completed', '{"sum": 42}'::jsonb, null)$$, 'the result');
select unchanged(format('select oq_ack(%s, %s, ''"again"'')', :job, :token), '{(f)}',
    'a second time');
select throws_ok(format('select oq_ack(%s, %s, strict => true)', :job, :token), 'OQ002', '%',
    'a second time, strict');

-- Tokens of other jobs.
select count(oq_enqueue('two')) as x from generate_series(1, 2) \gset
select job_id as a, lease_token as ta from oq_lease('two') \gset
select job_id as b, lease_token as tb from oq_lease('two') \gset
select unchanged(format('select oq_ack(%s, %s), oq_ack(%s, %s)', :a, :tb, :b, :ta), '{"(f,f)"}',
    'each with the other''s');
select is(array[oq_ack(:a, :ta, strict => true), oq_ack(:b, :tb)], '{t,t}', 'each with its own');

-- An earlier lease of the job; a lease that expired, before and after it was taken back.
select oq_enqueue('e') as e \gset
select lease_token as t1 from oq_lease('e') \gset
select tap.pass_leases();
select is(oq_reap(), 1::bigint, 'taken back');
select unchanged(format('select oq_ack(%s, %s)', :e, :t1), '{(f)}', 'nobody''s');
select lease_token as t2 from oq_lease('e') \gset
select unchanged(format('select oq_ack(%s, %s)', :e, :t1), '{(f)}', 'somebody else''s');
select throws_ok(format('select oq_ack(%s, %s, strict => true)', :e, :t1), 'OQ002',
    '%' || :e || '%', 'somebody else''s, strict');
select tap.pass_leases();
select is(oq_ack(:e, :t2, strict => true), true, 'expired, and not taken back');
select is(oq_reap(), 0::bigint, 'nothing is left to take back');

-- Results: any JSON value up to 1 MB.
select oq_enqueue('r') as r \gset
select lease_token as tr from oq_lease('r') \gset
select throws_ok(format('select oq_ack(%s, %s, to_jsonb(repeat(''x'', 1048575)))', :r, :tr),
    'OQ001', 'result%1048577 bytes%', '1 MB and a byte');
create table stored as select to_jsonb(repeat('x', 2000000)) as result;
select throws_ok(format('select oq_ack(%s, %s, result) from stored', :r, :tr), 'OQ001',
    'result%2000002 bytes%',
    'a result that comes compressed from a table');
select throws_ok(format('select oq_ack(%s, %s, to_jsonb(array_fill(1e131071, array[8])))', :r, :tr), 'OQ001',
    'result%1048592 bytes%', '128 binary bytes that are a text of 1 MB and more');
select is(oq_ack(:r, :tr, to_jsonb(repeat('x', 1048574))), true, '1 MB');
select is((select octet_length(result::text) from oq_result(:r)), 1048576, 'is kept whole');
select oq_enqueue('r') as r \gset
select lease_token as tr from oq_lease('r') \gset
select oq_ack(:r, :tr, 'null') as x \gset
select is((select result from oq_result(:r)), 'null'::jsonb, 'a JSON null is a result');

-- keep: nothing, or all.
select oq_create_queue('none', '{"keep": "none"}') as x, oq_enqueue('none') as n \gset
select is(oq_ack(job_id, lease_token, '1'), true, 'in a queue that keeps nothing')
    from oq_lease('none');
select is_empty(format('select oq_get(%s) union all select oq_get(%1$s)', :n), 'nothing to see');
select is_empty(format('select * from oq_result(%s)', :n), 'no result');
select is_empty(format('select * from oq_attempts(%s)', :n), 'no attempts');
select is((select completed from oq_stats('none')), 0::bigint, 'not counted as kept');

-- Effects of the caller's transaction: exactly once with strict.
create table effect (n int);
select oq_enqueue('x') as x \gset
select lease_token as tx from oq_lease('x') \gset
begin;
insert into effect values (1);
select is(oq_ack(:x, :tx, strict => true), true, 'effect and ack');
rollback;
select is(tap.state_of(:x), 'leased', 'a rollback takes the ack back');
begin;
insert into effect values (2);
select is(oq_ack(:x, :tx, strict => true), true, 'again');
commit;
select throws_ok(format('with e as (insert into effect values (3)) select oq_ack(%s, %s,
    strict => true)', :x, :tx), 'OQ002', '%', 'twice');
select results_eq('select n from effect', 'values (2)', 'one effect');

select finish();
