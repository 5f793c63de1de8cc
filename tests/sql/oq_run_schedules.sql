-- oq_run_schedules: what is due runs once, what was missed as asked, and no schedule keeps another from running.
set timezone = 'UTC';
create function job_times(queue text) returns text[] language sql
    as $$ select array_agg(headers ->> 'scheduled_at' order by job_id) from oq_jobs where queue_name = queue $$;

select is(oq_run_schedules(), 0::bigint, 'nothing there');
select oq_schedule('a', '0 0 1 1 *', 'a') as x, oq_schedule('b', '0 0 1 1 *', 'b') as y \gset
select unchanged('select oq_run_schedules()', '{(0)}', 'nothing due');
update oq.schedule set due_at = clock_timestamp() where schedule_name = 'a';
select results_eq('select duty, done from oq_tick() where duty = ''schedules''', $$values ('schedules', 1)$$, 'a duty of the tick');
select results_eq('select duty, done from oq_tick() where duty = ''schedules''', $$values ('schedules', 0)$$, 'done');
select results_eq('select queue_name, state from oq_jobs', $$values ('a', 'ready')$$, 'its job can be leased at once');
select is((select count(*) from oq_lease('a')), 1::bigint, 'leased');

-- The tick sleeps until the next is due.
create procedure tick_until_idle(out ms bigint) language plpgsql as $$
begin
    for i in 1..500 loop
        select done into ms from oq_tick() where duty = 'sleep_ms';
        exit when ms > 20;
        commit;
        perform pg_sleep(0.02);
    end loop;
end $$;
call tick_until_idle(null) \gset
select ok(:ms between 100 and 1000, 'idle: a second, or until leases are looked at');
update oq.schedule set due_at = clock_timestamp() + interval '400 ms' where schedule_name = 'b';
select ok(done between 1 and 400, 'until it is due: ' || done) from oq_tick() where duty = 'sleep_ms';
select pg_sleep(0.4) \g /dev/null
select count(*) from oq_tick() \g /dev/null
select is((select runs from oq_schedules where schedule_name = 'b'), 1::bigint, 'it is, and has run');
select oq_unschedule('a'), oq_unschedule('b') \g /dev/null

-- After an outage: one run for all that were missed (the last), or none, or each.
select oq_schedule('m', '*/10 * * * * *', 'm') as x \gset
select tap.pass_schedules('1 hour') \g /dev/null
select clock_timestamp() as before \gset
select is(oq_run_schedules(), 1::bigint, 'one by default');
select clock_timestamp() as after \gset
-- The last before the moment of the run.
select is(count(*), 1::bigint, 'the last') from unnest(job_times('m')) t
 where t::timestamptz > :'before'::timestamptz - interval '10 s' and t::timestamptz <= :'after'
    and extract(second from t::timestamptz)::int % 10 = 0;
select ok(next_run_at > :'before' and next_run_at = last_run_at + interval '10 s', 'then the next') from oq_schedules;
-- A run that has come due meanwhile would stay due.
update oq.schedule set due_at = clock_timestamp() + interval '1 h';
select oq_schedule('m', '0 0 1 1 *', 'm', options => '{"missed": "skip"}') as next \gset
select tap.pass_schedules('121 seconds') \g /dev/null
select is(oq_run_schedules(), 0::bigint, 'skip: none that is two minutes late');
select results_eq('select runs, next_run_at from oq_schedules', format('values (1::bigint, %L::timestamptz)', :'next'), 'the next one');
select tap.pass_schedules('110 seconds') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'but one that is a little late');
select oq_schedule('m', 'every 10 seconds', 'all', options => '{"missed": "all"}') as x \gset
select tap.pass_schedules('995 seconds') \g /dev/null
select is((select array_agg(oq_run_schedules()) from generate_series(1, 4)), '{50,50,0,0}', 'all: fifty a call');
select results_eq('select at from unnest(job_times(''all'')) with ordinality x(at, n) order by n',
    $$select to_char(r, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as at from oq_schedules s, generate_series(s.last_run_at - interval '990 s',
    s.last_run_at, interval '10 s') r$$, 'each once, oldest first');
select results_eq('select next_run_at = last_run_at + interval ''10 s'', runs from oq_schedules', 'values (true, 102::bigint)',
    'in its rhythm');
select oq_schedule('m', 'every 1 hour', 'all') as x \gset
select tap.pass_schedules('1200 hours 30 min') \g /dev/null
select is((select sum(oq_run_schedules()) from generate_series(1, 30)), 1000::numeric, 'all: a thousand at most');
select ok(next_run_at between now() + interval '29 min' and now() + interval '30 min', 'then from now') from oq_schedules;
-- A second by second schedule that was down for ten years takes no longer.
select oq_schedule('m', '* * * * * *', 'ten', options => '{"missed": "one"}') as x \gset
select tap.pass_schedules('3650 days') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'ten years');
select ok(last_run_at > clock_timestamp() - interval '5 s', 'the last second') from oq_schedules;
-- No run after the end, though it was missed; those before it count.
select oq_schedule('m', '* * * * *', 'end', options => '{"missed": "all"}') as x \gset
update oq.schedule set end_at = date_trunc('minute', now()) - interval '3 minutes';
select tap.pass_schedules('0') \g /dev/null
update oq.schedule set due_at = end_at - interval '2 minutes';
select is(oq_run_schedules(), 3::bigint, 'up to its end');
select is((select next_run_at from oq_schedules), null, 'over');
select oq_unschedule('m') \g /dev/null
-- A restart of the clock in the past: what has run does not run again.
select oq_schedule('back', '* * * * *', 'back') as x \gset
update oq.schedule set due_at = date_trunc('minute', now()) + interval '1 h', last_run_at = date_trunc('minute', now())
    + interval '59 min';
select is(oq_run_schedules(), 0::bigint, 'the clock went back an hour: nothing until it has caught up');
select oq_unschedule('back') \g /dev/null

-- Overlap: a dead job is over, one that waits for its retry is not.
select oq_schedule('o', '0 0 1 1 *', 'o', options => '{"overlap": "skip"}') as x \gset
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'the first');
select oq_nack(job_id, lease_token, 'e', retry_after => '1 h') from oq_lease('o') \g /dev/null
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 0::bigint, 'not beside its retry');
select tap.pass_delays() \g /dev/null
select tap.kill_job('o', 'boom') as dead \gset
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'a dead one is over');
select oq_cancel(last_job_id) from oq_schedules \g /dev/null
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'a cancelled one too');
select oq_purge('o', 'ready') \g /dev/null
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'and one that was purged');
select results_eq('select runs, skipped from oq_schedules', 'values (4::bigint, 1::bigint)', 'counted');
select oq_schedule('o', '0 0 1 1 *', 'o', options => '{"overlap": "allow"}') as x \gset
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'allow: beside it');
select oq_unschedule('o') \g /dev/null

-- What is wrong with one is noted there; the others run, and it goes on at its next instant.
select oq_create_queue('full', '{"max_depth": 1}'), oq_create_queue('small') \g /dev/null
select oq_enqueue('full') \g /dev/null
select oq_schedule('1 full', '0 0 1 1 *', 'full'), oq_schedule('2 large', '0 0 1 1 *', 'small', to_jsonb(repeat('x', 5000))),
    oq_schedule('3 dropped', '0 0 1 1 *', 'gone'), oq_schedule('4 zone', '0 0 1 1 *', 'zone'), oq_schedule('5 good', '0 0 1 1 *', 'good')
    \g /dev/null
select oq_create_queue('small', '{"max_payload_bytes": 1000}') as x \gset
-- As by a drop in a transaction that did not see the schedule.
update oq.queue set dropped_at = clock_timestamp() where queue_name = 'gone';
-- As by a server with other time zones.
update oq.schedule set timezone = 'Atlantis/Poseidonis' where schedule_name = '4 zone';
select tap.pass_schedules('0') \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'one runs');
select results_eq('select schedule_name, next_run_at > now() as goes_on, runs, regexp_replace(last_error, ''.*\((.*)\)$'', ''\1''),
    last_error_at is not null from oq_schedules order by 1',
    $$values ('1 full', true, 0::bigint, 'OQ006', true), ('2 large', true, 0, 'OQ001', true), ('3 dropped', true, 0, 'OQ003', true),
    ('4 zone', null, 0, '22023', true), ('5 good', true, 1, null, false)$$, 'the others say why not');
select is((select count(*) from oq_queues where queue_name = 'gone'), 0::bigint, 'a dropped queue does not come back by itself');
select oq_enqueue('gone') as x \gset
select tap.pass_schedules('0') \g /dev/null
update oq.schedule set timezone = 'UTC';
select is(oq_run_schedules(), 3::bigint, 'it is there again');
select is((select last_error from oq_schedules where schedule_name = '3 dropped'), null, 'and all is well');
select oq_unschedule(schedule_name) from oq_schedules \g /dev/null

-- Fifty a call, each in its turn.
select oq_schedule('s' || i, '0 0 1 1 *', 'many') from generate_series(1, 120) i \g /dev/null
select tap.pass_schedules('0') \g /dev/null
select is((select array_agg(oq_run_schedules()) from generate_series(1, 4)), '{50,50,20,0}', 'fifty a call');
select is((select count(distinct headers ->> 'schedule') from oq_jobs where queue_name = 'many'), 120::bigint, 'each once');
select ok(max(low) > 0, 'the mark has moved') from oq.mark where lane = -10;
-- The clock went back below the mark: a new schedule is seen all the same.
insert into oq.mark (lane, low) values (-10, (extract(epoch from now() + interval '1 h') * 1000000)::bigint);
select oq_unschedule(schedule_name) from oq_schedules \g /dev/null
select oq_schedule('new', '* * * * * *', 'new') as x \gset
select pg_sleep(1) \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'below the mark');

begin isolation level repeatable read;
select throws_ok('select oq_run_schedules()', '25001', '%READ COMMITTED%', 'at REPEATABLE READ');
rollback;

-- A run whose unique key another job has makes none.
select oq_unschedule(schedule_name) from oq_schedules \g /dev/null
select oq_schedule('keyed', '@daily', 'keyed', '{"n": 1}', options => '{"unique_key": "k", "ttl": "1 day", "priority": 3}') \g /dev/null
select pass_schedules() \g /dev/null
select is(oq_run_schedules(), 1::bigint, 'made');
select pass_schedules() \g /dev/null
select is(oq_run_schedules(), 0::bigint, 'not made');
select results_eq($$select s.runs, s.last_job_id = j.job_id, j.priority, j.payload, j.headers ->> 'schedule', j.expires_at is not null
      from oq_schedules s join oq_jobs j on j.queue_name = 'keyed' where s.schedule_name = 'keyed'$$,
    $$values (1::bigint, true, 3, '{"n": 1}'::jsonb, 'keyed', true)$$, 'one run, and whose job it is');

select finish();
