-- Watches: whose rights count, and that they never fail what they watch. oq_watch, oq_watches, oq_watch_fire.
set client_min_messages = error;

begin;
create role tap_owner login in role oq_producer, oq_observer;
create role tap_writer login;
create role tap_other login in role oq_producer, oq_worker, oq_observer;
create role tap_team in role oq_producer;
create role tap_member login in role tap_team;
create role tap_poor login;
create schema shop;
grant usage, create on schema shop to tap_owner, tap_team, tap_poor, tap_other;
grant usage on schema shop to tap_writer;
select oq_create_queue('closed', '{"restricted": true}') as x, oq_create_queue('open') as y \gset
select oq_grant('closed', 'tap_owner', '{produce,observe}');
create table shop.audit (who text, how text);
grant all on shop.audit to public;
create function shop.note(how text)
returns boolean
language sql
as $$ insert into shop.audit values (current_user, how) returning true $$;

set local session authorization tap_owner;
create table shop.orders (id int, secret text);
grant insert on shop.orders to tap_writer, tap_other;

-- Only the owner, or a member of the owning role, may watch; who owns nothing of OpenQueue may not call it.
set local session authorization tap_other;
select throws_ok('select oq_' || c, '42501', 'role tap_other does not own table shop.orders', c)
  from unnest(array['watch(''shop.orders'', ''open'')', 'unwatch(''shop.orders'', ''open'')']) c;
set local session authorization tap_writer;
select throws_ok('select oq_' || c, '42501', 'permission denied for function oq_%', c)
  from unnest(array['watch(''shop.orders'', ''open'')', 'unwatch(''shop.orders'', ''open'')',
    'watch_fire(1, 1, ''{1}'', ''{}'', ''{}'')']) c;
set local session authorization tap_other;
create table shop.mine (id int);
select throws_ok('select oq_watch(''shop.mine'', ''closed'')', '42501', '%tap_other%may not produce in queue ''closed''',
    'a queue in which the owner may not produce');
reset session authorization;
create table shop.foreign_to_queue (id int);
alter table shop.foreign_to_queue owner to tap_poor;
select throws_ok('select oq_watch(''shop.foreign_to_queue'', ''open'')', '42501', '%tap_poor%may not produce%',
    'by a superuser, for an owner who is no producer');
revoke create on schema shop from tap_other;
set local session authorization tap_other;
select throws_ok('select oq_watch(''shop.mine'', ''open'')', '42501', 'role tap_other may not create functions in schema shop',
    'an owner who may not create functions');

-- Who writes needs no right: jobs are made by the owner's, and the condition runs with it.
set local session authorization tap_owner;
alter default privileges in schema shop grant all on functions to tap_other;
select is(oq_watch('shop.orders', 'closed', condition => 'shop.note(new.secret)') ~ '^oq_watch_\d+_insert$', true,
    'the owner watches');
select is((select array_agg(distinct pg_get_userbyid(proowner)::text) from pg_proc where proname ~ '^oq_watch_\d+$'), '{tap_owner}',
    'the function is the owner''s');
select is_empty('select from pg_proc p, aclexplode(p.proacl) a where proname ~ ''^oq_watch_\d+$'' and a.grantee <> p.proowner',
    'nobody else may execute it');
set local session authorization tap_writer;
insert into shop.orders values (1, 'by writer');
set local session authorization tap_other;
insert into shop.orders values (2, 'by other');
reset session authorization;
insert into shop.orders values (3, 'by superuser');
select is((select array_agg(who || ' ' || how order by how) from shop.audit), '{tap_owner by other,tap_owner by superuser,tap_owner by writer}',
    'the condition runs as the table''s owner');
select is((select count(*) from oq_jobs where queue_name = 'closed'), 3::bigint, 'three jobs');
set local session authorization tap_other;
select is_empty('select from oq_watches where queue_name = ''closed''', 'who may not observe the queue does not see the watch');
select throws_ok('select oq.watch_' || c, '42501', 'permission denied for schema oq', 'by name: ' || c)
  from unnest(array['put(''tap_owner'', 1, ''shop.orders''::regclass, ''{1}'', ''{}'', ''{}'', 0, null, null)',
    'plan(''tap_owner'', ''shop.orders'', ''closed'', ''insert'', null, null, null)', 'build(''{}'')', 'drop(''{}'')',
    'end(''tap_owner'', ''shop.orders'', ''closed'')', 'failed(1, 1, 1, '''', '''')']) c;
select watch_id from (select substring(tgname from '\d+') as watch_id from pg_trigger where tgrelid = 'shop.orders'::regclass) x \gset
select oq_watch_fire(:watch_id, 'shop.orders'::regclass, '{"\"forged\""}', '{}', '{}', 5, 'XX000', 'forged');
reset session authorization;
select is_empty('select from oq_jobs where payload = ''"forged"''', 'another role can''t make its jobs');
select is((select failed from oq_watches where queue_name = 'closed'), 0::bigint, 'nor note failures');

-- A superuser, or a member, may watch for the owner; the function is the owner's in any case.
create table shop.team (id int);
alter table shop.team owner to tap_team;
set local session authorization tap_member;
select oq_watch('shop.team', 'open', condition => 'shop.note(''team'')') as x \gset
reset session authorization;
select oq_watch('shop.orders', 'open') as x \gset
select is((select array_agg(pg_get_userbyid(p.proowner)::text order by p.proowner::regrole::text) from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where t.tgrelid in ('shop.team'::regclass, 'shop.orders'::regclass)), '{tap_owner,tap_owner,tap_team}', 'owners of the functions');
grant insert on shop.team to tap_writer;
set local session authorization tap_writer;
insert into shop.team values (1);
reset session authorization;
select is((select who from shop.audit where how = 'team'), 'tap_team', 'the team''s condition');
set local session authorization tap_member;
select ok(oq_unwatch('shop.team', 'open'), 'a member may unwatch');
reset session authorization;
select ok(oq_unwatch('shop.orders', 'open'), 'and a superuser');
select is_empty('select from pg_trigger where tgrelid = ''shop.team''::regclass', 'its trigger is gone');

-- Rights are looked at again at each change; the change goes through in any case.
create function tried(description text, code text)
returns text
language plpgsql
as $$
declare
    v_jobs   bigint := (select count(*) from oq_jobs);
    v_rows   bigint := (select count(*) from shop.orders);
    v_failed bigint := (select failed from oq_watches where queue_name = 'closed');
begin
    insert into shop.orders values (10, 'tried'), (11, 'tried');
    return ok((select count(*) from shop.orders) = v_rows + 2 and (select count(*) from oq_jobs) = v_jobs
            and (select failed from oq_watches where queue_name = 'closed') = v_failed + 2
            and (select last_error like code || ': %' from oq_watches where queue_name = 'closed'), description);
end
$$;
select oq_watch('shop.orders', 'closed') as x \gset
select oq_revoke('closed', 'tap_owner', '{produce}');
select tried('the owner lost the grant', '42501');
select is((select problem from oq_watches where queue_name = 'closed'), 'role tap_owner may not produce in the queue', 'and why');
select oq_grant('closed', 'tap_owner', '{produce}');
select oq_create_queue('closed', '{"max_depth": 4}');
select tried('the queue is full', 'OQ006');
select oq_create_queue('closed', '{"max_depth": null, "max_payload_bytes": 10}');
select tried('the payload is too large', 'OQ001');
select oq_create_queue('closed', '{"max_payload_bytes": 120}');
insert into shop.orders values (20, 'short'), (21, repeat('long', 100)), (22, 'short');
select results_eq('select payload -> ''new'' ->> ''id'' from oq_jobs where queue_name = ''closed'' order by job_id desc limit 2',
    'values (''22''), (''20'')', 'one too large payload does not hold up the others');
select is((select failed from oq_watches where queue_name = 'closed'), 7::bigint, 'it is counted');
select oq_create_queue('closed', '{"max_payload_bytes": 1000000}');
select oq_watch('shop.orders', 'closed', condition => '1 / (new.id - 10) is not null') as x \gset
select is((select failed from oq_watches where queue_name = 'closed'), 0::bigint, 'watch again: counts from nothing');
select tried('the condition fails', '22012');
select oq_watch('shop.orders', 'closed', condition => 'new.secret is not null') as x \gset
alter table shop.orders drop secret;
alter table shop.orders add other text;
select tried('the condition names a column that was dropped', '42703');
select oq_watch('shop.orders', 'closed') as x \gset
select oq_drop_queue('closed', force => true);
insert into shop.orders values (30);
select is((select count(*) from shop.orders where id = 30), 1::bigint, 'the queue was dropped: the change goes through');
select is_empty('select from oq_queues where queue_name = ''closed''', 'and the queue does not come back, open to all');
select is((select failed || problem from oq_watches where queue_name = 'closed'), '1the queue was dropped', 'oq_watches says so');
select oq_create_queue('closed', '{"restricted": true}') as x \gset
select tried('a new queue of that name has no grants', '42501');
select oq_grant('closed', 'tap_owner', '{produce}');
insert into shop.orders values (31);
select is((select count(*) from oq_jobs where queue_name = 'closed'), 1::bigint, 'with the grant it works again');
alter table shop.orders owner to tap_team;
select tried('the table has another owner', '42501');
select is((select problem from oq_watches where queue_name = 'closed'), 'the table has another owner, who must call oq_watch again', 'why');
select oq_grant('closed', 'tap_team', '{produce}');
set local session authorization tap_member;
select oq_watch('shop.orders', 'closed') as x \gset
reset session authorization;
insert into shop.orders values (32);
select is((select count(*) from oq_jobs where queue_name = 'closed'), 2::bigint, 'who did');
select is((select count(*) from pg_trigger where tgrelid = 'shop.orders'::regclass), 1::bigint, 'by one trigger');
revoke oq_producer from tap_team;
insert into shop.orders values (33);
select is((select count(*) from shop.orders where id = 33), 1::bigint, 'an owner who is no producer any more: a warning');
select is((select count(*) from oq_jobs where queue_name = 'closed'), 2::bigint, 'no job');
select is((select problem from oq_watches where queue_name = 'closed'), 'role tap_team may not produce in the queue', 'problem');
grant oq_producer to tap_team;
alter table shop.orders disable trigger user;
select is((select problem from oq_watches where queue_name = 'closed'), 'its trigger is disabled', 'a trigger that is disabled');
alter table shop.orders enable trigger user;
select format('drop trigger %I on shop.orders', trigger_name) as drop_it from oq_watches where queue_name = 'closed' \gset
:drop_it;
select is((select problem from oq_watches where queue_name = 'closed'), 'its trigger is gone: call oq_watch again', 'or gone');
select oq_watch('shop.orders', 'closed') as x \gset
select is((select problem from oq_watches where queue_name = 'closed'), null, 'again');

-- The note of failures: few rows, whatever fails how often; texts with a limit.
select oq_revoke('closed', 'tap_team', '{produce}');
insert into shop.orders select 40 from generate_series(1, 3);
do $$ begin for i in 1..20 loop insert into shop.orders values (i); end loop; end $$;
select is((select failed from oq_watches where queue_name = 'closed'), 23::bigint, 'every change is counted');
select is((select count(*) from oq.watch_failure), 1::bigint, 'in one row');
delete from oq.watch;
insert into shop.orders values (50);
select is((select count(*) from shop.orders where id = 50), 1::bigint, 'a trigger whose watch is not known does nothing');
rollback;

-- A transaction of many small statements uses up no transaction ids for its watches.
create table chatty (id int);
select oq_watch('chatty', 'chatty', condition => 'new.id > 0') as x \gset
do $$ begin for i in 1..201 loop insert into chatty values (i); end loop; end $$;
select is((select count(distinct xmin::text) from oq.job), 1::bigint, 'no subtransaction has an id');
select is((select count(*) from oq_jobs where queue_name = 'chatty'), 201::bigint, 'with all their jobs');
select finish();
