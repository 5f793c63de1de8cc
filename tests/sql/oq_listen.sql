-- oq_listen, oq_unlisten: wake-ups for this session.

create function sleepers() returns bigint language sql as $$
    select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
        and objsubid = 2 and mode = 'ShareLock' $$;
select is(oq_listen('q')::text, '', 'listen');
select results_eq('select pg_listening_channels()', $$values ('oq:q')$$, 'the channel');
select is(sleepers(), 1::bigint, 'the sleeper''s mark');
select is(oq_listen('q')::text, '', 'twice');
select is(sleepers(), 1::bigint, 'is held once');
select is(oq_listen(repeat('n', 57))::text, '', 'the longest name');
select ok('oq:' || repeat('n', 57) in (select pg_listening_channels()), 'is not cut off');
select is(oq_listen('a/b:c.d-E')::text, '', 'an odd name');
select is(sleepers(), 3::bigint, 'three queues');
select is((select count(*) from oq_queues), 3::bigint, 'made at first use');

select is(oq_unlisten('q')::text, '', 'unlisten');
select is((select count(*) from pg_listening_channels() c where c = 'oq:q'), 0::bigint,
    'no channel');
select is(sleepers(), 2::bigint, 'no mark');
select is(oq_unlisten('q')::text, '', 'unlisten twice');
select is(oq_unlisten('nowhere')::text, '', 'unlisten an unknown queue');
select is(sleepers(), 2::bigint, 'the others stay');
select is_empty('select from oq_queues where queue_name = ''nowhere''', 'unlisten makes no queue');
select oq_unlisten(repeat('n', 57)), oq_unlisten('a/b:c.d-E') \g /dev/null
select is(sleepers(), 0::bigint, 'awake');
select is_empty('select pg_listening_channels()', 'and not listening');

select refuses_bad_names('select oq_listen(%L)');
select refuses_bad_names('select oq_unlisten(%L)');
select is(sleepers(), 0::bigint, 'refused, and no mark left');

select finish();
