-- depends_on, depends_on_refs, on_parent_failure, oq_parents.

select oq_enqueue('p', '{"n": 1}') as a \gset
select oq_enqueue('p', '{"n": 2}') as b \gset
select oq_enqueue('c', options => format('{"depends_on": [%s, %s, %s]}', :b, :a, :b)::jsonb) as c \gset
select is(state_of(:c), 'waiting', 'waits for its parents');
select is((select waiting from oq_stats('c')), 1::bigint, 'and is counted so');
select is_empty($$select from oq_lease('c')$$, 'nobody gets it');
select is((select array_agg(parent_id || ' ' || state order by parent_id) from oq_parents(:c)),
    array[:a || ' ready', :b || ' ready'], 'its parents, each once');
select job_id as id, lease_token as token from oq_lease('p') \gset
select is(oq_ack(:id, :token, '{"answer": 42}'), true, 'the first parent');
select is(state_of(:c), 'waiting', 'one is left');
select is_empty($$select from oq_lease('c')$$, 'still nobody');
select job_id as id, lease_token as token from oq_lease('p') \gset
select oq_nack(:id, :token, 'once more', retry_after => '0') \gset
select is(state_of(:c), 'waiting', 'a retry is no end');
select oq_ack(job_id, lease_token, '[1]') from oq_lease('p') \gset
select is(state_of(:c), 'ready', 'free with the last');
select results_eq(format('select * from oq_parents(%s)', :c),
    format($$values (%s::bigint, 'completed', '{"answer": 42}'::jsonb, null::text), (%s, 'completed', '[1]', null)$$, :a, :b),
    'their results');
select is((select array_agg(job_id) from oq_lease('c')), array[:c::bigint], 'and is leased');
select is_empty('select * from oq_parents(' || :a || ')', 'no parents');
select is_empty('select * from oq_parents(0)', 'no such job');
select is_empty('select * from oq_parents(null)', 'null');

-- Parents that are over already.
select is(state_of(oq_enqueue('c', options => format('{"depends_on": [%s, %s]}', :a, :b)::jsonb)), 'ready', 'completed before');
select oq_enqueue('p') as d \gset
select oq_cancel(:d) \gset
select oq_enqueue('c', options => format('{"depends_on": [%s, %s]}', :a, :d)::jsonb) as e \gset
select results_eq(format('select state, error from oq_result(%s)', :e),
    format($$values ('cancelled', 'parent %s has failed')$$, :d), 'failed before: cancelled at once');
select is(state_of(oq_enqueue('c', options => format('{"depends_on": [%s], "on_parent_failure": "run"}', :d)::jsonb)),
    'ready', 'failed before, run');
select oq_enqueue('p', max_retries => 0) as dd \gset
select kill_job('p', 'broken') \gset
select results_eq(format('select state, error from oq_parents(%s)', (select oq_enqueue('c',
    options => format('{"depends_on": [%s], "on_parent_failure": "run"}', :dd)::jsonb))),
    $$values ('dead', 'broken')$$, 'why a parent failed');
select is(state_of(oq_enqueue('c', options => '{"depends_on": []}')), 'ready', 'on none');
select is(state_of(oq_enqueue('c', options => '{"depends_on": null, "on_parent_failure": null}')), 'ready', 'null');
select is(state_of(oq_enqueue('c', options => '{"on_parent_failure": "run"}')), 'ready', 'run, on none');

-- A failure cancels, and those who depend on that; or lets run. However it fails.
create function tap.ends(how text) returns text[] language plpgsql as $$
declare
    v_queue text := 'f-' || how;
    v_a bigint := oq_enqueue(v_queue, max_retries => 0, options => '{"ttl": "1 hour"}');
    v_b bigint := oq_enqueue('g', options => jsonb_build_object('depends_on', array[v_a]));
    v_c bigint := oq_enqueue('g', options => jsonb_build_object('depends_on', array[v_b]));
    v_d bigint := oq_enqueue('g', options => jsonb_build_object('depends_on', array[v_c], 'on_parent_failure', 'run'));
    v_e bigint := oq_enqueue('g', options => jsonb_build_object('depends_on', array[v_a], 'on_parent_failure', 'run'));
    v_states text[];
begin
    case how
    when 'nack' then perform oq_nack(job_id, lease_token, 'no') from oq_lease(v_queue);
    when 'cancel' then perform oq_cancel(v_a);
    when 'expire' then
        perform pass_lives();
        perform oq_expire();
    when 'lost' then
        perform oq_create_queue(v_queue, '{"max_lost_leases": 1}');
        perform oq_lease(v_queue);
        perform pass_leases();
        perform oq_reap();
    when 'purge' then perform oq_purge(v_queue, 'ready');
    when 'drop' then perform oq_drop_queue(v_queue, force => true);
    end case;
    return array[state_of(v_b), state_of(v_c), state_of(v_d), state_of(v_e)];
end
$$;
select is(ends(h), '{cancelled,cancelled,ready,ready}', h)
  from unnest('{nack,cancel,expire,lost,purge,drop}'::text[]) h;

-- A run_at holds after the parents; a group, too; a time to live binds while it waits.
select oq_enqueue('p2') as p \gset
select oq_enqueue('c2', run_at => now() + interval '1 hour', options => jsonb_build_object('depends_on', array[:p])) as later \gset
select oq_enqueue('c2', group_key => 'g') as g1 \gset
select oq_enqueue('c2', group_key => 'g', options => jsonb_build_object('depends_on', array[:p])) as g2 \gset
select oq_enqueue('c2', priority => 3, options => jsonb_build_object('depends_on', array[:p])) as high \gset
select oq_enqueue('c3', options => jsonb_build_object('depends_on', array[:p], 'ttl', '1 hour')) as dies \gset
select pass_lives() \gset
select oq_expire() \gset
select is(state_of(:dies), 'expired', 'expires while it waits');
select oq_ack(job_id, lease_token) from oq_lease('p2') \gset
select is(state_of(:later), 'scheduled', 'its time has not come');
select is(state_of(:g2), 'waiting', 'its turn has not come');
select is((select array_agg(job_id) from oq_lease('c2', max_jobs => 9)), array[:high, :g1]::bigint[],
    'by priority, and the group''s first');

-- Changed, cancelled and redriven while it waits.
select oq_enqueue('p4') as p \gset
select oq_enqueue('c4', options => jsonb_build_object('depends_on', array[:p])) as c \gset
select is(oq_update(:c, '{"priority": 7, "payload": 1}'), true, 'changed');
select is(state_of(:c), 'waiting', 'and waits');
select is(oq_cancel(:c), true, 'cancelled');
select is((select array_agg(r) from oq_redrive('c4', '{"state": "cancelled"}') r), array[:c::bigint], 'redriven');
select is(state_of(:c), 'ready', 'one that is redriven waits for nobody');
select oq_ack(job_id, lease_token) from oq_lease('p4') \gset
select is(state_of(:c), 'ready', 'nor is it moved when the parent ends');

-- In one transaction, and without a daemon.
begin;
select oq_enqueue('t') as p \gset
select oq_enqueue('t', options => jsonb_build_object('depends_on', array[:p])) as c \gset
select oq_ack(job_id, lease_token) from oq_lease('t') \gset
select is((select array_agg(job_id) from oq_lease('t')), array[:c::bigint], 'parent and child in one transaction');
commit;

-- The lease is older than the first dependent: the tick tells it, or finds it later.
select oq_enqueue('old') as p \gset
select job_id as id, lease_token as token from oq_lease('old') \gset
select oq_enqueue('new', options => jsonb_build_object('depends_on', array[:p])) as c \gset
select count(*) from oq_tick() \gset
select oq_ack(:id, :token) \gset
select is(state_of(:c), 'ready', 'told by a tick');
select oq_enqueue('old2') as p \gset
select job_id as id, lease_token as token from oq_lease('old2') \gset
select oq_enqueue('new2', options => jsonb_build_object('depends_on', array[:p])) as c \gset
select oq_ack(:id, :token) \gset
select is((select array_agg(job_id) from oq_lease('new2')), array[:c::bigint], 'found by a lease');
select oq_enqueue('old3') as p \gset
select job_id as id, lease_token as token from oq_lease('old3') \gset
select oq_enqueue('new3', options => jsonb_build_object('depends_on', array[:p])) as c \gset
select oq_ack(:id, :token) \gset
delete from oq.todo;
select set_config('test.x', oq.sweep_links(1000)::text, false) \gset
select count(*) from oq_tick() \gset
select is(state_of(:c), 'ready', 'found by the sweep');
-- What a fault has freed of its edges.
select oq_enqueue('old4') as p \gset
select oq_enqueue('new4', options => jsonb_build_object('depends_on', array[:p])) as c \gset
delete from oq.dependency where child_id = :c;
delete from oq.todo;
select results_eq($$select law, violations, sample from oq_audit() where violations > 0$$,
    format($$values ('child_stuck', 1::bigint, '%s')$$, :c), 'oq_audit sees who waits for nobody');
select set_config('test.x', oq.sweep_links(1000)::text, false) \gset
select count(*) from oq_tick() \gset
select is(state_of(:c), 'ready', 'the sweep finds it');

-- More children than one call frees.
select oq_enqueue('many') as p \gset
select count(*) from oq_enqueue_many((select jsonb_agg(jsonb_build_object('queue_name', 'kids', 'depends_on', array[:p]))
    from generate_series(1, 2500))) \gset
select oq_ack(job_id, lease_token) from oq_lease('many') \gset
select is((select ready from oq_stats('kids')), 1001::bigint, 'a thousand at once');
select count(*) from oq_tick() \gset
select count(*) from oq_tick() \gset
select is((select ready from oq_stats('kids')), 2500::bigint, 'the rest by the tick');
select is_empty('select from oq.dependency d where d.parent_id = ' || :p, 'no edge is left');

-- What is not kept, or went with its queue, is not shown.
select oq_create_queue('unkept', '{"keep": "none"}') \gset
select oq_enqueue('unkept') as a \gset
select oq_enqueue('dropped') as b \gset
select oq_enqueue('c5', options => format('{"depends_on": [%s, %s]}', :a, :b)::jsonb) as c \gset
select oq_ack(job_id, lease_token, '1') from oq_lease('unkept') \gset
select oq_ack(job_id, lease_token, '1') from oq_lease('dropped') \gset
select oq_drop_queue('dropped') \gset
select results_eq(format('select * from oq_parents(%s)', :c),
    format('values (%s::bigint, null::text, null::jsonb, null::text), (%s, null, null, null)', :a, :b), 'neither');

-- Bad input.
select throws_ok(format('select oq_enqueue(''x'', options => %L)', o), 'OQ001', m, o)
  from (values ('{"depends_on": [0]}', 'options.depends_on must not be 0'),
    ('{"depends_on": [-1]}', 'options.depends_on must not be -1'),
    ('{"depends_on": [999999999]}', 'options.depends_on must not be 999999999'),
    ('{"depends_on": [null]}', 'options.depends_on%null%'), ('{"depends_on": ["a"]}', 'options.depends_on%a%'),
    ('{"depends_on": [1.5]}', 'options.depends_on%1.5%'), ('{"depends_on": {}}', 'options.depends_on%{}%'),
    ('{"depends_on": 1}', 'options.depends_on%1%'), ('{"depends_on": [1], "on_parent_failure": "wait"}', '%wait%'),
    ('{"depends_on": [99999999999999999999]}', 'options.depends_on%99999999999999999999%')) v(o, m);
select throws_ok($$select * from oq_enqueue_many('[{"queue_name": "x"}, {"queue_name": "x", "depends_on": [999999999]}]')$$,
    'OQ001', 'jobs[1].depends_on must not be 999999999', 'unknown, in many');

-- Rights: to depend on a job of a restricted queue takes a right there; so does what became of it.
create role parents_p in role oq_producer;
create role parents_w in role oq_worker;
select oq_create_queue('secret', '{"restricted": true}') \gset
select oq_enqueue('secret') as s \gset
select oq_enqueue('open', options => jsonb_build_object('depends_on', array[:s])) as c \gset
set role parents_p;
select throws_ok(format('select oq_enqueue(''open'', options => ''{"depends_on": [%s]}'')', :s), '42501',
    '%parents_p%may not produce%', 'no right');
select throws_ok('select * from oq_parents(1)', '42501', '%oq_parents%', 'producers do not look');
reset role;
select oq_ack(job_id, lease_token, '"secret"') from oq_lease('secret') \gset
set role parents_w;
select results_eq(format('select * from oq_parents(%s)', :c),
    format('values (%s::bigint, null::text, null::jsonb, null::text)', :s), 'a worker of the child, not of the parent');
reset role;
select oq_grant('secret', 'parents_w', '{consume}') \gset
select oq_grant('secret', 'parents_p', '{produce}') \gset
set role parents_w;
select is((select result from oq_parents(:c)), '"secret"'::jsonb, 'a worker of both');
set role parents_p;
select ok(oq_enqueue('open', options => format('{"depends_on": [%s]}', :s)::jsonb) > 0, 'with the right');
reset role;
drop role parents_p;
drop role parents_w;

select finish();
