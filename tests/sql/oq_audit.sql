-- oq_audit, oq_repair, oq_version: what is wrong, and how it is put right.

select ok(oq_version() ~ '^[0-9]+\.[0-9]+\.[0-9]+$', 'oq_version is MAJOR.MINOR.PATCH');
select is((select array_agg(law order by law) from oq_audit()),
    '{attempts_recorded,below_mark,child_stuck,group_slot,group_stuck,job_twice,job_without_place,lane_of_job,
    lane_without_mark,one_place,parent_over,place_without_job,queue_without_row,schedule_below_mark,token_rises,ttl_timer,
    unique_key}', 'the laws');
select is((select sum(violations) from oq_audit()), 0::numeric, 'an empty queue breaks none');
select array_agg(oq_enqueue('q', priority => i, options => '{"ttl": "1 h"}')) as ids
    from generate_series(1, 9) i \gset
select oq_nack(job_id, lease_token, retry_after => '1 h') from oq_lease('q', max_jobs => 2)
    \g /dev/null
select oq_nack(job_id, lease_token, retry => false) from oq_lease('q') \g /dev/null
select oq_ack(job_id, lease_token) from oq_lease('q') \g /dev/null
select is((select count(*) from oq_lease('q')), 1::bigint, 'one of each state');
select is((select sum(violations) from oq_audit()), 0::numeric, 'none is broken');

-- Each law is seen to be broken, alone where it can be.
create procedure breaks(law text, statement text, also text[] default '{}') language plpgsql as $$
declare v_broken text[]; v_sample text;
begin
    execute statement;
    select array_agg(a.law order by a.law),
        max(a.sample) filter (where a.law = breaks.law) into v_broken, v_sample
        from public.oq_audit() a where violations > 0;
    rollback;
    perform set_config('test.result',
        tap.ok(v_broken @> array[breaks.law] and v_broken <@ (also || breaks.law) and v_sample
        <> '',
        'breaks ' || breaks.law) || coalesce(E'\n#   ' || v_broken::text, ''), false);
end $$;
call breaks('one_place', 'insert into oq.dead (job_id, queue_id, died_at, token, attempt, failed,
    lost, reason)
    select job_id, lane >> 16, now(), 0, 0, 0, 0, ''no_retry'' from oq.ready limit 1');
select current_setting('test.result');
call breaks('place_without_job', 'delete from oq.job where job_id in (select job_id
    from oq.scheduled)');
select current_setting('test.result');
call breaks('job_without_place', 'delete from oq.ready');
select current_setting('test.result');
call breaks('job_twice', 'insert into oq.job (gen, priority, max_retries, job_id,
    queue_id, created_at, run_at, expires_at, payload, headers, retry, tags)
    select (gen + 1) % 3, priority, max_retries, job_id,
    queue_id, created_at, run_at, expires_at, payload,
    headers, retry, tags from oq.job limit 1');
select current_setting('test.result');
call breaks('lane_of_job', 'update oq.scheduled set lane = lane + 1', '{lane_without_mark}');
select current_setting('test.result');
call breaks('lane_without_mark', 'delete from oq.mark where lane = (select lane from oq.leased)');
select current_setting('test.result');
call breaks('queue_without_row', 'delete from oq.queue');
select current_setting('test.result');
call breaks('below_mark', 'insert into oq.mark (lane, low) select lane, position + 1
    from oq.ready; delete from oq.epoch_open');
select current_setting('test.result');
call breaks('token_rises', 'update oq.attempt set token = token + 100000000');
select current_setting('test.result');
call breaks('attempts_recorded', 'delete from oq.attempt');
select current_setting('test.result');
call breaks('ttl_timer', 'delete from oq.ttl');
select current_setting('test.result');
call breaks('schedule_below_mark', 'select oq_schedule(''s'', ''@daily'', ''q'');
    update oq.schedule set due_at = now(); insert into oq.mark (lane, low)
    select -10, (extract(epoch from now()) * 1000000)::bigint + 1');
select current_setting('test.result');
select oq_enqueue('g', group_key => 'k') from generate_series(1, 2) \g /dev/null
call breaks('group_slot', 'delete from oq.group_slot', '{group_stuck}');
select current_setting('test.result');
call breaks('group_stuck', 'update oq.group_slot set job_id = 0', '{group_slot}');
select current_setting('test.result');
call breaks('child_stuck', 'select oq_batch(); delete from oq.dependency where parent_id = 0');
select current_setting('test.result');
call breaks('child_stuck', 'select oq_enqueue(''c'', options => jsonb_build_object(''depends_on'', array[oq_enqueue(''p'')]));
    delete from oq.dependency');
select current_setting('test.result');
call breaks('parent_over', 'select oq_enqueue(''c'', options => jsonb_build_object(''depends_on'', array[oq_enqueue(''p'')]));
    select oq_ack(job_id, lease_token) from oq_lease(''p'');
    select oq_enqueue(''c'', options => jsonb_build_object(''depends_on'', array[oq_enqueue(''p'')]));
    insert into oq.dependency select f.job_id, w.job_id from oq.finished f, oq.waiting w
     where f.linked and w.holder = ''parent''; delete from oq.todo');
select current_setting('test.result');
call breaks('group_stuck', 'update oq.group_slot set low = 1000000');
select current_setting('test.result');
call breaks('one_place', 'insert into oq.waiting (job_id, lane, holder, position)
    select job_id, lane, ''parent'', 0 from oq.scheduled limit 1', '{attempts_recorded,child_stuck,ttl_timer}');
select current_setting('test.result');
select oq_enqueue('g', unique_key => 'k') \g /dev/null
call breaks('unique_key', 'delete from oq.unique_key');
select current_setting('test.result');
call breaks('unique_key', 'update oq.job set unique_key = ''another'' where unique_key = ''k''');
select current_setting('test.result');
select oq_drop_queue('g', force => true) \g /dev/null
select is((select sum(violations) from oq_audit()), 0::numeric, 'all rolled back');

-- The numbers are for every observer, the ids for who may observe the queue.
begin;
create role tap_looker login in role oq_observer;
select oq_create_queue('secret', '{"restricted": true}') as x, oq_enqueue('secret') as s, oq_enqueue('seen') as o \gset
select oq_schedule('secret plan', '@daily', 'secret'), oq_schedule('open plan', '@daily', 'seen') \g /dev/null
delete from oq.ready where job_id in (:s, :o);
update oq.schedule set due_at = now();
insert into oq.mark (lane, low) select -10, (extract(epoch from now()) * 1000000)::bigint + 1;
insert into oq.waiting (job_id, lane, holder, position) select job_id, (queue_id << 16) + 5, 'parent', 0 from oq.job
    where job_id in (:s, :o);
select lane from oq.waiting where job_id = :o \gset
create function pg_temp.samples() returns text language sql as $$
    select string_agg(concat_ws(' ', a.law, a.violations, a.sample), '; ' order by a.law) from public.oq_audit() a
     where a.law in ('lane_of_job', 'child_stuck', 'lane_without_mark', 'schedule_below_mark') $$;
select is(pg_temp.samples(), format('child_stuck 2 %s, %s; lane_of_job 2 %1$s, %2$s; lane_without_mark 2 %3$s;'
    ' schedule_below_mark 2 open plan, secret plan', :s, :o, (
    select string_agg(w.lane::text, ', ' order by w.lane) from oq.waiting w)), 'an operator is shown all');
set local session authorization tap_looker;
select is(pg_temp.samples(), format('child_stuck 2 %s; lane_of_job 2 %1$s; lane_without_mark 2 %2$s;'
    ' schedule_below_mark 2 open plan', :o, :lane), 'an observer what he may observe');
reset session authorization;
select oq_grant('secret', 'tap_looker', '{observe}') as x \gset
set local session authorization tap_looker;
select ok(pg_temp.samples() like format('child_stuck 2 %s, %s;%%secret plan', :s, :o), 'granted: all');
rollback;

-- oq_repair: nothing to do; then what a fault from outside did.
select unchanged('select * from oq_repair()', '{"(job_without_place,0)","(lane_without_mark,0)","(ttl_timer,0)","(group_slot,0)"}',
    'nothing to repair');
select throws_ok('select oq_repair(' || n || ')', 'OQ001', 'max_rows%' || n || '%',
    'max_rows ' || n) from unnest('{0,-1,100001}'::text[]) n;
select throws_ok('select oq_repair(null)', 'OQ001', 'max_rows%null%', 'max_rows null');
select count(*) as lost from oq.ready \gset
-- Its jobs are older than every open epoch, as they are when a dump is restored.
select oq_enqueue('other') as x, oq_advance() as y \gset
select oq_advance(), oq_enqueue('other') from generate_series(1, 3) \g /dev/null
delete from oq.ready where job_id = any (:'ids');
delete from oq.scheduled;
delete from oq.mark where lane = (select lane from oq.leased);
select oq_advance() as x \gset
select oq_advance() as x \gset
select results_eq('select * from oq_repair(2)', $$values ('job_without_place', 2),
    ('lane_without_mark', 1), ('ttl_timer', 0), ('group_slot', 0)$$, 'two at a time');
select is((select done from oq_repair() where repair = 'job_without_place'), :lost::bigint,
    'the rest');
select is((select sum(violations) from oq_audit()), 0::numeric, 'all is well again');
select is((select array_agg(failures order by failures desc) from oq_jobs
    where attempt > 0 and state = 'ready'), '{1,1}', 'with the failures they had');
begin isolation level repeatable read;
select throws_ok('select oq_repair()', '25001', '%READ COMMITTED%', 'not with an old snapshot');
rollback;

-- A dump from the middle of a compaction of ttl or group_slot: timers and slots are made again, in free slots first.
select oq_create_queue('m'), oq_limit('m', 'two', max_running => 2) \g /dev/null
select oq_enqueue('m', options => '{"ttl": "1 h"}', group_key => k, run_at => r) from unnest('{one,two,two,two,later}'::text[]) k,
    lateral (select case when k = 'later' then now() + interval '1 h' end) x(r) \g /dev/null
select count(*) from oq_lease('m', max_jobs => 2) \g /dev/null
select count(*) as timers from oq.ttl \gset
delete from oq.ttl;
delete from oq.group_slot;
select results_eq('select law, violations > 0 from oq_audit() where violations > 0 and law <> ''group_stuck'' order by 1',
    $$values ('group_slot', true), ('ttl_timer', true)$$, 'timers and slots are gone');
select ok(count(*) filter (where repair = 'group_slot' and done = 3) = 1 and
    count(*) filter (where repair = 'ttl_timer' and done between 3 and :timers) = 1, 'made again') from oq_repair();
select is((select sum(violations) from oq_audit()), 0::numeric, 'and all is well');
select results_eq('select slot, count(*) from oq.group_slot group by 1 order by 1', 'values (0, 2::bigint), (1, 1)', 'two slots of one group');
select is((select sum(done) from oq_repair()), 0::numeric, 'there is nothing left');
select oq_drop_queue('m', force => true) \g /dev/null

-- A child without a place waits for the parents that it has left, ended or not, and no other becomes ready.
select oq_enqueue('p') as p, oq_enqueue('p') as r \gset
select oq_enqueue('c', options => jsonb_build_object('depends_on', array[:p])) as c1,
    oq_enqueue('c', options => jsonb_build_object('depends_on', array[:r])) as c2,
    oq_enqueue('c', options => jsonb_build_object('depends_on', array[:r])) as c3 \gset
delete from oq.waiting where job_id in (:c1, :c2);
select oq_ack(l.job_id, l.lease_token) from oq_lease('p', max_jobs => 2) l where l.job_id = :p \g /dev/null
select oq_advance(), oq_enqueue('other') from generate_series(1, 3) \g /dev/null
select oq_advance() as x \gset
insert into oq.dependency values (:p, :c1);
select is((select done from oq_repair() where repair = 'job_without_place'), 2::bigint, 'two children are put back');
select is(array[state_of(:c1), state_of(:c2), state_of(:c3)], '{waiting,waiting,waiting}', 'where they wait');
select is((select sum(violations) from oq_audit()), 0::numeric, 'and all is well');
select count(*) as x from oq_tick() \gset
select is(array[state_of(:c1), state_of(:c2)], '{ready,waiting}', 'the one whose parent was over may run');
select oq_ack(l.job_id, l.token) from oq.leased l where l.job_id = :r \g /dev/null
select is(state_of(:c2), 'ready', 'the other when its parent is');

select finish();
