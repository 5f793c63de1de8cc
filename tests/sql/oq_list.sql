-- oq_list: the newest jobs of a queue, in a state, page by page, as oq_jobs has them.

select oq_create_queue('a', '{"retry": {"kind": "fixed", "base": "1 h"}}'), oq_create_queue('b'),
    oq_create_queue('hidden', '{"restricted": true}'), oq_create_queue('none', '{"keep": "none"}') \g /dev/null

-- In each state some, in two queues, of several priorities; one that came back, and one that nobody is to see.
select count(*) from (
    select oq_enqueue(q, to_jsonb(i), priority => i % 3) from generate_series(1, 20) i, unnest('{a,b}'::text[]) q) x \g /dev/null
select oq_enqueue('a', max_retries => 0, priority => 9), oq_enqueue('a', priority => 9) \g /dev/null
select count(oq_nack(job_id, lease_token, 'no')) from oq_lease('a', max_jobs => 2) \g /dev/null
select count(oq_ack(job_id, lease_token, '1')) from oq_lease('a', max_jobs => 3) \g /dev/null
select count(oq_ack(job_id, lease_token)) from oq_lease('b', max_jobs => 2) \g /dev/null
select count(oq_release(job_id, lease_token)) from oq_lease('a', max_jobs => 2) \g /dev/null
select count(*) from oq_lease('a', max_jobs => 2) \g /dev/null
select count(oq_cancel(job_id)) from (select job_id from oq_jobs where state = 'ready' and queue_name = 'b' limit 2) x \g /dev/null
select oq_enqueue('a', run_at => now() + interval '1 h'), oq_enqueue('b', run_at => now() + interval '1 h'),
    oq_enqueue('b', options => '{"ttl": "1 ms"}'), oq_enqueue('hidden'), oq_enqueue('none') \g /dev/null
select oq_enqueue('b', group_key => 'g') from generate_series(1, 3) \g /dev/null
select pg_sleep(0.002) \g /dev/null
select oq_ack(job_id, lease_token) from oq_lease('none') \g /dev/null
select oq_tick() \g /dev/null
select is((select string_agg(state || ' ' || n, ', ' order by state) from (
    select state, count(*) as n from oq_jobs group by state) x),
    'cancelled 2, completed 5, dead 1, expired 1, leased 2, ready 33, scheduled 3, waiting 2', 'some in each state');

-- The same rows as the view's, newest first, whole or by pages of two.
create function pg_temp.pages(q text, s text) returns setof oq_jobs language plpgsql as $$
declare
    v_page   oq_jobs[];
    v_before bigint;
begin
    for i in 1..100 loop
        v_page := array(select l from oq_list(q, s, 2, v_before) l);
        exit when v_page = '{}';
        return query select * from unnest(v_page);
        v_before := (v_page[cardinality(v_page)]).job_id;
    end loop;
end $$;
select results_eq(format('select to_jsonb(l) from oq_list(%L, %L) l', q, s),
    format('select to_jsonb(j) from oq_jobs j where (%L is null or queue_name = %1$L) and (%L is null or state = %2$L)
        order by job_id desc', q, s), format('queue %s, state %s', q, s))
  from unnest(array['a', 'b', 'hidden', null]) q, unnest(array['ready', 'scheduled', 'waiting', 'leased', 'completed', 'dead',
    'cancelled', 'expired', null]) s;
select results_eq(format('select to_jsonb(l) from pg_temp.pages(%L, %L) l', q, s),
    format('select to_jsonb(l) from oq_list(%L, %L) l', q, s), format('by pages: queue %s, state %s', q, s))
  from unnest(array['a', null]) q, unnest(array['ready', 'completed', null]) s;
select is((select count(*) from oq_list(max_jobs => 7)), 7::bigint, 'no more than asked for');
select is((select max(job_id) from oq_list(before => job_id)), (select max(job_id) from oq_jobs where job_id < x.job_id), 'before')
  from (select job_id from oq_list('a', 'ready', 1)) x;

-- What had finished when its queue was dropped does not make a page short.
select oq_enqueue('c') from generate_series(1, 5) \g /dev/null
select count(oq_ack(job_id, lease_token)) from oq_lease('c', max_jobs => 5) \g /dev/null
select oq_drop_queue('c') \g /dev/null
select is((select count(*) from oq_list(state => 'completed', max_jobs => 3)), 3::bigint, 'the pages of others');
select is_empty('select * from oq_list(''c'')', 'a dropped queue');

-- Rights: restricted queues are not there for who may not observe them.
create role list_reader;
grant oq_observer to list_reader;
grant usage on schema tap to list_reader;
set role list_reader;
select is((select array_agg(distinct queue_name order by queue_name) from oq_list()), '{a,b}'::text[], 'what one may see');
select is_empty('select * from oq_list(''hidden'')', 'nothing of a restricted queue');
reset role;
select oq_grant('hidden', 'list_reader', '{observe}') \g /dev/null
set role list_reader;
select is((select count(*) from oq_list('hidden')), 1::bigint, 'until one may');
reset role;
drop owned by list_reader;
drop role list_reader;

select is_empty('select * from oq_list(''unknown'')', 'an unknown queue');
select throws_ok(format('select * from oq_list(%s)', c), 'OQ001', m, c)
  from (values ('''no name''', 'queue_name%'), ('state => ''done''', 'state%done%'), ('max_jobs => 0', 'max_jobs%0%'),
    ('max_jobs => 10001', 'max_jobs%10001%'), ('max_jobs => null', 'max_jobs%')) v(c, m);
select finish();
