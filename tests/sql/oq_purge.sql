-- oq_purge: deletes jobs of one state for good.

create procedure fill(queue_name text) language plpgsql as $$
begin
    for i in 1..3 loop
        perform oq_enqueue(fill.queue_name, options => '{"ttl": "1 h"}');
        perform oq_ack(l.job_id, l.lease_token) from oq_lease(fill.queue_name) l;
        perform oq_enqueue(fill.queue_name);
        perform tap.kill_job(fill.queue_name, 'e');
        perform oq_cancel(oq_enqueue(fill.queue_name));
        perform oq_enqueue(fill.queue_name, options => '{"ttl": "1 us"}'), pg_sleep(0.001),
            oq_expire();
    end loop;
    perform oq_enqueue(fill.queue_name) from generate_series(1, 3);
    perform oq_nack(l.job_id, l.lease_token, retry_after => '0') from oq_lease(fill.queue_name) l;
    perform oq_enqueue(fill.queue_name, run_at => now() + interval '1 h')
        from generate_series(1, 3);
end $$;
call fill('q');
call fill('other');
create function counts(queue_name text) returns text language sql as $$
    select string_agg(state || ' ' || n, ', ' order by state)
        from (select j.state, count(*) as n from oq_jobs j
            where j.queue_name = counts.queue_name group by 1) x $$;
select is(counts('q'), 'cancelled 3, completed 3, dead 3, expired 3, ready 3, scheduled 3',
    'three of each');

select unchanged(format('select oq_purge(''q'', %L, ''1 hour'')', s), '{(0)}',
    'none of ' || s || ' is an hour old')
  from unnest('{ready,scheduled,dead,completed,cancelled,expired}'::text[]) s;
select is(oq_purge('q', s, max_jobs => 1), 1::bigint, 'one of ' || s)
    from unnest('{ready,scheduled,dead,completed,cancelled,expired}'::text[]) s;
select is(counts('q'), 'cancelled 2, completed 2, dead 2, expired 2, ready 2, scheduled 2',
    'two of each');
select is((select count(*) from oq_lease('q')), 1::bigint, 'one is leased');
select is(oq_purge('q', s), case s when 'ready' then 1 else 2 end::bigint, 'all of ' || s)
    from unnest('{ready,scheduled,dead,completed,cancelled,expired}'::text[]) s;
select is(counts('q'), 'leased 1', 'only the leased one is left');
select is(counts('other'), 'cancelled 3, completed 3, dead 3, expired 3, ready 3, scheduled 3',
    'another queue is not touched');
select is((select count(*) from oq.job where job_id not in (select job_id from oq_jobs)), 0::bigint,
    'no rows are left behind');
select is((select count(*) from oq.attempt where job_id not in (select job_id from oq_jobs)),
    0::bigint, 'nor attempts');
select unchanged('select oq_purge(''q'', ''completed'')', '{(0)}', 'nothing left');

-- older_than.
update oq.dead set died_at = died_at - interval '2 days' where job_id = (select min(job_id)
    from oq_dead where queue_name = 'other');
update oq.finished set finished_at = finished_at - interval '2 days'
    where job_id = (select min(job_id) from oq_jobs
        where queue_name = 'other' and state = 'cancelled');
update oq.queue set created_at = created_at - interval '3 days';
update oq.job set created_at = created_at - interval '2 days'
    where job_id = (select min(job_id) from oq_jobs
        where queue_name = 'other' and state = 'scheduled');
select is(oq_purge('other', s, '1 day'), 1::bigint, 'a ' || s || ' one older than a day')
    from unnest('{dead,cancelled,scheduled}'::text[]) s;

-- Bad input.
select refuses_bad_names('select oq_purge(%L, ''dead'')');
select throws_ok('select oq_purge(''other'', ' || a || ')', 'OQ001', m, a)
  from (values ('null', 'state%null%'), ('''''', 'state%'), ('''leased''', 'state%leased%'),
      ('''Waiting''', 'state%Waiting%'), ('''Dead''', 'state%Dead%'),
    ('''dead'', null', 'older_than%null%'), ('''dead'', ''-1 s''', 'older_than%-00:00:01%'),
    ('''dead'', ''102 years''', 'older_than%102%'),
    ('''dead'', ''0'', 0', 'max_jobs%0%'), ('''dead'', ''0'', -5', 'max_jobs%-5%'),
    ('''dead'', ''0'', 10001', 'max_jobs%10001%')) v(a, m);
select unchanged('select oq_purge(''nowhere'', ''dead'')', '{(0)}', 'an unknown queue');

-- A parent was completed, though its dependent came after the lease, and the tick had not looked yet.
select oq_enqueue('first') as p \gset
select job_id as id, lease_token as token from oq_lease('first') \gset
select oq_enqueue('child', options => format('{"depends_on": [%s]}', :p)::jsonb) as c \gset
select oq_ack(:id, :token) \gset
select is(oq_purge('first', 'completed'), 1::bigint, 'a parent that was completed');
select is(state_of(:c), 'ready', 'its child runs');

-- With max_jobs those go that were enqueued first, not those that died first.
select oq_enqueue('order') as a, oq_enqueue('order', priority => 5) as b \gset
select oq_nack(job_id, lease_token, retry => false) from oq_lease('order') \g /dev/null
select oq_nack(job_id, lease_token, retry => false) from oq_lease('order') \g /dev/null
select ok((select died_at from oq_dead where job_id = :b) < (select died_at from oq_dead where job_id = :a), 'b died first');
select is(oq_purge('order', 'dead', max_jobs => 1), 1::bigint, 'one goes');
select is((select job_id from oq_dead where queue_name = 'order'), :b::bigint, 'the one that was enqueued first');

select finish();
