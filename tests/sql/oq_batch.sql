-- oq_batch, oq_batch_seal, batch_id.

create function tap.batch() returns bigint language sql as $$
    select oq_batch('{"on_success": {"queue_name": "s", "payload": {"well": true}, "priority": 4},
        "on_failure": {"queue_name": "f", "headers": {"h": 1}}, "on_complete": {"queue_name": "c", "options": {"tags": ["t"]}}}')
$$;
create function tap.member(batch bigint, extra jsonb default '{}', queue text default 'm') returns bigint language sql as $$
    select oq_enqueue(queue, options => jsonb_build_object('batch_id', batch) || extra)
$$;
create function tap.fired(batch bigint) returns text[] language sql as $$
    select coalesce(array_agg(queue_name order by queue_name), '{}') from oq_jobs where headers -> 'batch' = to_jsonb(batch)
$$;

-- Times without an offset mean what they do where the batch is made.
set timezone = 'Asia/Tokyo';
select oq_batch('{"on_complete": {"queue_name": "tokyo", "run_at": "2100-01-01 12:00", "options": {"expires_at": "2100-01-02 12:00"}},
    "on_failure": {"queue_name": "x", "expires_at": "2100-01-02 12:00"}}') as b \gset
set timezone = 'UTC';
select oq_batch_seal(:b) \g /dev/null
reset timezone;
select results_eq($$select run_at, expires_at from oq_jobs where queue_name = 'tokyo'$$,
    $$values (timestamptz '2100-01-01 03:00+00', timestamptz '2100-01-02 03:00+00')$$, 'the instants of Tokyo');
select throws_ok($$select oq_batch('{"on_complete": {"queue_name": "x", "run_at": "soon"}}')$$, 'OQ001', 'options.on_complete.run_at%soon',
    'no time');

-- A job that can't be made does not hold the other up, and is made once it can.
select oq_create_queue('tight', '{"max_depth": 1}') \g /dev/null
select oq_batch('{"on_success": {"queue_name": "tight"}, "on_complete": {"queue_name": "wide"}}') as b1,
    oq_batch('{"on_success": {"queue_name": "wide"}, "on_complete": {"queue_name": "tight"}}') as b2 \gset
select oq_enqueue('tight') as t \gset
set client_min_messages = error;
select oq_batch_seal(:b1), oq_batch_seal(:b2) \g /dev/null
select is(fired(b), '{wide}', 'the other one is made') from unnest(array[:b1, :b2]) b;
update oq.todo set due_at = clock_timestamp();
select count(*) from oq_tick() \g /dev/null
select is(fired(b), '{wide}', 'once') from unnest(array[:b1, :b2]) b;
select oq_create_queue('tight', '{"max_depth": 10}') \g /dev/null
update oq.todo set due_at = clock_timestamp();
select count(*) from oq_tick() \g /dev/null
reset client_min_messages;
select is(fired(b), '{tight,wide}', 'and the first, when there is room') from unnest(array[:b1, :b2]) b;
select is_empty('select from oq.batch', 'then the batch is gone');

-- All completed.
select batch() as b \gset
select member(:b), member(:b) \gset
select oq_ack(job_id, lease_token) from oq_lease('m') \gset
select is(fired(:b), '{}', 'open and unsealed');
select oq_ack(job_id, lease_token) from oq_lease('m') \gset
select is(fired(:b), '{}', 'over, but not sealed');
select ok(member(:b) > 0, 'so it takes more');
select is(oq_batch_seal(:b), true, 'sealed');
select is(oq_batch_seal(:b), false, 'once');
select is(fired(:b), '{}', 'one is open');
select throws_ok(format('select member(%s)', :b), 'OQ001', format('options.batch_id must not be %s', :b), 'no more jobs');
select oq_ack(job_id, lease_token) from oq_lease('m') \gset
select is(fired(:b), '{c,s}', 'on_success and on_complete');
select results_eq($$select payload, priority, headers, tags from oq_jobs where queue_name in ('c', 's') order by queue_name$$,
    format($$values ('{}'::jsonb, 0, '{"batch": %1$s}'::jsonb, '{t}'::text[]), ('{"well": true}', 4, '{"batch": %1$s}', null)$$, :b),
    'with their arguments, and the batch in their headers');
select is(oq_batch_seal(:b), false, 'sealed already');
select is(oq_batch_seal(i), false, 'batch ' || coalesce(i::text, 'null'))
  from unnest('{0,-1,9223372036854775807,-9223372036854775808,null}'::bigint[]) i;
select throws_ok(format('select member(%s)', :b), 'OQ001', 'options.batch_id%', 'nor when it is over');
select is_empty('select from oq.batch', 'its row is gone');

-- Sealed last; in one transaction; empty; without any job to make.
begin;
select batch() as b \gset
select member(:b) \gset
select oq_ack(job_id, lease_token) from oq_lease('m') \gset
select is(oq_batch_seal(:b), true, 'sealed at the end');
select is(fired(:b), '{c,s}', 'at once');
commit;
select batch() as b \gset
select is(oq_batch_seal(:b), true, 'an empty one');
select is(fired(:b), '{c,s}', 'succeeds');
select is(oq_batch_seal(oq_batch()), true, 'no options');
select is(oq_batch_seal(oq_batch('{"on_success": null}')), true, 'null');
select is(oq_batch_seal(0), false, 'unknown');
select is(oq_batch_seal(-1), false, 'below 0');
select is(oq_batch_seal(null), false, 'null');
select is(oq_batch_seal(9223372036854775807), false, 'largest');

-- A failure of one, whatever it is, and of all.
create function tap.ends(how text) returns text[] language plpgsql as $$
declare
    v_batch bigint := batch();
    v_queue text := 'm-' || how;
    v_a     bigint := member(v_batch, '{"ttl": "1 hour"}', v_queue);
    v_b     bigint := member(v_batch, '{}', 'm');
begin
    perform oq_batch_seal(v_batch);
    case how
    when 'nack' then perform oq_nack(job_id, lease_token, 'no', retry => false) from oq_lease(v_queue);
    when 'cancel' then perform oq_cancel(v_a);
    when 'expire' then
        perform pass_lives();
        perform oq_expire();
    when 'purge' then perform oq_purge(v_queue, 'ready');
    when 'drop' then perform oq_drop_queue(v_queue, force => true);
    end case;
    if fired(v_batch) <> '{}' then
        return '{early}';
    end if;
    perform oq_ack(job_id, lease_token) from oq_lease('m');
    return fired(v_batch);
end
$$;
select is(ends(h), '{c,f}', h) from unnest('{nack,cancel,expire,purge,drop}'::text[]) h;
select results_eq($$select distinct headers - 'batch' from oq_jobs where queue_name = 'f'$$, $$values ('{"h": 1}'::jsonb)$$,
    'headers of its own stay');
select is_empty('select from oq.batch_failure', 'no note is left');

-- The first end of a member counts; a redrive is not waited for.
select batch() as b \gset
select member(:b, '{}', 'dies') \gset
select kill_job('dies', 'no') \gset
select oq_batch_seal(:b) \gset
select is(fired(:b), '{c,f}', 'died');
select oq_redrive('dies') \gset
select oq_ack(job_id, lease_token) from oq_lease('dies') \gset
select is(fired(:b), '{c,f}', 'and nothing more when it is redriven');

-- Members that depend on each other, many at once, and members of two batches.
select batch() as b \gset
select batch() as b2 \gset
select count(*) from oq_enqueue_many(format('[{"queue_name": "dag", "ref": "a", "batch_id": %1$s},
    {"queue_name": "dag", "depends_on_refs": ["a"], "options": {"batch_id": %1$s}},
    {"queue_name": "dag", "depends_on_refs": ["a"], "batch_id": %2$s}]', :b, :b2)::jsonb) \gset
select oq_batch_seal(:b), oq_batch_seal(:b2) \gset
select oq_cancel(job_id) from oq_jobs where queue_name = 'dag' and state = 'ready' \gset
select is(fired(:b), '{c,f}', 'the failure of a parent cancels members');
select is(fired(:b2), '{c,f}', 'of another batch, too');
select batch() as b \gset
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'lots', 'batch_id', :b))
    from generate_series(1, 3000))) \gset
select oq_batch_seal(:b) \gset
select count(*) from (select array_agg(job_id) ids, array_agg(lease_token) tokens
    from oq_lease('lots', max_jobs => 3000)) j cross join lateral oq_ack_many(j.ids, j.tokens) \gset
select is(fired(:b), '{c,s}', 'three thousand acked by one call');

-- One that gets an existing job by its unique key is no member.
select oq_enqueue('u', unique_key => 'k') as u \gset
select batch() as b \gset
select is(oq_enqueue('u', unique_key => 'k', options => jsonb_build_object('batch_id', :b)), :u::bigint, 'the first job');
select oq_batch_seal(:b) \gset
select is(fired(:b), '{c,s}', 'the batch is empty');

-- Bad input: nothing is made.
select throws_ok(format('select oq_batch(%L)', jsonb_build_object('on_success', jsonb_build_object('queue_name', 'x', 'headers',
    jsonb_build_object('h', repeat('x', 65527))))), 'OQ001', 'options.on_success.headers%', 'headers with no room for the batch');
select ok(oq_batch(jsonb_build_object('on_success', jsonb_build_object('queue_name', 'x', 'headers', h))) > 0, 'headers')
  from (values (jsonb_build_object('h', repeat('x', 65000))), ('null'), ('{"batch": "b"}')) v(h);
select throws_ok(format('select oq_batch(%L)', o), 'OQ001', m, coalesce(o, 'null'))
  from (values (null, 'options%null%'), ('null', 'options%null%'), ('[]', 'options%[]%'), ('1', 'options%1%'),
    ('{"on_sucess": {"queue_name": "x"}}', 'options%on_sucess%'), ('{"on_success": 1}', 'options.on_success%1%'),
    ('{"on_success": "q"}', 'options.on_success%q%'), ('{"on_success": [{"queue_name": "x"}]}', 'options.on_success%'),
    ('{"on_success": {}}', '%queue_name%NULL%'), ('{"on_failure": {"queue_name": "a b"}}', '%a b%'),
    ('{"on_complete": {"queue_name": "x", "priority": 99999}}', 'options.on_complete.priority%99999%'),
    ('{"on_complete": {"queue_name": "x", "options": {"dealy": 1}}}', 'options.on_complete%dealy%'),
    ('{"on_complete": {"queue_name": "x", "ref": "a"}}', 'options.on_complete%ref%'),
    ('{"on_complete": {"queue_name": "x", "depends_on": [999999]}}', 'options.on_complete.depends_on%999999%'),
    ('{"on_complete": {"queue_name": "x", "batch_id": 999999}}', 'options.on_complete.batch_id%999999%')) v(o, m);
create function tap.hint_of(statement text) returns text language plpgsql as $$
declare
    v_hint text;
begin
    execute statement;
    return 'no error';
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return v_hint;
end
$$;
select is(hint_of($$select oq_batch('{"on_success": {"queue_name": "x", "dealy": 1}}')$$), 'any argument or option of oq_enqueue',
    'the hint offers no refs');
select throws_ok(format('select oq_enqueue(''x'', options => %L)', o), 'OQ001', m, o)
  from (values ('{"batch_id": 999999}', 'options.batch_id must not be 999999'), ('{"batch_id": 0}', '%batch_id%0%'),
    ('{"batch_id": -1}', '%batch_id%-1%'), ('{"batch_id": "1"}', '%batch_id%1%'), ('{"batch_id": 1.5}', '%batch_id%1.5%'))
    v(o, m);
select throws_ok($$select * from oq_enqueue_many('[{"queue_name": "x"}, {"queue_name": "x", "batch_id": 999999}]')$$,
    'OQ001', 'jobs[1].batch_id must not be 999999', 'unknown, in many');

-- Rights: the owner's, when it is made and when it fires; who acks needs none.
create role batch_p in role oq_producer;
create role batch_w in role oq_worker;
select oq_create_queue('secret', '{"restricted": true}') \gset
set role batch_p;
select throws_ok($$select oq_batch('{"on_success": {"queue_name": "secret"}}')$$, '42501', '%batch_p may not produce%',
    'no right when it is made');
reset role;
select oq_grant('secret', 'batch_p', '{produce}') \gset
set role batch_p;
select oq_batch('{"on_success": {"queue_name": "secret"}}') as b \gset
select member(:b, '{}', 'work') \gset
select oq_batch_seal(:b) \gset
set role batch_w;
select oq_ack(job_id, lease_token) from oq_lease('work') \gset
reset role;
select is(fired(:b), '{secret}', 'the worker may not, the owner may');
set role batch_p;
select oq_batch('{"on_success": {"queue_name": "secret"}}') as b \gset
select member(:b, '{}', 'work') \gset
select oq_batch_seal(:b) \gset
reset role;
select oq_revoke('secret', 'batch_p', '{produce}') \gset
set client_min_messages = error;
select is((select oq_ack(job_id, lease_token) from oq_lease('work')), true, 'the ack is not disturbed');
select is(fired(:b), '{}', 'no right when it fires');
update oq.todo set due_at = clock_timestamp();
select count(*) from oq_tick() \gset
select is(fired(:b), '{}', 'nor later');
select oq_grant('secret', 'batch_p', '{produce}') \gset
update oq.todo set due_at = clock_timestamp();
select count(*) from oq_tick() \gset
reset client_min_messages;
select is(fired(:b), '{secret}', 'made up for when the right is there');
select oq_revoke('secret', 'batch_p', '{produce}') \gset
drop role batch_p;
drop role batch_w;

-- The id as a string, as drivers give a bigint.
select oq_batch() as s \gset
select is(state_of(oq_enqueue('s', options => jsonb_build_object('batch_id', :'s'))), 'ready', 'batch_id as a string');
select is(oq_batch_seal(:s), true, 'sealed');
select throws_ok(format('select oq_enqueue(''s'', options => %L)', jsonb_build_object('batch_id', b)), 'OQ001',
    'options.batch_id must not be ' || b || '%', 'batch_id ' || b) from unnest('{x,1.5,-1,true}'::text[]) b;

select finish();
