-- oq_watch, oq_unwatch, oq_watch_fire, oq_watches: changes of tables become jobs.

-- Jobs of a queue as what they say, in the order of enqueue; then the queue is emptied.
create function made(queue_name text)
returns text[]
language plpgsql
as $$
declare
    v_made text[];
begin
    select array_agg(concat_ws(' ', j.payload ->> 'op', j.payload -> 'new' ->> 'id', j.payload -> 'old' ->> 'id')
            order by j.job_id)
      into v_made
      from oq_jobs j where j.queue_name = made.queue_name and j.state in ('ready', 'scheduled');
    perform oq_purge(made.queue_name, s) from unnest('{ready,scheduled}'::text[]) s;
    return coalesce(v_made, '{}');
end
$$;
create function made_count(queue_name text)
returns int
language sql
as $$ select cardinality(made(queue_name)) $$;

create schema shop;
create table shop.orders (id int primary key, status text, amount numeric, j json, at timestamptz);

-- The three events, and the payload.
select is(oq_watch('shop.orders', 'w'), 'oq_watch_1_insert', 'the trigger''s name');
select ok(exists (select from pg_trigger where tgname = 'oq_watch_1_insert' and tgrelid = 'shop.orders'::regclass),
    'there is that trigger');
insert into shop.orders values (1, 'new', 1.50, '{"a": [1]}', '2026-01-01 00:00+00');
update shop.orders set amount = 2;
delete from shop.orders;
select is(array(select payload from oq_jobs where queue_name = 'w'), array['{"op": "INSERT", "schema": "shop",
    "table": "orders", "old": null, "new": {"id": 1, "status": "new", "amount": 1.50, "j": {"a": [1]},
    "at": "2026-01-01T00:00:00+00:00"}}'::jsonb], 'only inserts, by default; the payload');
select is(made_count('w'), 1, 'one job');
select is(oq_watch('shop.orders', 'w', e), n, 'events ' || e)
  from (values ('update', 'oq_watch_1_update'), ('delete', 'oq_watch_1_delete'), ('update,delete', 'oq_watch_1_update'),
    ('INSERT OR DELETE', 'oq_watch_1_insert'), (' insert ,update or delete', 'oq_watch_1_insert')) v(e, n);
insert into shop.orders values (1, 'a', 1), (2, 'b', 2);
update shop.orders set amount = amount + 1;
delete from shop.orders;
select is((select payload - 'schema' - 'table' from oq_jobs where payload ->> 'op' = 'UPDATE' order by job_id limit 1),
    '{"op": "UPDATE", "old": {"id": 1, "status": "a", "amount": 1, "j": null, "at": null},
    "new": {"id": 1, "status": "a", "amount": 2, "j": null, "at": null}}', 'an update has both rows');
select is(made('w'), '{INSERT 1,INSERT 2,UPDATE 1 1,UPDATE 2 2,DELETE 1,DELETE 2}', 'in order');
select is(oq_watch('shop.orders', 'w', 'delete'), 'oq_watch_1_delete', 'watch again');
select results_eq('select tgname from pg_trigger where tgrelid = ''shop.orders''::regclass', 'values (''oq_watch_1_delete'')',
    'replaces the watch');
insert into shop.orders select g, 's' || g, g from generate_series(1, 10) g;
select is(made('w'), '{}', 'no inserts any more');

-- columns: only where one really changed.
select oq_watch('shop.orders', 'w', 'update', '{status,amount}') as x \gset
update shop.orders set at = now();
update shop.orders set status = status;
update shop.orders set amount = 1.0 where id = 1;
select is(made('w'), '{}', 'nothing changed, 1.0 is 1');
update shop.orders set status = case when id <= 2 then 'x' else status end, amount = case id when 3 then null else amount end;
select is(array(select unnest(made('w')) order by 1), '{UPDATE 1 1,UPDATE 2 2,UPDATE 3 3}', 'changed, null included');
update shop.orders set amount = null where id = 3;
select is(made('w'), '{}', 'null stays null');
select oq_watch('shop.orders', 'w', 'update', '{j,status}') as x \gset
update shop.orders set j = '{"a": 1}' where id = 4;
update shop.orders set j = '{"a": 1}' where id = 4;
select is(made('w'), '{UPDATE 4 4}', 'of a type without equality');
update shop.orders set id = id + 100 where id > 8;
select is(made('w'), '{}', 'other columns');
select oq_watch('shop.orders', 'w', 'update', '{id}') as x \gset
update shop.orders set id = id - 100 where id > 100;
select is(made('w'), '{UPDATE 9 109,UPDATE 10 110}', 'a key that changes: old rows find their new ones');
create domain shop.word as text;
create table shop.odd ("a,b" shop.word[], "new" int, "Select" varchar(5), "x""y" point, old int);
select oq_watch('shop.odd', 'odd', 'insert, update, delete', '{"a,b",new,Select,"x\"y"}',
    options => '{"payload_columns": ["Select", "new", "a,b"]}') as x \gset
insert into shop.odd values ('{a}', 1, 'y', '(1,2)', 1);
update shop.odd set old = 5;
update shop.odd set "x""y" = '(1,3)';
update shop.odd set "a,b" = '{b}';
select is(array(select payload -> 'new' from oq_jobs where queue_name = 'odd' order by job_id),
    array['{"Select": "y", "new": 1, "a,b": ["a"]}', '{"Select": "y", "new": 1, "a,b": ["a"]}',
        '{"Select": "y", "new": 1, "a,b": ["b"]}']::jsonb[], 'odd names, payload_columns');

-- condition
select oq_watch('shop.orders', 'w', 'insert, update, delete', condition => $c$ new.amount > 5 and new.status <> ')' $c$) as x \gset
truncate shop.orders;
insert into shop.orders values (1, 'a', 5), (2, 'b', 6), (3, ')', 7), (4, null, 8), (5, 'c', null);
update shop.orders set amount = amount + 1;
delete from shop.orders;
select is(made('w'), '{INSERT 2,UPDATE 1 1,UPDATE 2 2}', 'a null condition is none, and a row that is not there is null');
select oq_watch('shop.orders', 'w', 'insert or update or delete', condition =>
    $c$case when old is null then new.id = 1 when new is null then old.status like '%''%' else new is distinct from old and
        to_jsonb(new) ->> 'status' = 'x' end$c$) as x \gset
insert into shop.orders values (1, 'a', 5), (2, 'b', 6);
update shop.orders set status = 'x' where id = 1;
update shop.orders set status = 'x''y' where id = 2;
delete from shop.orders;
select is(made('w'), '{INSERT 1,UPDATE 1 1,DELETE 2}', 'whole rows, quotes');
select throws_ok(format('select oq_watch(''shop.orders'', ''w'', ''insert,update'', condition => %L)', c), 'OQ001',
    'condition must not be %', 'condition ' || c)
  from unnest(array['', ' ', 'true) or (select true', 'true; drop table shop.orders', 'true); drop table shop.orders; select (true',
    'new.nope = 1', 'new.amount', 'amount > 1', 'exists (select 1)', 'new.id in (values (1))', '(select true)',
    'new.id in (table shop.orders)', 'count(*) > 1', 'true --', 'true /* x */', 'true /*', '/* */ true', 'new.id = 1 order by 1',
    'true union select true', 'new.id = $1', 'row_number() over () = 1', 'generate_series(1, 2) = 1', '''x', 'shop.none(1)',
    'tg_op = ''INSERT''', 'v_failed = 0', 'n.i = 1', 'new.id = 1) -- ', 'true, false', 'distinct true', 'true limit 1',
    'true) then perform 1; end if; if (true', 'end', E'true)\n or (true', 'array(select 1) is null', 'newest.id = 1',
    'true as x', 'new.id = 1 for update', repeat('(', 5000) || 'true' || repeat(')', 5000)]) c;
select is_empty('select from pg_proc where proname like ''%\_check'' and pronamespace = ''shop''::regnamespace',
    'no function is left of it');

-- Options of the jobs.
select oq_watch('shop.orders', 'w', options => '{"priority": 7, "delay": "1 h", "max_retries": 9, "headers": {"h": null},
    "ttl": "2 h", "tags": ["t"], "retry": {"kind": "fixed", "base": "5 s"}}') as x \gset
insert into shop.orders values (1), (2);
select results_eq('select priority, state, run_at - created_at, max_retries, headers, expires_at - created_at, tags
    from oq_jobs where queue_name = ''w''', $$select 7, 'scheduled', interval '1 h', 9, '{"h": null}'::jsonb, interval '2 h',
    array['t'] from generate_series(1, 2)$$, 'all of them');
select is(made_count('w'), 2, 'two jobs');
select oq_watch('shop.orders', 'w', options => '{"run_at": "2100-01-01 00:00+00", "priority": null}') as x \gset
insert into shop.orders values (3);
select is((select run_at from oq_jobs where queue_name = 'w'), timestamptz '2100-01-01 00:00+00', 'run_at');
select is(made_count('w'), 1, 'one');
select throws_ok(format('select oq_watch(''shop.orders'', ''w'', options => %L)', o), 'OQ001', m, 'options ' || left(o, 60))
  from (values ('1', 'options must not be 1'), ('[]', 'options must not be %'), ('{"nope": 1}', 'options must not have the key ''nope'''),
    ('{"priority": 40000}', 'options.priority must not be 40000'), ('{"priority": "x"}', 'options.priority%'),
    ('{"max_retries": -1}', 'options.max_retries%'), ('{"headers": [1]}', 'options.headers%'), ('{"run_at": "x"}', 'options.run_at%'),
    ('{"run_at": "infinity"}', 'options.run_at%'), ('{"run_at": "2100-01-01", "delay": "1 s"}', 'options.delay%'),
    ('{"delay": "x"}', 'options.delay%'), ('{"ttl": "-1 s"}', 'options.ttl%'), ('{"tags": 1}', 'options.tags%'),
    ('{"retry": 1}', '%retry%'), ('{"unique_columns": []}', 'options.unique_columns%'), ('{"unique_columns": "id"}', 'options.unique_columns%'),
    ('{"unique_columns": [1]}', 'options.unique_columns%'), ('{"unique_columns": ["nope"]}', 'options.unique_columns%nope%'),
    ('{"unique_columns": ["id"], "unique_mode": "debounce"}', 'options.delay must not be null'),
    ('{"unique_columns": ["id"], "debounce_max": "1 s"}', 'options.debounce_max%'),
    ('{"unique_columns": ["id"], "unique_for": "101 years"}', 'options.unique_for%101 years%'),
    ('{"group_columns": ["ctid"]}', 'options.group_columns%ctid%'), ('{"payload_columns": ["id", "x; drop"]}', 'options.payload_columns%')) v(o, m);
select throws_ok('select oq_watch(''shop.orders'', ''w'', ' || a, 'OQ001', m, a)
  from (values ('null)', 'events must not be NULL'), (''''')', 'events%'), ('''truncate'')', 'events%'), ('''insert; drop'')', 'events%'),
    ('''insert, '', ''{id}'')', 'columns must not be %'), ('''update'', ''{}'')', 'columns%'), ('''update'', ''{nope}'')', 'columns%nope%'),
    ('''update'', ''{null}'')', 'columns%'), ('''update'', ''{{id}}'')', 'columns%'), ('''update'', ''{"id) or (true"}'')', 'columns%'),
    ('''update'', ''{ctid}'')', 'columns%')) v(a, m);
select refuses_bad_names('select oq_watch(''shop.orders'', %L)');
select refuses_bad_names('select oq_unwatch(''shop.orders'', %L)');

-- What can't be watched.
create view shop.v as select * from shop.orders;
create materialized view shop.m as select * from shop.orders;
create sequence shop.s;
create foreign data wrapper tap_fdw;
create server tap_server foreign data wrapper tap_fdw;
create foreign table shop.f (id int) server tap_server;
create temp table tmp (id int);
create table shop.part (id int, k int) partition by list (k);
create table shop.part1 partition of shop.part for values in (1);
create table shop.part2 partition of shop.part for values in (2) partition by list (id);
create table shop.part2a partition of shop.part2 default;
create table shop.fpart (id int, k int) partition by list (k);
create foreign table shop.fpart1 partition of shop.fpart for values in (1) server tap_server;
create table shop.parent (id int);
create table shop.child () inherits (shop.parent);
select throws_ok(format('select oq_watch(%s, ''w'')', t), 'OQ001', 'table_name must not be %', 'not ' || t)
  from unnest(array['null', '''shop.v''', '''shop.m''', '''shop.s''', '''shop.f''', '''tmp''', '''pg_class''', '''oq.job''',
    '''information_schema.sql_parts''', '''shop.orders_pkey''', '''oq_jobs''', '''shop.fpart''', '999999']) t;

-- Partitions: a statement fires the triggers of the table that it names.
select is(oq_watch('shop.part', 'p', 'insert, update, delete') ~ 'insert$', true, 'the parent');
insert into shop.part values (1, 1), (2, 2), (3, 1);
update shop.part set k = 3 - k;
delete from shop.part where id = 1;
select is(made('p'), '{INSERT 1,INSERT 2,INSERT 3,UPDATE 1 1,UPDATE 3 3,UPDATE 2 2,DELETE 1}',
    'rows that move to other partitions too');
select throws_ok(format('select oq_watch(%L, %L)', t, q), 'OQ001', '%which is watched', t || ' ' || q)
  from unnest('{shop.part1,shop.part2,shop.part2a}'::text[]) t, unnest('{p,other}'::text[]) q;
select ok(oq_unwatch('shop.part', 'p'), 'unwatch it');
select is(oq_watch('shop.part2a', 'p', 'insert, update, delete', '{k}', 'coalesce(new.id, old.id) > 0') ~ 'insert$', true, 'then a partition may be');
select throws_ok(format('select oq_watch(%L, ''p'')', t), 'OQ001', '%below it, which is watched', t)
  from unnest('{shop.part,shop.part2}'::text[]) t;
select oq_watch('shop.part1', 'p1') as x \gset
insert into shop.part values (4, 2), (5, 1), (-6, 2);
insert into shop.part2a values (7, 2);
update shop.part set id = 8 where id = 4;
update shop.part set k = 1 where id = 7;
delete from shop.part where id = 8;
select is(made('p'), '{INSERT 4,INSERT 7,DELETE 7,DELETE 8}', 'and sees what comes through the parent');
select is(made('p1'), '{INSERT 5,INSERT 7}', 'a row that moves away is deleted here and inserted there');
select oq_watch('shop.parent', 'i', 'insert, update') as x \gset
select throws_ok('select oq_watch(''shop.child'', ''i'')', 'OQ001', '%which is watched', 'inheritance');
insert into shop.child values (1);
insert into shop.parent values (2);
update shop.parent set id = id + 10;
select is(made('i'), '{INSERT 2,UPDATE 12 2,UPDATE 11 1}', 'rows of children through the parent');

-- Every way to write.
select oq_watch('shop.orders', 'w', 'insert, update, delete') as x \gset
truncate shop.orders;
copy shop.orders (id, status) from stdin;
1	a
2	b
\.
insert into shop.orders (id) values (2), (3) on conflict (id) do update set status = 'c';
insert into shop.orders (id) values (2), (4) on conflict (id) do nothing;
with gone as (delete from shop.orders where id = 1 returning *), added as (
    insert into shop.orders (id) values (5) returning id)
update shop.orders set status = 'd' where id = 3;
insert into shop.orders (id) select g from generate_series(6, 7) g;
update shop.orders set id = id where false;
select is(array(select unnest(made('w')) order by 1), array['DELETE 1', 'INSERT 1', 'INSERT 2', 'INSERT 3', 'INSERT 4', 'INSERT 5',
    'INSERT 6', 'INSERT 7', 'UPDATE 2 2', 'UPDATE 3 3'], 'COPY, ON CONFLICT, WITH, INSERT SELECT, no row at all');
create table shop.customer (id int primary key);
create table shop.basket (id int, customer int references shop.customer on delete cascade on update cascade);
insert into shop.customer values (1), (2);
insert into shop.basket values (1, 1), (2, 1), (3, 2);
select oq_watch('shop.basket', 'b', 'update, delete') as x \gset
delete from shop.customer where id = 1;
update shop.customer set id = 4;
select is(made('b'), '{DELETE 1,DELETE 2,UPDATE 3 3}', 'by foreign keys');

-- A table changes: columns come, names change.
drop view shop.v;
drop materialized view shop.m;
alter table shop.orders add extra int default 5;
update shop.orders set status = 'e' where id = 2;
select is((select payload -> 'new' ->> 'extra' from oq_jobs where queue_name = 'w'), '5', 'a column that was added');
alter table shop.orders rename to purchases;
alter schema shop rename to store;
alter table store.purchases rename status to state;
alter table store.purchases drop at;
update store.purchases set state = 'f' where id = 2;
select is((select concat_ws('.', payload ->> 'schema', payload ->> 'table', payload -> 'new' ->> 'state') from oq_jobs
    where queue_name = 'w' order by job_id desc limit 1), 'store.purchases.f', 'new names');
select is((select table_name from oq_watches where queue_name = 'w'), 'store.purchases', 'oq_watches knows');

-- Unwatch.
select is(oq_unwatch('store.purchases', 'w'), true, 'unwatch');
select is(oq_unwatch('store.purchases', 'w'), false, 'gone');
select is(oq_unwatch('store.purchases', 'unknown'), false, 'no such queue');
select throws_ok('select oq_unwatch(null, ''w'')', 'OQ001', 'table_name must not be null', 'no table');
select is_empty('select from pg_trigger where tgrelid = ''store.purchases''::regclass and tgname like ''oq%''', 'no trigger');
select is_empty('select from pg_proc where proname = ''oq_watch_1''', 'no function');
select oq_watch('store.basket', 'b2') as x \gset
drop table store.basket;
select is_empty('select from oq_watches where queue_name in (''b'', ''b2'')', 'a table that was dropped is no watch any more');
select oq_watch('store.customer', 'b') as x \gset
select is_empty('select from oq.watch w where not exists (select from pg_class c where c.oid = w.table_id)', 'nor any row');

select results_eq('select * from (select table_name, events, columns, condition, owner, failed, problem from oq_watches
        where queue_name in (''p'', ''p1'')) x order by 1',
    $$values ('store.part1', '{insert}'::text[], null::text[], null::text, current_user::name, 0::bigint, null::text),
        ('store.part2a', '{insert,update,delete}', '{k}', 'coalesce(new.id, old.id) > 0', current_user, 0, null)$$, 'oq_watches');
-- With keys a full queue refuses what would be a new job, and takes a change.
create table shop_full (id int, v int);
select oq_create_queue('full', '{"max_depth": 1}') as x, oq_watch('shop_full', 'full', 'insert, update',
    options => '{"unique_columns": ["id"], "unique_mode": "replace"}') as y \gset
insert into shop_full values (1, 1);
update shop_full set v = 2;
select results_eq('select payload -> ''new'' ->> ''v'', failed from oq_jobs cross join oq_watches w where w.queue_name = ''full''
    and oq_jobs.queue_name = ''full''', $$values ('2', 0::bigint)$$, 'a change in a full queue');
set client_min_messages = error;
insert into shop_full values (2, 1);
reset client_min_messages;
select is((select failed || left(last_error, 5) from oq_watches where queue_name = 'full'), '1OQ006', 'a new key does not fit');

-- A watched table becomes a partition: statements on its parent do not fire what is on it, so it says so.
create table shop_log (id int, k int) partition by list (k);
create table shop_log1 (id int, k int);
select oq_watch('shop_log1', 'log') as x \gset
select is((select problem from oq_watches where queue_name = 'log'), null, 'all is well');
alter table shop_log attach partition shop_log1 for values in (1);
select ok((select problem like '%part of another%oq_watch%' from oq_watches where queue_name = 'log'), 'it has to be watched again');
select oq_watch('shop_log1', 'log') as x \gset
insert into shop_log values (1, 1);
select is(made('log'), '{INSERT 1}', 'and is');
select is((select problem from oq_watches where queue_name = 'log'), null, 'all is well again');

-- A partition that has partitions: its row triggers are copied to them.
create table shop_tree (id int, k int) partition by list (k);
create table shop_tree1 partition of shop_tree for values in (1) partition by list (id);
create table shop_tree1a partition of shop_tree1 for values in (1);
select oq_watch('shop_tree1', 'tree', 'insert, update, delete', options => '{"unique_columns": ["id"]}') as x \gset
create table shop_tree1b partition of shop_tree1 default;
insert into shop_tree values (1, 1), (2, 1);
select results_eq('select unique_key, payload -> ''new'' from oq_jobs where queue_name = ''tree'' order by job_id',
    $$values ('public.shop_tree1:1', '{"id": 1, "k": 1}'::jsonb), ('public.shop_tree1:2', '{"id": 2, "k": 1}')$$, 'through the top');
select is(made_count('tree'), 2, 'both');
update shop_tree1 set k = 1 where id = 1;
delete from shop_tree1b;
select is(made('tree'), '{UPDATE 1 1,DELETE 2}', 'and through itself');

-- reject would fail all rows of a statement for one key.
create table shop_keys (id int);
select throws_ok($$select oq_watch('shop_keys', 'w', options => '{"unique_columns": ["id"], "unique_mode": "reject"}')$$, 'OQ001',
    'options.unique_mode must not be reject', 'reject');
select throws_ok($$select oq_watch('shop_keys', 'w', options => '{"unique_columns": ["id"], "debounce_max": "7 s"}')$$, 'OQ001',
    'options.debounce_max must not be 7 s', 'the value is named');

-- Times without an offset mean what they do where the watch is made.
create table shop_tokyo (id int);
set timezone = 'Asia/Tokyo';
select oq_watch('shop_tokyo', q, options => o || '{"run_at": "2100-01-01 12:00", "expires_at": "2100-01-02 12:00"}')
  from (values ('tokyo1', '{}'::jsonb), ('tokyo2', '{"group_columns": ["id"]}')) v(q, o) \g /dev/null
set timezone = 'UTC';
insert into shop_tokyo values (1);
reset timezone;
select results_eq($$select run_at, expires_at from oq_jobs where queue_name like 'tokyo_'$$,
    $$values (timestamptz '2100-01-01 03:00+00', timestamptz '2100-01-02 03:00+00'), ('2100-01-01 03:00+00', '2100-01-02 03:00+00')$$,
    'the instants of Tokyo');
select is((select array_agg(distinct (options ->> 'run_at')::timestamptz) from oq_watches where table_name = 'public.shop_tokyo'),
    array[timestamptz '2100-01-01 03:00+00'], 'and the view says so');
drop table shop_tokyo;

-- A column that the table has lost shifts nothing.
create table shop_lost (a text, id int, gone int, b text);
alter table shop_lost drop column gone;
select oq_watch('shop_lost', 'lost', 'insert,update,delete', '{b}', 'coalesce((new::public.shop_lost).b, old.b) > ''a''',
    '{"payload_columns": ["b", "id"], "group_columns": ["b", "a"]}') \g /dev/null
insert into shop_lost values ('a', 1, 'b');
update shop_lost set b = 'c';
alter table shop_lost add column d int default 7;
alter table shop_lost drop column d;
delete from shop_lost;
select is(array(select concat_ws(' ', j.payload ->> 'op', j.payload -> 'new', j.payload -> 'old', j.group_key)
      from oq_jobs j where j.queue_name = 'lost' order by j.job_id), array[
    'INSERT {"b": "b", "id": 1} null ["b", "a"]', 'UPDATE {"b": "c", "id": 1} {"b": "b", "id": 1} ["c", "a"]',
    'DELETE null {"b": "c", "id": 1} ["c", "a"]'], 'each job with its values');
drop table shop_lost;

-- Triggers see no values of virtual generated columns.
select :SERVER_VERSION_NUM >= 180000 as has_virtual \gset
\if :has_virtual
create table shop_virtual (gone int, id int, g int generated always as (id * 2) virtual,
    s int generated always as (id * 3) stored);
alter table shop_virtual drop column gone;
select throws_ok(format('select oq_watch(''shop_virtual'', ''v'', ''insert,update'', %s)', a), 'OQ001', m, a)
  from (values ('columns => ''{s,g}''', 'columns must not be ''g'', a virtual generated column'),
    ('condition => ''new.g > 1''', 'condition%virtual%'),
    ('condition => ''(new.id > 1) = (old.g is null)''', 'condition%column g%virtual%'),
    ('condition => ''new::public.shop_virtual is null''', 'condition%column g%virtual%'),
    ('options => ''{"unique_columns": ["g"]}''', 'options.unique_columns%virtual%'),
    ('options => ''{"group_columns": ["g"]}''', 'options.group_columns%virtual%'),
    ('options => ''{"payload_columns": ["id", "g"]}''', 'options.payload_columns%virtual%')) v(a, m);
select oq_watch('shop_virtual', 'v', 'insert,update,delete', condition => 'coalesce(new.s, old.s) > 0')
   \g /dev/null
create trigger copy after insert on shop_virtual for each row execute function oq_enqueue_row('v');
insert into shop_virtual values (1);
update shop_virtual set id = 2;
delete from shop_virtual;
select is(array(select payload - 'schema' - 'table' from oq_jobs where queue_name = 'v' order by job_id), array[
    '{"op": "INSERT", "new": {"id": 1, "s": 3}, "old": null}', '{"op": "INSERT", "new": {"id": 1, "s": 3}, "old": null}',
    '{"op": "UPDATE", "new": {"id": 2, "s": 6}, "old": {"id": 1, "s": 3}}',
    '{"op": "DELETE", "new": null, "old": {"id": 2, "s": 6}}']::jsonb[], 'payloads without them');
drop table shop_virtual;
\endif

-- A column that is used and renamed is a problem that is shown.
create table shop_renamed (a int, b int);
select oq_watch('shop_renamed', 'renamed', 'insert,update', '{b}') \g /dev/null
select oq_watch('shop_renamed', 'renamed2', options => '{"unique_columns": ["a", "b"]}') \g /dev/null
select oq_watch('shop_renamed', 'renamed3', condition => 'new.b > 0') \g /dev/null
alter table shop_renamed rename b to c;
set client_min_messages = error;
insert into shop_renamed values (1, 1);
reset client_min_messages;
select results_eq('select queue_name, problem from oq_watches where queue_name like ''renamed%'' order by 1', $$values
    ('renamed', 'column b is gone or has another name: call oq_watch again'),
    ('renamed2', 'column b is gone or has another name: call oq_watch again'),
    ('renamed3', 'its condition named a column that is gone or has another name: call oq_watch again')$$, 'renamed');
select oq_watch('shop_renamed', 'renamed3', condition => 'new.c > 0') \g /dev/null
select is((select problem from oq_watches where queue_name = 'renamed3'), null, 'watched again');
drop table shop_renamed;

-- A value is one key, and one payload, whatever the writer's settings.
create table shop_values (at timestamptz, during tstzrange, list timestamptz[], i interval, b bytea, f float8, d daterange);
select oq_watch('shop_values', 'values', options => '{"unique_columns": ["at", "during", "list", "i", "b", "f", "d"],
    "group_columns": ["at"]}') \g /dev/null
select oq_watch('shop_values', 'values2', condition => 'new.at::date = ''2025-12-31''') \g /dev/null
prepare one_value as insert into shop_values values ('2026-01-01 00:00+09', '[2026-01-01 00:00+00,)', '{2026-01-01 00:00+00}',
    'P1DT2S', '\x01', 1.0::float8 / 3, '[2026-01-02,2026-02-01)');
set timezone = 'UTC';
execute one_value;
set timezone = 'Asia/Tokyo';
set intervalstyle = 'iso_8601';
set bytea_output = 'escape';
set extra_float_digits = 0;
set datestyle = 'German';
execute one_value;
insert into shop_values default values;
reset timezone;
reset intervalstyle;
reset bytea_output;
reset extra_float_digits;
reset datestyle;
select results_eq('select left(unique_key, 47), group_key from oq_jobs where queue_name = ''values'' order by job_id',
    $$values ('public.shop_values:["2025-12-31T15:00:00+00:00"', '2025-12-31T15:00:00+00:00'), (null, null)$$, 'one key');
select is((select array_agg(distinct payload::text) from oq_jobs where queue_name = 'values2'),
    (select array[payload::text] from oq_jobs where queue_name = 'values' and unique_key is not null), 'and payload');
drop table shop_values;

-- Columns of any name: those that the trigger's function uses for itself too.
create schema shop;
create table shop.names (id int primary key, p point, n text, o text, r text, i text, op text, tg_op text,
    tg_table_name text, tg_table_schema text, schema_name text, table_name text, payload text, new text, old text);
select oq_watch('shop.names', 'names', 'insert,update,delete', options => '{"payload_columns": ["id", "n", "p", "op"]}') as x,
    oq_watch('shop.names', 'names-all', 'insert,update,delete', columns => '{n,p}',
        condition => 'new.id > 0 or old.id > 0') as y \gset
insert into shop.names (id, n, p, op, tg_op, tg_table_name, tg_table_schema) values (1, 'a', '(1,2)', 'b', 'c', 'd', 'e');
update shop.names set n = 'z';
delete from shop.names;
select is(array(select payload from oq_jobs where queue_name = 'names' order by job_id), array[
    jsonb_build_object('op', 'INSERT', 'schema', 'shop', 'table', 'names', 'new', r || '{"n": "a"}', 'old', null),
    jsonb_build_object('op', 'UPDATE', 'schema', 'shop', 'table', 'names', 'new', r || '{"n": "z"}', 'old', r || '{"n": "a"}'),
    jsonb_build_object('op', 'DELETE', 'schema', 'shop', 'table', 'names', 'new', null, 'old', r || '{"n": "z"}')],
    'some columns') from (select jsonb '{"id": 1, "p": "(1,2)", "op": "b"}' as r) r;
select is(array(select payload - 'new' - 'old' from oq_jobs where queue_name = 'names-all' order by job_id), array[
    '{"op": "INSERT", "schema": "shop", "table": "names"}', '{"op": "UPDATE", "schema": "shop", "table": "names"}',
    '{"op": "DELETE", "schema": "shop", "table": "names"}']::jsonb[], 'all columns');

-- 100,000 rows by one statement. Last, since whatever looks at all jobs takes long after it.
create table shop.many (id int, v int);
select oq_watch('shop.many', 'many', 'insert, update, delete', '{v}', 'new.v is distinct from -1') as x \gset
select ok(bool_and(tgtype & 1 = 0), 'a trigger of statements, not of rows') from pg_trigger
    where tgrelid = 'shop.many'::regclass;
insert into shop.many values (0, 0);
update shop.many set v = 1;
begin;
set local track_functions = 'all';
insert into shop.many select g, g from generate_series(1, 99999) g;
update shop.many set v = v + 1;
select ok(sum(calls) < 2000, format('%s calls of functions for 200,000 rows', sum(calls))) from pg_stat_xact_user_functions;
commit;
select is((select array_agg(n order by n) from (select count(*) as n from oq_jobs where queue_name = 'many'
    group by payload ->> 'op') x), '{100000,100001}', 'a job for each row');
select is((select count(*) from oq_jobs where queue_name = 'many' and payload ->> 'op' = 'UPDATE'
    and payload -> 'new' ->> 'id' = payload -> 'old' ->> 'id'
    and (payload -> 'new' ->> 'v')::int = (payload -> 'old' ->> 'v')::int + 1), 100001::bigint, 'old and new belong together');

select finish();
