-- oq_heartbeat: extends a lease; answers ok, cancelled or lost.

select oq_create_queue('q', '{"lease_seconds": 100}') as x, oq_enqueue('q') as job \gset
select lease_token as t from oq_lease('q', lease_seconds => 1000) \gset
select is(oq_heartbeat(:job, :t), 'ok', 'the queue''s lease_seconds');
select ok(abs(extract(epoch from lease_expires_at - clock_timestamp()) - 100) < 5,
    'from now, also if that is less than before') from oq_get(:job);
select is(oq_heartbeat(:job, :t, 5000), 'ok', 'its own');
select ok(abs(extract(epoch from lease_expires_at - clock_timestamp()) - 5000) < 5,
    '5000 s from now') from oq_get(:job);
select is(oq_heartbeat(:job, :t, s), 'ok', s || ' seconds') from unnest('{1,604800}'::int[]) s;

-- Progress: shown, and kept where none is given.
select is(oq_heartbeat(:job, :t, progress => '{"done": 5}'), 'ok', 'progress');
select is(oq_heartbeat(:job, :t), 'ok', 'none');
select is((select progress from oq_get(:job)), '{"done": 5}'::jsonb, 'it is shown');
select is(oq_heartbeat(:job, :t, progress => to_jsonb(repeat('x', 65534))), 'ok', '64 kB');
select throws_ok(format('select oq_heartbeat(%s, %s, progress => to_jsonb(repeat(''x'', 65535)))',
    :job, :t), 'OQ001', 'progress%65537%', '64 kB and a byte');

-- Bad input.
select throws_ok(format('select oq_heartbeat(%s, %s, %s)', :job, :t, s), 'OQ001',
    'lease_seconds%' || s || '%', 'lease_seconds ' || s)
  from unnest('{0,-1,604801,2147483647,-2147483648}'::text[]) s;

-- Lost: another token, an unknown job, one that is done, one that somebody else has; nothing
-- changed.
select unchanged(format('select oq_heartbeat(%s, %s)', j, t), '{(lost)}',
    format('job %s, token %s', j, t))
  from (values (:'job', (:t + 1)::text), (:'job', (-:t)::text), (:'job', '0'), (:'job', 'null'),
      ('null', :'t'), ('null', 'null'), ('0', '0'),
    ('-9223372036854775808', '9223372036854775807')) v(j, t);
select tap.pass_leases();
select is(oq_heartbeat(:job, :t), 'ok', 'expired, and not taken back');
select is(oq_reap(), 0::bigint, 'so it lives on');
select tap.pass_leases();
select is(oq_reap(), 1::bigint, 'expired, and taken back');
select unchanged(format('select oq_heartbeat(%s, %s)', :job, :t), '{(lost)}', 'is lost');
select lease_token as t2 from oq_lease('q') \gset
select unchanged(format('select oq_heartbeat(%s, %s)', :job, :t), '{(lost)}', 'somebody else''s');
select is((select progress from oq_get(:job)), null, 'a new lease has no progress yet');
select oq_ack(:job, :t2) as x \gset
select unchanged(format('select oq_heartbeat(%s, %s)', :job, :t2), '{(lost)}', 'done');

-- A change of the queue's lease_seconds holds from the next heartbeat on.
select oq_enqueue('q') as j \gset
select lease_token as t from oq_lease('q') \gset
select oq_create_queue('q', '{"lease_seconds": 2000}') as x \gset
select oq_heartbeat(:j, :t) as x \gset
select ok(abs(extract(epoch from lease_expires_at - clock_timestamp()) - 2000) < 5, 'changed')
    from oq_get(:j);

select finish();
