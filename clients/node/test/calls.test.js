import assert from 'node:assert/strict';
import test from 'node:test';
import pg from 'pg';
import * as oq from '../index.js';
import { drain, jobs } from '../testing.js';
import { ask, failed, pool, url } from './help.js';

// The program's own parsers have no say in what the library reads.
for (const oid of [16, 20, 23, 1184, 3802]) pg.types.setTypeParser(oid, () => 'nonsense');

test('enqueue on what the caller has, who commits', async (t) => {
  const client = new pg.Client(url);
  await client.connect();
  t.after(() => client.end());
  const tx = await pool.connect();
  await tx.query('begin');
  const made = [];
  for (const [on, db] of Object.entries({ pool, client, tx })) {
    const queue = `on-${on}`;
    const id = await oq.enqueue(db, queue, { to: 'a@b' }, {
      priority: 3,
      delay: 3_600_000,
      maxRetries: 0,
      ttl: '2 hours',
      tags: ['x', '<&>'],
      headers: { n: 1 },
      retry: { kind: 'linear', base: 1500 },
    });
    assert.equal(typeof id, 'bigint');
    const job = await oq.get(db, id);
    assert.deepEqual(
      { ...job, createdAt: 0, runAt: 0, expiresAt: job.expiresAt - job.createdAt },
      {
        jobId: id, queueName: queue, state: 'scheduled', priority: 3, attempt: 0, maxRetries: 0, failures: 0,
        lostLeases: 0, runAt: 0, createdAt: 0, expiresAt: 7_200_000, workerId: null, leasedAt: null,
        leaseExpiresAt: null, finishedAt: null, reason: null, groupKey: null, uniqueKey: null,
        payload: { to: 'a@b' }, headers: { n: 1 }, tags: ['x', '<&>'], progress: null, result: null, error: null,
      },
    );
    assert.ok(Math.abs(job.runAt - job.createdAt - 3_600_000) < 1000);
    const ids = await oq.enqueueBulk(db, queue, new Set(['1', { a: '"\\{}' }, null, [3]]), { priority: -1 });
    assert.deepEqual([ids.length, ids.every((x, i) => i === 0 || x > ids[i - 1])], [4, true]);
    const [one, other, third] = await oq.enqueueMany(db, [
      { queue, payload: 'x', priority: 9, ref: 'a' },
      { queue: `${queue}.2`, payload: [1], maxRetries: 7, dependsOnRefs: ['a'], dependsOn: ids.slice(0, 1) },
      { queue: `${queue}.2`, payload: null },
    ]);
    assert.equal((await oq.get(db, third.jobId)).payload, null);
    assert.deepEqual([one.inserted, other.inserted], [true, true]);
    const second = await oq.get(db, other.jobId);
    assert.deepEqual([second.state, second.maxRetries, second.payload], ['waiting', 7, [1]]);
    assert.equal(await oq.update(db, one.jobId, { priority: 1, payload: null, headers: { a: 2 } }), true);
    assert.equal(await oq.update(db, id, { runAt: null, maxRetries: null, headers: null }), true);
    const back = await oq.get(db, id);
    assert.deepEqual([back.state, back.maxRetries, back.headers], ['ready', 3, null]);
    assert.deepEqual((await jobs(db, queue)).map((j) => j.payload), [{ to: 'a@b' }, '1', { a: '"\\{}' }, null, [3], null]);
    assert.equal(await oq.cancel(db, one.jobId, 'for the test'), true);
    assert.equal(await oq.cancel(db, one.jobId), false);
    assert.equal((await oq.get(db, one.jobId)).error, 'for the test');
    assert.equal((await oq.result(db, ids[0])).state, 'ready');
    assert.equal(await oq.get(db, 2n ** 62n), undefined);
    assert.equal(await oq.result(db, 2n ** 62n), undefined);
    made.push(id);
  }
  await tx.query('rollback');
  tx.release();
  assert.deepEqual(await Promise.all(made.map(async (id) => (await oq.get(pool, id)) !== undefined)), [true, true, false]);
});

test('bigints are exact both ways, numbers of a payload are as exact as JSON', async () => {
  let sent;
  const db = { query: async (q) => ((sent = q), { rows: [['9007199254740993', 't']] }) };
  const big = 2n ** 60n + 1n;
  const id = await oq.enqueue(db, 'q', {}, { dependsOn: [big, '1152921504606846979', 7], batchId: big });
  assert.equal(id, 9007199254740993n);
  assert.equal(sent.values[8], `{"depends_on":[${big},1152921504606846979,7],"batch_id":${big}}`);
  await oq.cancel(db, big);
  assert.equal(sent.values[0], String(big));
  for (const wrong of [2 ** 53, 1.5, NaN, '1x', null, undefined, {}]) {
    await assert.rejects(oq.cancel(db, wrong), oq.ArgumentError, String(wrong));
  }
  await oq.enqueue(pool, 'exact', { n: 1 });
  await pool.query("select oq_enqueue('exact', '{\"n\": 9007199254740993}')");
  const texts = [];
  await drain(pool, 'exact', (job) => void texts.push([job.payload.n, job.payloadText]));
  assert.deepEqual(texts, [[1, '{"n": 1}'], [9007199254740992, '{"n": 9007199254740993}']]);
});

test('every option arrives by its name in SQL', async () => {
  let sent;
  const db = { query: async (q) => ((sent = q), { rows: [['1', 't']] }) };
  const at = new Date('2030-01-02T03:04:05.006Z');
  const options = {
    delay: 1500, ttl: '1 day', expiresAt: at, tags: [], uniqueMode: 'debounce', uniqueFor: 60_000, debounceMax: 1,
    dependsOn: [], onParentFailure: 'run', batchId: 7, retry: { kind: 'fixed', base: 10, factor: 1.5, max: '1 h', jitter: 0 },
  };
  const json = '"delay":"1.500000 seconds","ttl":"1 day","expires_at":"2030-01-02T03:04:05.006Z","tags":[],' +
    '"unique_mode":"debounce","unique_for":"60.000000 seconds","debounce_max":"0.001000 seconds","depends_on":[],' +
    '"on_parent_failure":"run","batch_id":7,"retry":{"kind":"fixed","factor":1.5,"jitter":0,"base":"0.010000 seconds","max":"1 h"}';
  const given = { priority: -2, runAt: at, maxRetries: 0, uniqueKey: 'u', groupKey: 'g', headers: { h: 1 } };
  await oq.enqueue(db, 'q', 5, { ...given, ...options });
  assert.deepEqual(sent.values, ['q', '5', -2, at.toISOString(), 0, 'u', 'g', '{"h":1}', `{${json}}`]);
  await oq.enqueueMany(db, [{ queue: 'q', payload: 5, ...given, ref: 'r', dependsOnRefs: ['s'], ...options }]);
  assert.equal(
    sent.values[0],
    '[{"queue_name":"q","payload":5,"priority":-2,"run_at":"2030-01-02T03:04:05.006Z","max_retries":0,"unique_key":"u",' +
      `"group_key":"g","headers":{"h":1},"ref":"r","depends_on_refs":["s"],${json}}]`,
  );
});

test('errors, by SQLSTATE', async () => {
  await pool.query(`select oq_create_queue('full', '{"max_depth": 1}')`);
  await oq.enqueue(pool, 'full');
  await oq.enqueue(pool, 'unique', 1, { uniqueKey: 'k' });
  const loop = {};
  loop.loop = loop;
  for (const [type, code, call] of [
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, '')],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', 1, { priority: 40_000 })],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', 1, { prioritty: 1 })],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', 1, { delay: NaN })],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', 1, { runAt: new Date(NaN) })],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', loop)],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', 1n)],
    [oq.ArgumentError, 'OQ001', () => oq.enqueue(pool, 'q', () => {})],
    [oq.ArgumentError, 'OQ001', () => oq.enqueueBulk(pool, 'q', [1], { delay: 1 })],
    [oq.ArgumentError, 'OQ001', () => oq.enqueueMany(pool, [{ queue: 'q' }, { queue: 'q', payloads: 1 }])],
    [oq.DuplicateJobError, 'OQ005', () => oq.enqueue(pool, 'unique', 1, { uniqueKey: 'k', uniqueMode: 'reject' })],
    [oq.QueueFullError, 'OQ006', () => oq.enqueue(pool, 'full')],
  ]) {
    await assert.rejects(call, (error) => failed(error, code, type) && error instanceof oq.OpenQueueError);
  }
  await assert.rejects(oq.enqueueMany(pool, [{ queue: 'q' }, { queue: 'q', payloads: 1 }]), /^\w+: jobs\[1\]: no such option: payloads/);
  await assert.rejects(oq.enqueue(pool, 'q', 1, { prio: 1 }),
    /no such option: prio \(there are priority, runAt, maxRetries, uniqueKey, groupKey, headers, delay, .*batchId\)/);
  await assert.rejects(oq.enqueueBulk(pool, 'q', [1], { headers: {} }), /no such option: headers \(there are priority, runAt, maxRetries\)/);
  for (const db of [url, undefined, null, {}]) {
    for (const call of [() => oq.enqueue(db, 'q'), () => oq.get(db, 1n), () => drain(db, 'q', () => {})]) {
      await assert.rejects(call, (error) => error instanceof TypeError && /db is no pg Pool or Client/.test(error.message));
    }
  }
  await assert.rejects(oq.enqueue(pool, ''), (error) => {
    assert.ok(error.hint && error.message.includes(error.hint));
    assert.equal(error.cause.code, 'OQ001');
    return oq.sqlstate(error) === 'OQ001';
  });
  const client = await pool.connect();
  await client.query('begin; set local role oq_worker');
  await assert.rejects(oq.enqueue(client, 'q'), (error) => failed(error, '42501', oq.NotPermittedError));
  await client.query('rollback');
  client.release();
  await assert.rejects(pool.query('select 1/0'), (error) => oq.sqlstate(error) === '22012');
  for (const code of ['EPIPE', 'EPERM', 'ENOENT', undefined, 5]) assert.equal(oq.sqlstate({ code }), '');
});

test('what a handler does is what happens', async () => {
  const queue = 'verdicts';
  const cause = new TypeError(`the cause \ud800\0${'é'.repeat(12_000)}`);
  const does = {
    completed: () => ({ ok: '<>' }),
    scheduled: () => { throw new Error('outside', { cause }); },
    dead: () => { throw new oq.Discard(cause); },
    released: () => { throw new oq.Snooze(3_600_000); },
    later: () => { throw new oq.RetryAfter(7_200_000, 'busy'); },
    expected: () => { throw new oq.Failed('as it goes'); },
    nothing: () => { throw undefined; },
    strange: () => { throw { toString() { throw 1; } }; },
    hostile: () => { throw Object.defineProperty(new Error('x'), 'stack', { get() { throw 1; } }); },
    unjson: () => 1n,
    undecoded: (job) => job.payload.x,
    pause: () => { throw new oq.RetryAfter('5 minuts'); },
  };
  const ids = {};
  for (const name of Object.keys(does)) ids[name] = await oq.enqueue(pool, queue, name);
  const decode = (name) => {
    if (name === 'undecoded') throw new TypeError('no such thing');
    return name;
  };
  const done = await drain(pool, queue, (job) => does[JSON.parse(job.payloadText)](job), { decode });
  const states = Object.fromEntries(done.map((d) => [JSON.parse(d.job.payloadText), d.state]));
  assert.deepEqual(states, {
    completed: 'completed', scheduled: 'scheduled', dead: 'dead', released: 'released', later: 'scheduled',
    expected: 'scheduled', nothing: 'scheduled', strange: 'scheduled', hostile: 'scheduled', unjson: 'scheduled',
    undecoded: 'scheduled', pause: 'scheduled',
  });
  const error = async (name) => (await oq.get(pool, ids[name])).error;
  assert.deepEqual(await oq.result(pool, ids.completed), { state: 'completed', result: { ok: '<>' }, error: undefined });
  assert.match(await error('scheduled'), /^Error: outside\n    at .*calls\.test\.js[^]*\ncaused by TypeError: the cause \ufffd\ufffdé+/);
  assert.equal((await error('scheduled')).length <= 10_000, true);
  assert.match(await error('dead'), /^TypeError: the cause \ufffd\ufffdé{4000}/);
  assert.equal(await error('later'), 'busy');
  assert.ok((await oq.get(pool, ids.later)).runAt - Date.now() > 7_100_000);
  assert.equal(await error('expected'), 'as it goes');
  assert.equal(await error('nothing'), 'undefined');
  assert.equal(await error('strange'), 'an error without a text');
  assert.match(await error('undecoded'), /TypeError: no such thing/);
  assert.match(await error('pause'), /ArgumentError: pause 5 minuts/);
  assert.equal((await oq.get(pool, ids.released)).attempt, 0);
  assert.equal(await oq.workOne(pool, 'empty', () => {}), undefined);
});

test('drain ends where a queue fills itself', async () => {
  await oq.enqueue(pool, 'endless');
  await assert.rejects(drain(pool, 'endless', () => void oq.enqueue, { maxJobs: 0 }), /not empty after 0 jobs/);
  let n = 0;
  await assert.rejects(drain(pool, 'endless', async () => { n++; await oq.enqueue(pool, 'endless'); }, { maxJobs: 5 }), /after 5 jobs/);
  assert.equal(n, 5);
});

test('drain in a transaction: a handler whose SQL fails fails its job, not the test', async (t) => {
  const client = await pool.connect();
  t.after(() => client.release(true));
  await client.query('begin; create temp table did (what text) on commit drop');
  const [wrong] = await oq.enqueueBulk(client, 'sql', ['wrong', 'snooze', 'right'], { maxRetries: 0 });
  const does = { wrong: () => client.query('select 1/0'), snooze: () => { throw new oq.Snooze(60_000); }, right: () => {} };
  const done = await drain(client, 'sql', async (job) => {
    await client.query('insert into did values ($1)', [job.payload]);
    await does[job.payload]();
  });
  assert.deepEqual(done.map((d) => d.state), ['dead', 'released', 'completed']);
  assert.equal(done[0].error.code, '22012');
  assert.match((await oq.get(client, wrong)).error, /division by zero/);
  assert.equal(await ask("select string_agg(what, ' ') from did", [], client), 'snooze right');
  await assert.rejects(client.query('release savepoint openqueue_drain'), { code: '3B001' });
  await client.query('rollback');
  // Without a savepoint the transaction is lost, and says why.
  await client.query('begin');
  await oq.enqueue(client, 'sql');
  await assert.rejects(oq.workOne(client, 'sql', () => client.query('select 1/0')), (e) => e.code === '25P02' && e.cause.code === '22012');
  await client.query('rollback');
  // Outside a transaction there is no savepoint.
  await oq.enqueue(client, 'sql.outside', 1, { maxRetries: 0 });
  assert.deepEqual((await drain(client, 'sql.outside', () => client.query('select 1/0'))).map((d) => d.state), ['dead']);
});

test('transact on a client: in a savepoint of its transaction, or in one of its own', async (t) => {
  await pool.query('create table within (what text)');
  const handler = (job) => job.transact(client, async (tx) => {
    await tx.query('insert into within values ($1)', [job.payload]);
    if (job.payload === 'lost') await oq.cancel(tx, job.id);
    if (job.payload === 'wrong') await tx.query('select 1/0');
    return `${job.payload}!`;
  });
  const client = await pool.connect();
  t.after(() => client.release(true));
  const work = async (queue) => {
    const ids = await oq.enqueueBulk(client, queue, ['wrong', 'lost', 'right'], { maxRetries: 0 });
    const done = await drain(client, queue, handler);
    assert.deepEqual(done.map((d) => d.state), ['dead', 'dead', 'completed']);
    assert.deepEqual(done.map((d) => d.error?.code), ['22012', 'OQ002', undefined]);
    assert.equal((await oq.result(client, ids[2])).result, 'right!');
    assert.equal(await ask("select string_agg(what, ' ') from within", [], client), 'right');
  };
  await client.query('begin');
  await work('within');
  await client.query('rollback');
  assert.equal(await ask('select count(*)::text from within'), '0');
  await work('without');
  assert.equal(await ask('select count(*)::text from within'), '1');
  await client.query('begin'); // No transaction was left open.
  await client.query('rollback');
  await assert.rejects(async () => {
    await oq.enqueue(client, 'without', 'url');
    const { error } = await oq.workOne(client, 'without', (job) => job.transact(url, () => {}));
    throw error;
  }, (error) => error instanceof TypeError && /db is no pg Pool or Client: string/.test(error.message));
});

test('exactly once: the ack in the transaction of the work', async () => {
  await pool.query('create table once (job bigint unique deferrable initially deferred)');
  const queue = 'once';
  const ids = await oq.enqueueBulk(pool, queue, ['ok', 'lost', 'swallowed', 'again', 'own']);
  let tries = 0;
  const insert = (client, job) => client.query('insert into once values ($1)', [job.id]);
  const done = await drain(pool, queue, async (job) => {
    const what = job.payload;
    if (what === 'own') {
      const client = await pool.connect();
      await client.query('begin');
      await insert(client, job);
      await job.ack(client, 'mine');
      await client.query('commit');
      client.release();
      return 1n; // Too late to be the result, and no JSON.
    }
    const work = job.transact(pool, async (client) => {
      if (what === 'again' && ++tries < 3) await client.query(`do $$ begin raise 'x' using errcode = '40001'; end $$`);
      await insert(client, job);
      if (what === 'lost') await oq.cancel(pool, job.id);
      if (what === 'swallowed') await insert(client, job); // The commit fails, behind the ack.
      return `${what}!`;
    });
    if (what === 'swallowed') await work.catch(() => {});
    else await work;
    return 'the handler’s';
  });
  assert.deepEqual(done.map((d) => d.state), ['completed', 'lost', 'completed', 'completed', 'completed']);
  failed(done[1].error, 'OQ002', oq.LeaseLostError);
  assert.equal(tries, 3);
  const results = await Promise.all(ids.map(async (id) => (await oq.result(pool, id)).result));
  assert.deepEqual(results, ['ok!', undefined, 'the handler’s', 'again!', 'mine']);
  const kept = await ask('select array_agg(job::text order by job) from once');
  assert.deepEqual(kept, [ids[0], ids[3], ids[4]].map(String));
});

test('an acked job whose handler throws was acked', async () => {
  const id = await oq.enqueue(pool, 'acked');
  const [done] = await drain(pool, 'acked', async (job) => {
    await job.transact(pool, () => {});
    throw new Error('afterwards');
  });
  assert.deepEqual([done.state, done.error.message], ['completed', 'afterwards']);
  assert.equal((await oq.get(pool, id)).state, 'completed');
});

test('a job throttles its queue', async () => {
  await oq.enqueueBulk(pool, 'busy', [1, 2]);
  const done = await drain(pool, 'busy', async (job) => {
    await job.throttle(pool, new Date(Date.now() + 3_600_000));
    throw new oq.Snooze();
  });
  assert.deepEqual(done.map((d) => d.state), ['released']);
});
