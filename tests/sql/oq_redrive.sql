-- oq_redrive: dead or cancelled jobs back to ready.

create function dead(queue_name text, payload jsonb,
    error text) returns bigint language plpgsql as $$
declare v_id bigint := oq_enqueue(queue_name, payload);
begin
    perform oq_nack(l.job_id, l.lease_token, dead.error, retry => false)
        from oq_lease(dead.queue_name) l;
    return v_id;
end $$;

select dead('q', '{"n": 1}', 'timeout at host a') as a, dead('q', '{"n": 2}', 'bad data') as b,
    dead('q', '{"n": 3}', 'timeout at host b') as c \gset
select unchanged('select * from oq_redrive(''q'', dry_run => true)',
    array[format('(%s)', :a), format('(%s)', :b), format('(%s)', :c)], 'a dry run says which');
select results_eq('select * from oq_redrive(''q'', max_jobs => 1)', format('values (%s)', :a),
    'one, the oldest');
select results_eq(format('select state, attempt, failures, lost_leases, reason from oq_get(%s)',
    :a), $$values ('ready', 1, 0, 0, null)$$,
    'failures begin again, attempts go on');
select results_eq('select * from oq_redrive(''q'')', format('values (%s), (%s)', :b, :c),
    'the rest');
select is_empty('select * from oq_redrive(''q'')', 'nothing is left');
select results_eq('select job_id, attempt from oq_lease(''q'', max_jobs => 9)',
    format('values (%s, 2), (%s, 2), (%s, 2)', :a, :b, :c), 'they are leased');
select is_empty('select from oq_dead', 'none is dead');

-- Filters, alone and together. The dry run and the run choose alike.
select dead('f', format('{"n": %s, "kind": "%s"}', i,
    case when i % 2 = 0 then 'even' else 'odd' end)::jsonb,
    case when i < 4 then 'timeout 100%' else 'Timeout' end) as x
    from generate_series(1, 6) i \g /dev/null
select oq_enqueue('f', '{"n": 7}', max_retries => 0) as x \gset
select oq_nack(job_id, lease_token) from oq_lease('f') \g /dev/null
update oq.dead set died_at = timestamptz '2020-01-01' + attempt_n * interval '1 day'
  from (select job_id as j, (payload ->> 'n')::int as attempt_n from oq_dead) x
      where job_id = j and attempt_n <= 6;
create function chosen(filter jsonb) returns text language plpgsql as $$
declare v_dry bigint[]; v_run bigint[]; v_numbers text;
begin
    v_dry := array(select oq_redrive('f', filter, dry_run => true));
    select string_agg(j.payload ->> 'n', ',' order by j.job_id) into v_numbers from oq_jobs j
        where j.job_id = any (v_dry);
    begin
        v_run := array(select oq_redrive('f', filter));
        if v_run <> v_dry or exists (select from unnest(v_run) i
            where tap.state_of(i) <> 'ready') then
            v_numbers := v_numbers || ' but the run has ' || v_run::text;
        end if;
        raise exception 'undo' using errcode = 'UNDO0';
    exception when sqlstate 'UNDO0' then null;
    end;
    return coalesce(v_numbers, '');
end $$;
select is(chosen(f), w, 'filter ' || f::text)
  from (values ('{}'::jsonb, '1,2,3,4,5,6,7'), ('{"state": "dead"}', '1,2,3,4,5,6,7'),
      ('{"reason": "no_retry"}', '1,2,3,4,5,6'), ('{"reason": "retries_exhausted"}', '7'),
    ('{"reason": "none such"}', ''), ('{"error": "timeout"}', '1,2,3'),
    ('{"error": "100%"}', '1,2,3'), ('{"error": "%"}', '1,2,3'), ('{"error": "_"}', ''),
    ('{"error": ""}', '1,2,3,4,5,6'), ('{"payload": {"kind": "even"}}', '2,4,6'),
    ('{"payload": {"n": 7}}', '7'), ('{"payload": {}}', '1,2,3,4,5,6,7'),
    ('{"payload": {"kind": "even"}, "error": "timeout"}', '2'),
    ('{"since": "2020-01-03T00:00:00Z"}', '2,3,4,5,6,7'), ('{"until": "2020-01-03T00:00:00Z"}',
    '1'),
    ('{"since": "2020-01-03T00:00:00Z", "until": "2020-01-05T00:00:00Z"}', '2,3'),
    ('{"job_ids": []}', ''), ('{"job_ids": [0, null, -1]}', ''),
    ('{"state": "cancelled"}', '')) v(f, w);
set timezone = 'UTC';
select is(chosen(jsonb_build_object('job_ids', (select jsonb_agg(job_id) from oq_dead
    where payload ->> 'n' in ('3', '5')))), '3,5', 'job_ids');

-- Patches: on all that come back.
select results_eq('select payload, headers, priority, max_retries, state
    from oq_redrive(''f'', ''{"payload": {"n": 7}}'',
    ''{"payload": {"n": 8}, "headers": {"h": 1}, "priority": 5, "max_retries": 9}'') i cross
    join lateral oq_get(i)',
    $$values ('{"n": 8}'::jsonb, '{"h": 1}'::jsonb, 5, 9, 'ready')$$, 'a patch');
select is((select payload from oq_lease('f')), '{"n": 8}'::jsonb, 'it is leased so');
select results_eq('select state, run_at from oq_redrive(''f'', ''{"payload": {"n": 6}}'',
    ''{"run_at": "2999-01-01T00:00:00Z"}'') i cross join lateral oq_get(i)',
    $$values ('scheduled', timestamptz '2999-01-01T00:00:00Z')$$, 'run_at');

-- Pace: the first at once, the others one by one.
select array_agg(i order by i) as paced from oq_redrive('f', '{"error": "timeout"}',
    per_second => 0.01) i \gset
select is((select array_agg(state || ' ' || coalesce(round(extract(epoch
    from run_at - (select min(run_at) from oq_jobs
        where job_id = any (:'paced') and state = 'scheduled')))::text, '-')
    order by job_id) from oq_jobs where job_id = any (:'paced')),
    '{"ready -","scheduled 0","scheduled 100"}', 'a hundred seconds apart');
select ok((select bool_and(run_at between clock_timestamp() and clock_timestamp() + interval '201 s')
    from oq_jobs where job_id = any (:'paced') and state = 'scheduled'),
    'the first of them a hundred seconds from now');
select is((select count(*) from oq_redrive('f', per_second => 1000000)), 2::bigint,
    'a million a second');

-- Lost leases begin again as well.
select oq_create_queue('l', '{"max_lost_leases": 1}') as x, oq_enqueue('l') as l \gset
select count(*) from oq_lease('l') \g /dev/null
select tap.pass_leases(), oq_reap() \g /dev/null
select is((select reason from oq_dead where job_id = :l), 'lost_lease', 'dead of a lost lease');
select is((select array_agg(i) from oq_redrive('l', '{"reason": "lost_lease"}') i),
    array[:l]::bigint[], 'redriven');
select is((select lost_leases from oq_get(:l)), 0, 'no lost leases');

-- Cancelled ones, before and during a lease: the next token is larger than the last.
select oq_enqueue('c', '"early"') as early, oq_enqueue('c', '"held"') as held \gset
select oq_cancel(:early, 'oops') as x \gset
select lease_token as t from oq_lease('c') \gset
select oq_cancel(:held, 'oops') as x \gset
select results_eq('select * from oq_redrive(''c'')', 'select 1::bigint where false',
    'not without asking for them');
select unchanged('select * from oq_redrive(''c'', ''{"state": "cancelled"}'', dry_run => true)',
    array[format('(%s)', :early), format('(%s)', :held)], 'a dry run');
select results_eq('select * from oq_redrive(''c'', ''{"state": "cancelled", "reason": "oops"}'')',
    format('values (%s), (%s)', :early, :held), 'both');
select is(oq_heartbeat(:held, :t), 'lost', 'the old lease is lost');
select results_eq(format('select payload, attempt, lease_token > %s
    from oq_lease(''c'', max_jobs => 2)', :t), $$values ('"early"'::jsonb, 1, true),
        ('"held"', 2, true)$$,
    'attempts go on, tokens rise');
select results_eq(format('select attempt, outcome from oq_attempts(%s)', :held),
    $$values (1, 'cancelled'), (2, 'leased')$$, 'the cancelled attempt is recorded');

-- One that was cancelled while it waited for a retry, and one that was cancelled dead. Their last
-- tokens are made larger than what the clock gives, as if it had gone back.
select oq_enqueue('w') as w, oq_enqueue('w') as dead \gset
select max(lease_token) as t, count(oq_nack(job_id, lease_token, 'e', job_id = :w, '1 h')) as x
    from oq_lease('w', max_jobs => 2) \gset
update oq.scheduled set token = :t + 1000000000000 where job_id = :w;
update oq.dead set token = :t + 1000000000000 where job_id = :dead;
select oq_cancel(:w), oq_cancel(:dead) \g /dev/null
select is((select count(*) from oq_redrive('w', '{"state": "cancelled"}')), 2::bigint,
    'cancelled between attempts');
select is((select array_agg(attempt || ' ' || (lease_token > :t + 1000000000000)
    order by job_id)
    from oq_lease('w', max_jobs => 2)), '{"2 true","2 true"}', 'a larger token');

-- A time to live that has passed is dropped.
select oq_enqueue('ttl', options => '{"ttl": "1 h"}') as ttl \gset
select tap.kill_job('ttl', 'e') as x \gset
select tap.pass_lives();
select is((select array_agg(i) from oq_redrive('ttl') i), array[:ttl]::bigint[],
    'a job whose time to live has passed');
select is(oq_expire(), 0::bigint, 'its timer is void');
select is((select count(*) from oq_lease('ttl')), 1::bigint, 'it runs');
select oq_enqueue('ttl2', options => '{"ttl": "1 h"}') as ttl \gset
select tap.kill_job('ttl2', 'e') as x \gset
select tap.pass_lives();
select is((select count(*) from oq_redrive('ttl2', patch => '{"run_at": "2999-01-01"}')), 1::bigint,
    'the same, to be run later');
select is(oq_expire(), 0::bigint, 'its timer is void');
select is(tap.state_of(:ttl), 'scheduled', 'it waits');

-- One that was cancelled before its time runs now, whatever its queue has.
select oq_enqueue('early', options => '{"delay": "1 h"}') as plain \gset
select oq_enqueue('linked', group_key => 'g') as x \gset
select oq_enqueue('linked', options => '{"delay": "1 h"}') as linked \gset
select oq_cancel(:plain) \gset
select oq_cancel(:linked) \gset
select oq_redrive('early', '{"state": "cancelled"}') as x \gset
select oq_redrive('linked', '{"state": "cancelled"}') as x \gset
select is(state_of(:plain), 'ready', 'cancelled before its time');
select is(state_of(:linked), 'ready', 'the same in a queue with groups');
select is((select run_at from oq_get(:linked)), null, 'the time is no more');

-- The first end counts, though its dependent came after the lease, and the tick had not looked yet.
select oq_enqueue('first') as p \gset
select job_id as id, lease_token as token from oq_lease('first') \gset
select oq_enqueue('child', options => format('{"depends_on": [%s]}', :p)::jsonb) as c \gset
select oq_nack(:id, :token, 'no', false) \gset
select is((select array_agg(i) from oq_redrive('first') i), array[:p]::bigint[], 'a parent');
select is(state_of(:c), 'cancelled', 'its child does not wait for the second end');

-- Redriven for later a job leaves its group to others, of however many groups and jobs.
select oq_create_queue('paced', '{"max_retries": 0}') \g /dev/null
select count(oq_enqueue('paced', group_key => 'g' || i)) from generate_series(1, 60) i \g /dev/null
select count(oq_enqueue('paced', group_key => 'many')) from generate_series(1, 150) \g /dev/null
create procedure kill_all() language plpgsql as $$
begin
    for i in 1..200 loop
        perform oq_nack(l.job_id, l.lease_token, 'no') from oq_lease('paced', max_jobs => 1000) l;
        exit when not found;
        commit;
    end loop;
end $$;
call kill_all();
select is((select count(*) from oq_redrive('paced', patch => '{"run_at": "2999-01-01"}')), 210::bigint, 'all of them, for later');
select oq_enqueue('paced', '"new"', group_key => 'g' || i) from generate_series(1, 60) i \g /dev/null
select is((select count(*) from oq_lease('paced', max_jobs => 1000) where payload = '"new"'), 60::bigint,
    'what is enqueued meanwhile does not wait for them');

-- Bad input: nothing comes back.
select dead('bad', '1', 'e') as x \gset
select refuses_bad_names('select oq_redrive(%L)');
select unchanged('select oq_redrive(''nowhere'')', '{}', 'an unknown queue');
select throws_ok('select oq_redrive(''bad'', ' || a || ')', 'OQ001', m, a)
  from (values ('null', 'filter%null%'), ('''[]''', 'filter%[]%'),
      ('''{"stat": "dead"}''', '%stat%'), ('''{"state": "ready"}''', '%state%ready%'),
    ('''{"state": null}''', '%state%null%'), ('''{"job_ids": null}''', '%job_ids%null%'),
    ('''{"job_ids": 1}''', '%job_ids%1%'), ('''{"job_ids": ["x"]}''', '%job_ids%x%'),
    ('''{"job_ids": [1.5]}''', '%job_ids%1.5%'), ('''{"job_ids": [99999999999999999999]}''',
    '%job_ids%9999%'), ('''{"job_ids": {"a": 1}}''', '%job_ids%'),
    ('''{"reason": 1}''', '%reason%1%'), ('''{"error": null}''', '%error%null%'),
    ('''{"error": []}''', '%error%[]%'), ('''{"since": "x"}''', '%since%x%'),
    ('''{"since": null}''', '%since%null%'), ('''{"until": {}}''', '%until%{}%'),
    ('patch => null', 'patch%null%'), ('patch => ''[]''', 'patch%[]%'),
    ('patch => ''{"x": 1}''', '%x%'), ('patch => ''{"priority": 32768}''', '%priority%32768%'),
    ('patch => ''{"run_at": "infinity"}''', '%run_at%infinity%'),
    ('patch => jsonb_build_object(''payload'', repeat(''x'', 1048575))', '%payload%1048577%'),
    ('per_second => 0', 'per_second%0%'), ('per_second => -1', 'per_second%-1%'),
    ('per_second => ''NaN''', 'per_second%NaN%'), ('per_second => 1e9', 'per_second%1000000000%'),
    ('per_second => 0.0001', 'per_second%0.0001%'), ('max_jobs => 0', 'max_jobs%0%'),
    ('max_jobs => -1', 'max_jobs%-1%'), ('max_jobs => 10001', 'max_jobs%10001%'),
    ('dry_run => null', 'dry_run%null%'), ('''{}'', ''{}'', null, 0, true', 'max_jobs%0%')) v(a, m);

select finish();
