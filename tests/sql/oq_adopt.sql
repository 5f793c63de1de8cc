-- oq_adopt: a restored copy is stopped until somebody says that it is to work.

select unchanged('select oq_adopt()', '{(f)}', 'this is the cluster');
select oq_enqueue('q') as job \gset
select lease_token as t from oq_lease('q') \gset
select oq_enqueue('q') as x \gset
-- Roles have other ids in another cluster: one schedule's owner is there, the other's is not.
select oq_schedule('mine', '@yearly', 'later') as x, oq_schedule('lost', '@yearly', 'later') as y \gset
update oq.schedule set owner_id = 4000000000 - schedule_id, due_at = clock_timestamp();
update oq.schedule set owner_name = 'nobody here' where schedule_name = 'lost';
update oq.instance set system_identifier = system_identifier + 1;
-- A new session, that has not looked yet.
\c -
set search_path = public, tap;
select throws_ok('select ' || f, '55000', '%another cluster%', f)
  from unnest(array['oq_lease(''q'')', 'oq_lease(''q'', max_jobs => 5)', 'oq_next(''q'')',
      'oq_tick()', 'oq_promote()', 'oq_reap()', 'oq_expire()', 'oq_advance()',
    'oq_rotate()', 'oq_compact()', 'oq_run_schedules()']) f;
select ok(oq_enqueue('q') > 0, 'enqueue goes on');
select is(oq_ack(:job, :t), true, 'so does an ack');
select is(oq_adopt(), true, 'adopted');
select is((select count(*) from oq_lease('q', max_jobs => 5)), 2::bigint, 'leases work');
select is((select count(*) from oq_tick() where duty <> 'sleep_ms'), 10::bigint, 'duties work');
select is(oq_adopt(), false, 'nothing to adopt');
select results_eq('select schedule_name, owner, runs from oq_schedules order by 1',
    format('values (''lost'', ''nobody here''::name, 0::bigint), (''mine'', %L, 1)', session_user),
    'a schedule finds its owner again by name, or does not run');
select ok(last_error like '%nobody here%may not produce%', 'and says so: ' || last_error) from oq_schedules
    where schedule_name = 'lost';

select finish();
