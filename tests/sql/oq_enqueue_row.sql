-- oq_enqueue_row: a row trigger that makes jobs, by the right of the table's owner.
set client_min_messages = error;

create table orders (id int primary key, status text);
create trigger jobs after insert or update or delete on orders for each row execute function oq_enqueue_row('rows');
insert into orders values (1, 'a'), (2, 'b');
update orders set status = 'c' where id = 1;
delete from orders where id = 2;
select results_eq('select payload from oq_jobs where queue_name = ''rows'' order by job_id', $$values
    ('{"op": "INSERT", "schema": "public", "table": "orders", "new": {"id": 1, "status": "a"}, "old": null}'::jsonb),
    ('{"op": "INSERT", "schema": "public", "table": "orders", "new": {"id": 2, "status": "b"}, "old": null}'),
    ('{"op": "UPDATE", "schema": "public", "table": "orders", "new": {"id": 1, "status": "c"}, "old": {"id": 1, "status": "a"}}'),
    ('{"op": "DELETE", "schema": "public", "table": "orders", "new": null, "old": {"id": 2, "status": "b"}}')$$, 'the payloads');
drop trigger jobs on orders;
create trigger jobs before insert or update of status or delete on orders for each row
    when (pg_trigger_depth() = 0) execute function oq_enqueue_row('before');
insert into orders values (3, 'x');
update orders set id = 4 where id = 3;
update orders set status = 'y' where id = 4;
select is(array(select status from orders order by id), '{c,y}', 'a BEFORE trigger lets rows through');
delete from orders;
select is((select array_agg(payload ->> 'op' order by job_id) from oq_jobs where queue_name = 'before'),
    '{INSERT,UPDATE,DELETE,DELETE}', 'all of them');
select is_empty('select from orders', 'deleted');
select results_eq('select table_name, trigger_name, events, owner, failed, problem from oq_watches',
    'values (''public.orders'', ''jobs'', ''{insert,update,delete}''::text[], current_user, 0::bigint, null::text)', 'oq_watches lists it');
drop trigger jobs on orders;

-- One payload, whatever the writer's settings.
create table shop_values (at timestamptz, i interval, b bytea, f float8, d daterange);
create trigger jobs after insert on shop_values for each row execute function oq_enqueue_row('values');
prepare one_value as insert into shop_values values ('2026-01-01 00:00+09', 'P1DT2S', '\x01', 1.0::float8 / 3, '[2026-01-02,2026-02-01)');
set timezone = 'UTC';
execute one_value;
set timezone = 'Asia/Tokyo';
set intervalstyle = 'iso_8601';
set bytea_output = 'escape';
set extra_float_digits = 0;
set datestyle = 'German';
execute one_value;
reset timezone;
reset intervalstyle;
reset bytea_output;
reset extra_float_digits;
reset datestyle;
select is((select array_agg(distinct payload -> 'new') from oq_jobs where queue_name = 'values'),
    array['{"at": "2025-12-31T15:00:00+00:00", "i": "1 day 00:00:02", "b": "\\x01", "f": 0.3333333333333333,
        "d": "[2026-01-02,2026-02-01)"}'::jsonb], 'one payload, whatever the writer has set');
drop table shop_values;

-- json may hold what jsonb can't.
create table texts (id int, t json);
create trigger jobs after insert or update on texts for each row execute function oq_enqueue_row('texts');
insert into texts values (1, '{"a": "\u0000"}'), (2, '[1e200000]'), (3, '{"a": "x"}');
update texts set t = '{}' where id = 1;
select is(array(select payload #>> '{new,id}' from oq_jobs where queue_name = 'texts'), '{3}', 'the rows whose values can be in a payload');
select is(array(select id from texts order by id), '{1,2,3}', 'all of them are there');
select results_eq('select failed, left(last_error, 5) from oq_watches where queue_name = ''texts''', $$values (3::bigint, '22P05')$$, 'noted');
drop table texts;

-- Triggers that are made wrongly.
create trigger jobs after insert on orders for each statement execute function oq_enqueue_row('rows');
select throws_ok('insert into orders values (1)', 'OQ001', 'the trigger must not be one for each statement', 'for each statement');
drop trigger jobs on orders;
create trigger jobs after insert on orders for each row execute function oq_enqueue_row();
select throws_ok('insert into orders values (1)', 'OQ001', 'the trigger''s arguments must not be 0', 'no queue');
drop trigger jobs on orders;
create trigger jobs after insert on orders for each row execute function oq_enqueue_row('a', 'b');
select throws_ok('insert into orders values (1)', 'OQ001', 'the trigger''s arguments must not be 2', 'two queues');
drop trigger jobs on orders;
create trigger jobs after insert on orders for each row execute function oq_enqueue_row('a b');
select throws_ok('insert into orders values (1)', 'OQ001', 'queue_name must not be ''a b''', 'a bad name');
drop trigger jobs on orders;
select throws_ok('select oq_enqueue_row()', '0A000', 'trigger functions can only be called as triggers', 'by itself');

-- Rows of types that are not built in. No function of a type's owner is called with the installer's rights.
create type mood as enum ('glad', 'sad');
create domain small as int check (value < 100);
create type pair as (a int, m mood);
create table typed (id small, m mood, ms mood[], p pair, s small[], "q""x" text, d date, j jsonb);
create function taken_over(mood)
returns json
language sql
as $$ select to_json(current_user::text) $$;
create cast (mood as json) with function taken_over(mood);
create trigger jobs after insert on typed for each row execute function oq_enqueue_row('typed');
insert into typed values (5, 'sad', '{glad,null}', '(1,glad)', '{7}', 'it''s', '2026-01-01', '{"a": null}');
insert into typed (id) values (null);
select results_eq('select payload -> ''new'' from oq_jobs where queue_name = ''typed'' order by job_id', $$values
    ('{"id": 5, "m": "sad", "ms": ["glad", null], "p": "(1,glad)", "s": [7], "q\"x": "it''s", "d": "2026-01-01", "j": {"a": null}}'::jsonb),
    ('{"id": null, "m": null, "ms": null, "p": null, "s": null, "q\"x": null, "d": null, "j": null}')$$, 'all kinds of types');
alter table typed drop m;
insert into typed (id) values (6);
select is((select payload -> 'new' ->> 'id' from oq_jobs where queue_name = 'typed' order by job_id desc limit 1), '6', 'a column was dropped');
create view orders_view as select * from orders;
create function pass() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger jobs instead of insert on orders_view for each row execute function oq_enqueue_row('view');
insert into orders_view values (9);
select is((select payload ->> 'table' from oq_jobs where queue_name = 'view'), 'orders_view', 'a view has row triggers');

-- On a partitioned table copies of the trigger fire; what they fail is told of the one that was made.
create table parted (id int, k int) partition by list (k);
create table parted1 partition of parted default;
create trigger jobs after insert on parted for each row execute function oq_enqueue_row('parted');
select oq_create_queue('parted', '{"max_depth": 1}') as x \gset
insert into parted values (1, 1), (2, 1), (3, 1);
select results_eq('select failed, left(last_error, 5) from oq_watches where queue_name = ''parted''', $$values (2::bigint, 'OQ006')$$,
    'failures on partitions');

-- Rights: the table's owner needs them, who writes none; what can't be made is noted, the change goes through.
begin;
create role tap_owner login in role oq_producer, oq_observer;
create role tap_writer login;
create role tap_poor login;
create schema shop;
grant usage, create on schema shop to tap_owner, tap_poor;
grant usage on schema shop to tap_writer;
select oq_create_queue('closed', '{"restricted": true}') as x \gset
select oq_grant('closed', 'tap_owner', '{produce,observe}');
set local session authorization tap_poor;
create table shop.poor (id int);
select throws_ok('create trigger jobs after insert on shop.poor for each row execute function oq_enqueue_row(''closed'')', '42501',
    'permission denied for function oq_enqueue_row', 'who is no producer can''t make the trigger');
set local session authorization tap_owner;
create table shop.orders (id int, t text);
create trigger jobs after insert on shop.orders for each row execute function oq_enqueue_row('closed');
grant insert on shop.orders to tap_writer;
set local session authorization tap_writer;
insert into shop.orders values (1);
reset session authorization;
select is((select count(*) from oq_jobs where queue_name = 'closed'), 1::bigint, 'by who has no right');
create function tried(description text, code text)
returns text
language plpgsql
as $$
declare
    v_jobs   bigint := (select count(*) from oq_jobs where queue_name = 'closed');
    v_rows   bigint := (select count(*) from shop.orders);
    v_failed bigint := (select failed from oq_watches where table_name = 'shop.orders');
begin
    insert into shop.orders values (10, repeat('x', 100)), (11, repeat('x', 100));
    return ok((select count(*) from shop.orders) = v_rows + 2
        and (select count(*) from oq_jobs where queue_name = 'closed') = v_jobs
        and (select failed = v_failed + 2 and last_error like code || ': %' from oq_watches where table_name = 'shop.orders'), description);
end
$$;
select oq_revoke('closed', 'tap_owner', '{produce}');
select tried('the owner lost the grant', '42501');
select oq_grant('closed', 'tap_owner', '{produce}');
select oq_create_queue('closed', '{"max_depth": 1}');
select tried('the queue is full', 'OQ006');
select oq_create_queue('closed', '{"max_depth": null, "max_payload_bytes": 50}');
select tried('the payload is too large', 'OQ001');
select oq_create_queue('closed', '{"max_payload_bytes": 1000}');
revoke oq_producer from tap_owner;
select tried('the owner is no producer any more', '42501');
grant oq_producer to tap_owner;
select oq_drop_queue('closed', force => true);
select tried('the queue was dropped', 'OQ003');
select is_empty('select from oq_queues where queue_name = ''closed''', 'and does not come back');
rollback;
select finish();
