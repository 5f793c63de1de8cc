-- oq_adopt: a restored copy is stopped until somebody says that it is to work.

select unchanged('select oq_adopt()', '{(f)}', 'this is the cluster');
select oq_enqueue('q') as job \gset
select lease_token as t from oq_lease('q') \gset
select oq_enqueue('q') as x \gset
update oq.instance set system_identifier = system_identifier + 1;
-- A new session, that has not looked yet.
\c -
set search_path = public, tap;
select throws_ok('select ' || f, '55000', '%restored%', f)
  from unnest(array['oq_lease(''q'')', 'oq_lease(''q'', max_jobs => 5)', 'oq_next(''q'')',
      'oq_tick()', 'oq_promote()', 'oq_reap()', 'oq_expire()', 'oq_advance()',
    'oq_rotate()', 'oq_compact()']) f;
select ok(oq_enqueue('q') > 0, 'enqueue goes on');
select is(oq_ack(:job, :t), true, 'so does an ack');
select is(oq_adopt(), true, 'adopted');
select is((select count(*) from oq_lease('q', max_jobs => 5)), 2::bigint, 'leases work');
select is((select count(*) from oq_tick() where duty <> 'sleep_ms'), 8::bigint, 'duties work');
select is(oq_adopt(), false, 'nothing to adopt');

select finish();
