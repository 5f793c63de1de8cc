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
select is_empty('select from oq.queue', 'no queue is made: a name that is wrong would be one for good');
select ok(oq_enqueue('q') > 0, 'one that is made later');
select is((select q.queue_id & 2147483647 from oq.queue q), (
    select l.objid::bigint from pg_locks l where l.locktype = 'advisory' and l.pid = pg_backend_pid()
       and l.objid::bigint = hashtextextended('q', 0) & 2147483647), 'is the one that the mark is of');

select is(oq_unlisten('q')::text, '', 'unlisten');
select is((select count(*) from pg_listening_channels() c where c = 'oq:q'), 0::bigint,
    'no channel');
select is(sleepers(), 2::bigint, 'no mark');
select is(oq_unlisten('q')::text, '', 'unlisten twice');
select is(oq_unlisten('nowhere')::text, '', 'unlisten an unknown queue');
select is(sleepers(), 2::bigint, 'the others stay');
select is_empty('select from oq_queues where queue_name = ''nowhere''', 'unlisten makes no queue');
select oq_create_queue('gone') as x, oq_drop_queue('gone') as y \gset
select oq_listen('gone') as x \gset
select is(sleepers(), 3::bigint, 'a queue that was dropped');
select is_empty('select from oq_queues where queue_name = ''gone''', 'stays so');
select oq_unlisten('gone') as x \gset
select oq_unlisten(repeat('n', 57)), oq_unlisten('a/b:c.d-E') \g /dev/null
select is(sleepers(), 0::bigint, 'awake');
select is_empty('select pg_listening_channels()', 'and not listening');

-- A rollback leaves the mark as it is, and takes LISTEN and UNLISTEN back: as their comments say.
begin;
select oq_listen('q') \g /dev/null
rollback;
select is(sleepers() || ' ' || (select count(*) from pg_listening_channels()), '1 0', 'a mark, and no channel');
select oq_listen('q') \g /dev/null
begin;
select oq_unlisten('q') \g /dev/null
rollback;
select is(sleepers() || ' ' || (select count(*) from pg_listening_channels()), '0 1', 'a channel, and no mark');
select oq_unlisten('q') \g /dev/null
select is((select count(*) from unnest('{oq_listen,oq_unlisten}'::regproc[]) p
    where obj_description(p, 'pg_proc') ~ 'rollback does not take[^.]*back'), 2::bigint, 'said of both');

select refuses_bad_names('select oq_listen(%L)');
select refuses_bad_names('select oq_unlisten(%L)');
select is(sleepers(), 0::bigint, 'refused, and no mark left');

select finish();
