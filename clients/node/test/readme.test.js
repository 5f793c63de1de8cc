import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { workOne } from '../index.js';
import { ask, pool } from './help.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
const blocks = [...readme.matchAll(/^```js\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?/gms)];

/** Runs a program in the package's folder, where the package finds itself by its name. */
function run(source) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--input-type=module'], {
      cwd: root, timeout: 30_000, env: { ...process.env, NODE_TEST_CONTEXT: '' },
    });
    let out = '';
    let err = '';
    child.stdout.on('data', (data) => void (out += data));
    child.stderr.on('data', (data) => void (err += data));
    child.on('close', (code) => (code === 0 ? resolve(out) : reject(new Error(`status ${code}\n${out}${err}\n${source}`))));
    child.stdin.end(source);
  });
}

// What the fragments speak of. A mail that is sent ends the worker as an operator would.
const before = `import pg from 'pg';
import * as openqueue from 'openqueue';
const { enqueue, Discard, RetryAfter, Snooze, timeout, Worker } = openqueue;
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const send = async (job) => {
  if (job.payload.to !== 'you@example.com') throw new Error('nobody');
  console.log('sent', job.signal.aborted);
  setTimeout(() => process.kill(process.pid, 'SIGTERM'));
};
`;

const fragment = async (beginning, { first = '', last = '', end = 'await pool.end();' } = {}) => {
  const found = blocks.filter(([, source]) => source.startsWith(beginning));
  assert.equal(found.length, 1, beginning);
  return run(`${before}${first}\n${found[0][1]}\n${last}\n${end}`);
};
const exists = `await pool.query('create table if not exists sent (at text)');`;
const otherwise = `const handler = (job) => job.payload.to;`;
const enqueued = `await enqueue(pool, 'mail', { to: 'you@example.com' });`;
const unfinished = () => ask("select string_agg(to_jsonb(j)::text, ' ') from oq_jobs j where queue_name = 'mail' and state in ('ready', 'scheduled', 'leased')");

// One after the other, on one queue.
test('the README', async (t) => {
  const [, example, printed] = blocks[0];
  await t.test('the first example is a program of fifteen lines', async () => {
    assert.ok(example.split('\n').filter((line) => line !== '').length <= 15);
    assert.equal(await run(example), printed);
  });
  await t.test('producing', async () => {
    await fragment('const client = await');
    assert.equal(await ask("select concat_ws(' ', state, priority, max_retries) from oq_jobs where queue_name = 'mail' and state = 'scheduled'"), 'scheduled 5 10');
    await pool.query("select oq_cancel(job_id) from oq_jobs where queue_name = 'mail' and state = 'scheduled'");
  });
  await t.test('working', async () => {
    assert.match(await fragment('const worker = new Worker({\n  db: pool, queue', { first: enqueued }), /sent false\n(.*\n)*acked [\d.]+\n/);
  });
  await t.test('batches and schedules', async () => {
    await fragment('const { rows');
    await pool.query("select oq_unschedule('nightly')");
    assert.equal(await ask("select count(*)::int from oq_jobs where queue_name = 'mail' and state = 'ready'"), 1);
    await workOne(pool, 'mail', () => {});
    assert.equal(await ask("select count(*)::int from oq_jobs where queue_name = 'reports' and state = 'ready'"), 1);
  });
  await t.test('several queues', async () => {
    await pool.query("select oq_cancel(job_id) from oq_jobs where queue_name = 'reports' and state = 'ready'");
    assert.match(await fragment('const ending', { first: enqueued }), /sent false\n(.*\n)*worker .* drains\n(.*\n)*worker .* drains\n/);
  });
  await t.test('exactly once', async () => {
    await fragment('const handler', { first: exists + enqueued, last: `console.log((await openqueue.workOne(pool, 'mail', handler)).state);` })
      .then((out) => assert.equal(out, 'completed\n'));
    assert.equal(await ask('select count(*)::int from sent'), 1);
  });
  await t.test('traces', async () => {
    // A propagator, as an OpenTelemetry SDK sets one, of a context that is always the same.
    const first = `import { propagation as p } from '@opentelemetry/api';
p.setGlobalPropagator({
  inject: (_, carrier, setter) => setter.set(carrier, 'traceparent', '00-trace'),
  extract: (context, carrier, getter) => (console.log('from', getter.get(carrier, 'traceparent')), context),
  fields: () => ['traceparent'],
});`;
    assert.equal(await fragment('import { context', { first }), 'from 00-trace\nsent false\n');
  });
  await t.test('testing', async () => {
    const end = 'test.after(() => pool.end());';
    assert.match(await fragment('import assert', { first: otherwise, end }), /(✔|ok 1 -) an order sends a mail/);
    assert.match(await fragment('import assert', { first: 'const handler = () => { throw 1; };', end }).catch((e) => e.message), /^status 1/);
  });
  assert.equal(await unfinished(), null);
  assert.equal(blocks.length, 8, 'a block that nothing runs');
});
