-- Texts of a caller's columns have their collation: names are found by their bytes all the same. Every function that takes one.
set client_min_messages = error;

create table words (q text collate "POSIX", w text collate "POSIX", topic text collate "POSIX", p text[] collate "POSIX");
insert into words values ('q', 'w', 'a.b', '{produce,consume,observe}');
grant select on words to public;
create table watched (id int primary key, name text);

create function called(what text)
returns text
language plpgsql
as $$
begin
    execute 'select x.* from words, lateral (select ' || what || ') x';
    return ok(true, what);
exception when others then
    return ok(false, what) || ' # ' || sqlerrm;
end
$$;

create function ack_all()
returns bigint
language sql
as $$ select count(*) filter (where oq_ack(l.job_id, l.token)) from oq.leased l where l.lane >> 16 = (
    select queue_id from oq.queue where queue_name = 'one' limit 1) $$;

create table calls as select c.* from unnest(array[
    'oq_enqueue(q)', 'oq_enqueue(q)', 'oq_enqueue(q, unique_key => w, group_key => w)',
    'oq_enqueue(q, unique_key => w, options => ''{"unique_mode": "replace"}'')',
    'oq_enqueue(q, unique_key => w, options => ''{"unique_mode": "debounce", "delay": "1 s"}'')',
    'oq_enqueue(q, group_key => w, options => jsonb_build_object(''depends_on'', array[oq_enqueue(w)]))',
    'oq_enqueue_bulk(q, array[''{}''::jsonb])', 'oq_create_queue(q)', 'oq_create_queue(w, ''{"restricted": true}'')',
    'oq_grant(w, ''oq_worker'', p)', 'oq_revoke(w, ''oq_worker'', p)', 'oq_grant(w, ''oq_worker'', p)', 'oq_enqueue(w)',
    'oq_pause(q)', 'oq_resume(q)', 'oq_stats(q)', 'oq_list(q, ''ready'' collate "POSIX")',
    'oq_limit(q, w, max_running => 2)', 'oq_limit(q, ''*'', rate => 1000)',
    'oq_subscribe(topic, q)', 'oq_subscribe(topic || ''.#'', w)', 'oq_publish(topic)', 'oq_publish(topic || ''.c'')',
    'oq_unsubscribe(topic, q)', 'oq_lease(q, w)', 'oq_next(q, w)', 'oq_limit(q, max_running => 9)', 'oq_lease(q, w)',
    'oq_lease(w, w, max_jobs => 9)', 'oq_throttle(q, now(), w)', 'oq_throttle(q, now())', 'oq_listen(q)', 'oq_unlisten(q)',
    'oq_schedule(w, ''* * * * *'', q)', 'oq_schedule(w, ''* * * * *'', q, ''{}'', ''UTC'' collate "POSIX")', 'oq_unschedule(w)',
    'oq_next_runs(''0 0 * * mon'' collate "POSIX", ''Europe/Berlin'' collate "POSIX")',
    'oq_watch(''watched'', q, ''insert'' collate "POSIX", condition => ''new.id > 0'' collate "POSIX")', 'oq_unwatch(''watched'', q)',
    'oq_watch(''watched'', q, ''update'', array[''name'' collate "POSIX"])', 'oq_unwatch(''watched'', q)',
    'oq_nack(job_id, lease_token, w, retry => false) from (select l.* from words, oq_lease(q) l) l',
    'oq_redrive(q, jsonb_build_object(''error'', w))', 'oq_cancel(oq_enqueue(q), w)', 'oq_purge(q, ''dead'' collate "POSIX")',
    'oq_drop_queue(q, true)', 'oq_listen(q)', 'oq_unlisten(q)', 'oq_enqueue(q)']) with ordinality c(call, nth);
select is_empty($$
    select p.proname from pg_proc p
     where p.pronamespace = 'public'::regnamespace and p.proname ~ '^oq_' and p.proname <> 'oq_watch_fire'
       and 'text'::regtype = any (p.proargtypes) and not exists (select from calls c where strpos(c.call, p.proname || '(') > 0)$$,
    'every function that takes a text is called');
select called(call) from calls order by nth;

select is((select array_agg(queue_name order by queue_name) from oq_queues), '{q,w}', 'no queue twice');
set role oq_worker;
select called(c) from unnest(array['oq_lease(w, w)', 'oq_listen(w)', 'oq_unlisten(w)', 'oq_throttle(w, now())']) c;
reset role;

-- One by which bytes that differ may be equal has hashes of its own, and no regular expressions.
create collation shop (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
alter table words alter q type text collate shop, alter w type text collate shop, alter topic type text collate shop,
    alter p type text[] collate shop;
update words set q = 'Q2', w = 'W2', topic = 'c.d';
select called(call) from calls order by nth;
select is((select array_agg(queue_name order by queue_name) from oq_queues), '{Q2,W2,q,w}', 'no queue twice');

-- A group is one, whose column its key comes from.
create table watched_too (k text collate shop);
select oq_watch('watched_too', 'one', options => '{"group_columns": ["k"]}') as x \gset
insert into watched_too values ('Acme');
select oq_enqueue('one', group_key => w) as a from (select 'Acme' collate shop) t(w) \gset
select oq_enqueue('one', group_key => 'Acme') as b \gset
select oq_enqueue('one', group_key => w, priority => 1) as c from (select 'Acme' collate shop) t(w) \gset
select is((select count(*) from oq_lease('one', max_jobs => 9)), 1::bigint, 'one at a time') from generate_series(1, 4) i
 where ack_all() >= 0;
select oq_limit('one', w, max_running => 2) as x from (select 'Acme' collate shop) t(w) \gset
select oq_throttle('one', clock_timestamp() + interval '1 hour', w) as x from (select 'Acme' collate shop) t(w) \gset
select oq_enqueue('one', group_key => 'Acme') as x \gset
select is_empty('select oq_lease(''one'')', 'its throttle is found');

select finish();
