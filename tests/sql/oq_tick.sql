-- oq_tick, oq_advance, oq_rotate, oq_compact, oq_wake, oq_lead, oq_idle: the duties.

-- A tick does each once and says when the next is due.
select is((select array_agg(duty) from oq_tick()),
    '{advance,promote,reap,expire,schedules,links,groups,rotate,compact,wake,sleep_ms}', 'every duty, then sleep_ms');
select oq_enqueue('q', run_at => now() + interval '1 h') as a, oq_enqueue('q') as b,
    oq_enqueue('q', options => '{"ttl": "1 h"}') as c \gset
select count(*) from oq_lease('q') \g /dev/null
select tap.pass_leases(), tap.pass_delays(), tap.pass_lives() \g /dev/null
select results_eq('select duty, done from oq_tick() where duty in (''promote'', ''reap'',
    ''expire'')', $$values ('promote', 1), ('reap', 1), ('expire', 1)$$, 'work is done');
select is((select array_agg(state order by job_id) from oq_jobs), '{ready,ready,expired}',
    'and seen');
select ok(done between 1 and 1000, 'sleep_ms ' || done) from oq_tick() where duty = 'sleep_ms';
select oq_purge('q', 'ready') \g /dev/null
-- Each in a transaction of its own, until nothing moves.
create procedure tick_until_idle(out ms bigint) language plpgsql as $$
begin
    for i in 1..500 loop
        select done into ms from oq_tick() where duty = 'sleep_ms';
        exit when ms = 1000;
        commit;
        perform pg_sleep(0.02);
    end loop;
end $$;
call tick_until_idle(null) \gset
select is(:ms, 1000, 'idle: a second');
select oq_enqueue('q', run_at => clock_timestamp() + interval '400 ms') as x \gset
select count(*) from oq_tick() \g /dev/null
select ok(done between 1 and 400, 'until the next is due: ' || done) from oq_tick()
    where duty = 'sleep_ms';
-- And when the rate of a queue with jobs has a slot again, since workers may be asleep there.
select oq_limit('rate', rate => 1, per => '1 hour') from oq_create_queue('rate') \g /dev/null
select oq_enqueue('rate') from generate_series(1, 2) \g /dev/null
select oq_ack(job_id, lease_token) from oq_lease('rate') \g /dev/null
call tick_until_idle(null) \gset
update oq.limit_slot set taken_at = clock_timestamp() - interval '1 hour' + interval '900 ms';
select ok(done between 1 and 900, 'until the rate goes on: ' || done) from oq_tick() where duty = 'sleep_ms';
select oq_purge('rate', 'ready') \g /dev/null
-- rotate and compact have a row in the first tick of a second only.
select ok(count(*) in (9, 11), 'max_rows 100000') from oq_tick(100000);
begin isolation level repeatable read;
select throws_ok('select ' || f || '()', '25001', '%READ COMMITTED%', f || ' at REPEATABLE READ')
    from unnest('{oq_tick,oq_advance,oq_rotate,oq_compact}'::text[]) f;
rollback;
-- Which is READ COMMITTED here.
begin isolation level read uncommitted;
select ok(count(*) > 7, 'READ UNCOMMITTED') from oq_tick();
rollback;

-- A duty that fails keeps the others from nothing, and says so in a warning, which is not printed
-- here: the runner would take it for a failure.
select oq_purge('q', 'scheduled'), oq_purge('q', 'ready') \g /dev/null
select oq_enqueue('late', run_at => now() + interval '1 h'), oq_enqueue('late2') \g /dev/null
select count(*) from oq_lease('late2') \g /dev/null
select tap.pass_delays(), tap.pass_leases() \g /dev/null
set client_min_messages = error;
begin;
alter function oq.promote_due rename to promote_gone;
select results_eq('select duty, done from oq_tick() where duty in (''promote'', ''reap'')',
    $$values ('promote', 0), ('reap', 1)$$, 'promote fails, reap works');
rollback;
reset client_min_messages;
-- What a look found is looked for again soon.
select pg_sleep(0.03) \g /dev/null
select results_eq('select duty, done from oq_tick() where duty in (''promote'', ''reap'')',
    $$values ('promote', 1), ('reap', 1)$$, 'both work');
-- It is tried again after 20 ms, 40, 80 and so on: a disk that is full is not filled with warnings.
create procedure tick_for(within interval, out ticks int, out tried int) language plpgsql as $$
declare
    v_end timestamptz := clock_timestamp() + within;
    v_row record;
begin
    ticks := 0;
    tried := 0;
    while clock_timestamp() < v_end loop
        for v_row in select duty from oq_tick() loop
            ticks := ticks + (v_row.duty = 'wake')::int;
            tried := tried + (v_row.duty = 'promote')::int;
        end loop;
        commit;
        perform pg_sleep(0.002);
    end loop;
end $$;
set client_min_messages = error;
alter function oq.promote_due rename to promote_gone;
select count(*) from oq_tick() \g /dev/null
call tick_for('600 ms', null, null) \gset
select ok(:tried between 1 and 5 and :ticks > :tried, format('%s times in %s ticks', :tried, :ticks));
alter function oq.promote_gone rename to promote_due;
reset client_min_messages;
call tick_for('700 ms', null, null) \gset
select ok(:tried > 0, 'and again when it can');

-- oq_advance raises the marks: leases start behind what is gone.
select count(*) from oq_enqueue_bulk('m', array_fill(jsonb '1', '{500}')) \g /dev/null
select array_agg(job_id) as ids, array_agg(lease_token) as tokens
    from oq_lease('m', max_jobs => 500) \gset
select count(*) from oq_ack_many(:'ids', :'tokens') \g /dev/null
select oq_advance() \g /dev/null
select oq_advance() \g /dev/null
select ok(max(low) > (select max(i) from unnest(:'ids'::bigint[]) i), 'the mark is behind the last')
    from oq.mark where lane = (select (queue_id << 16) + 32767 from oq.queue
        where queue_name = 'm');
select ok(oq_advance() >= 0 and oq_compact() = 0, 'any time, and nothing to compact');

-- oq_rotate: what has finished goes after its retention, what has not stays.
select oq_create_queue(q, '{"retention": "1 hour"}')
    from (select 'ret' union all select queue_name from oq_queues) n(q) \g /dev/null
-- One that is dropped, with its retention of a day, has no say.
select oq_create_queue('was'), oq_drop_queue('was') \g /dev/null
select oq_enqueue('ret', '"done"') as done \gset
select oq_ack(job_id, lease_token, '"r"') from oq_lease('ret') \g /dev/null
select oq_enqueue('ret', '"waits"', run_at => now() + interval '1 h') as waits,
    oq_enqueue('ret', '"dead"') as dead \gset
select tap.kill_job('ret', 'boom') as x \gset
select oq_enqueue('ret', '"failed"') as failed \gset
select oq_nack(job_id, lease_token, 'once', retry_after => '0') from oq_lease('ret') \g /dev/null
create procedure rotate_all() language plpgsql as $$
declare v_stage text;
begin
    for i in 1..40 loop
        update oq.generation_state set try_after = null;
        perform oq_rotate();
        commit;
    end loop;
end $$;
call rotate_all();
select is((select array_agg(state order by job_id) from oq_jobs where queue_name = 'ret'),
    '{completed,scheduled,dead,ready}', 'nothing goes early');
update oq.generation_state set opened_at = opened_at - interval '2 hours'
    where opened_at is not null;
call rotate_all();
select is((select result from oq_result(:done)), '"r"'::jsonb,
    'a closed generation can be read for the retention');
update oq.generation_state set closed_at = closed_at - interval '2 hours'
    where closed_at is not null;
update oq.finished set finished_at = finished_at - interval '2 hours';
call rotate_all();
select is_empty(format('select from oq_get(%s)', :done), 'then it is gone');
select is_empty(format('select from oq.job where job_id = %1$s union all select from oq.finished where job_id = %1$s', :done),
    'with its rows');
select is((select array_agg(payload #>> '{}' || ' ' || state order by job_id) from oq_jobs
    where queue_name = 'ret'), '{"waits scheduled","dead dead","failed ready"}',
        'what has not finished stays');
select results_eq(format('select error from oq_attempts(%s) union all select error
    from oq_attempts(%s)', :dead, :failed), $$values ('boom'), ('once')$$, 'with its attempts');
select is((select payload from oq_lease('ret')), '"failed"'::jsonb, 'and can be leased');
select is((select count(*) from oq_redrive('ret')), 1::bigint, 'and redriven');
select throws_ok('select oq_rotate(' || n || ')', 'OQ001', 'max_rows%' || n || '%',
    'max_rows ' || n) from unnest('{0,-1,1000001}'::text[]) n;

-- oq_wake: only queues with ready jobs and sleepers.
select is(oq_wake(), 0::bigint, 'nobody sleeps');
select oq_listen('w'), oq_listen('w2') \g /dev/null
select is(oq_wake(), 0::bigint, 'nothing is ready');
select oq_enqueue('w') as x \gset
select is(oq_wake(), 1::bigint, 'one queue');
select oq_enqueue('w2'), oq_pause('w2') \g /dev/null
select is(oq_wake(), 1::bigint, 'a paused one is not woken');
select oq_unlisten('w'), oq_unlisten('w2') \g /dev/null
select is(oq_wake(), 0::bigint, 'nobody sleeps any more');

-- oq_idle: nothing has come due since this session's last tick.
select from oq_tick() \g /dev/null
select oq_enqueue('w') as x \gset
select is(oq_idle(), 50::bigint, 'an enqueue needs no tick');
select oq_cancel(:x) \g /dev/null
select oq_enqueue('w', options => '{"delay": "5 ms"}') as x \gset
select pg_sleep(0.01) \g /dev/null
select is(oq_idle(), 0::bigint, 'what has come due does');
select from oq_tick() \g /dev/null
select is(oq_idle(), 50::bigint, 'the tick has seen it');
select is(oq_idle(), 50::bigint, 'asking changes nothing');
select set_config('oq.moved', ((extract(epoch from clock_timestamp()) - 60) * 1000)::bigint::text, false) \g /dev/null
select is(oq_idle(), 250::bigint, 'nothing has moved for long');
select oq_cancel(:x) \g /dev/null
select set_config('oq.ticked', '', false) \g /dev/null
select is(oq_idle(), 0::bigint, 'a session that has not ticked');

-- Groups whose jobs come in a session that loads data without triggers.
select is_empty($$select t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
     where c.relnamespace = 'oq'::regnamespace and not t.tgisinternal and t.tgenabled <> 'A'$$, 'every trigger fires always');
set session_replication_role = replica;
select oq_enqueue('loaded', group_key => 'g'), oq_enqueue('loaded', group_key => 'h') \g /dev/null
reset session_replication_role;
select is((select count(*) from oq_jobs where queue_name = 'loaded' and state = 'ready'), 2::bigint, 'both are let in');
-- Groups that nobody let in are found, each once however often the sweep comes by before the tick does them.
alter table oq.waiting disable trigger waiting_line_up;
select count(oq_enqueue('forgotten', group_key => 'g' || g)) from generate_series(1, 500) g \g /dev/null
alter table oq.waiting enable always trigger waiting_line_up;
select is((select law || ' ' || violations from oq_audit() where violations > 0), 'group_stuck 500', 'they are stuck');
select ok(oq.sweep_groups(1000) >= 500, 'they are found');
select oq.sweep_groups(1000), oq.sweep_groups(1000), oq.sweep_groups(1000) \g /dev/null
select is((select count(*) from oq.todo), 500::bigint, 'a todo each');
select count(*) from oq_tick() \g /dev/null
select count(*) from oq_tick() \g /dev/null
select count(*) from oq_tick() \g /dev/null
select is((select count(*) from oq_jobs where queue_name = 'forgotten' and state = 'ready'), 500::bigint, 'three ticks let them in');

-- oq_lead: one session, for as long as it lives.
select is(oq_lead(), true, 'the first');
select is(oq_lead(), true, 'again');
select is((select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
    1::bigint, 'one lock');

select finish();
