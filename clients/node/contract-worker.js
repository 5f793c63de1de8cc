#!/usr/bin/env node
// Does with the library what the harness of the contract says: see clients/README.md.
import { createHash } from 'node:crypto';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import * as openqueue from './index.js';

const pooler = process.env.CONTRACT_POOLER === 'transaction';
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

const say = (event, fields = {}) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);

function decode(payload) {
  if (payload === null || typeof payload !== 'object' || typeof payload.do !== 'string') {
    throw new TypeError(`no word: ${JSON.stringify(payload)}`);
  }
  return payload;
}

async function handle(job) {
  const p = job.payload;
  switch (p.do) {
    case 'return':
      return p.result;
    case 'echo': {
      const characters = [...(p.text ?? '')].length;
      return {
        text: characters <= 1000 ? p.text : null,
        sha256: createHash('sha256').update(p.text ?? '').digest('hex'),
        characters,
        headers: Object.keys(job.headers).length > 0 ? job.headers : null,
      };
    }
    case 'fail':
      if (job.attempt <= p.times) throw new openqueue.Failed(p.error);
      return undefined;
    case 'panic':
      throw new TypeError(p.error);
    case 'sleep':
      await sleep(p.ms, undefined, { signal: job.signal });
      return undefined;
    case 'stubborn':
      await sleep(p.ms);
      return undefined;
    case 'hold':
      if (p.progress !== undefined) await job.progress(p.progress);
      return sleep(2 ** 31 - 1, undefined, { signal: job.signal });
    case 'die':
      return process.reallyExit(9);
    case 'snooze':
      throw new openqueue.Snooze(p.seconds * 1000);
    case 'discard':
      throw new openqueue.Discard(p.error);
    case 'retry_after':
      throw new openqueue.RetryAfter(p.seconds * 1000, p.error);
    case 'transact':
      await job.transact(pool, async (client) => {
        await openqueue.enqueue(client, p.queue, { by: job.id.toString() });
        await sleep(p.ms ?? 0);
      });
      return undefined;
    default:
      throw new Error(`no such word: ${p.do}`);
  }
}

const report = (next) => async (job) => {
  const of = { job_id: job.id.toString(), attempt: job.attempt };
  say('started', { ...of, lease_token: job.token.toString() });
  try {
    const value = await next(job);
    say('ended', { ...of, how: 'done' });
    return value;
  } catch (error) {
    const sqlstate = openqueue.sqlstate(error);
    const stopped = error?.name === 'AbortError';
    say('ended', { ...of, ...(stopped ? { how: 'stopped', why: job.why } : { how: 'failed', ...(sqlstate && { sqlstate }) }) });
    throw error;
  }
};

function newJobs({ jobs, times = 1 }) {
  const one = jobs.map(({ queue_name, text_bytes, max_retries, options, ...job }) => ({
    queue: queue_name,
    ...job,
    ...options,
    ...(max_retries !== undefined && { maxRetries: max_retries }),
    ...(text_bytes > 0 && { payload: { ...job.payload, text: 'x'.repeat(text_bytes) } }),
  }));
  return Array.from({ length: Math.max(times, 1) }, () => one).flat();
}

async function enqueueOn(db, command) {
  const jobs = newJobs(command);
  if (command.many) return (await openqueue.enqueueMany(db, jobs)).map(({ jobId }) => jobId);
  const made = [];
  for (const { queue, payload, ...options } of jobs) {
    made.push(await openqueue.enqueue(db, queue, payload, options));
  }
  return made;
}

async function enqueue(command) {
  if (!command.transaction) return enqueueOn(pool, command);
  const client = await pool.connect();
  try {
    await client.query('begin');
    const made = await enqueueOn(client, command);
    await client.query(command.transaction);
    return made;
  } catch (error) {
    await client.query('rollback');
    throw error;
  } finally {
    client.release();
  }
}

const defined = (options) => Object.fromEntries(Object.entries(options).filter(([, v]) => v !== undefined && v !== null));
const ms = (seconds) => (seconds ? seconds * 1000 : undefined);
const settings = (c) => ({
  db: pool,
  queue: c.queue,
  pooler,
  ...defined({
    workerId: c.worker_id || undefined,
    concurrency: c.concurrency || undefined,
    batch: c.batch || undefined,
    leaseSeconds: c.lease_seconds || undefined,
    pollMs: ms(c.poll_seconds),
    drainMs: ms(c.drain_seconds),
    timeoutMs: ms(c.timeout_seconds),
  }),
});

async function bench(command) {
  let first = 0;
  let last = 0;
  let done = 0;
  const worker = new openqueue.Worker({
    ...settings(command),
    handler: () => {
      first ||= performance.now();
    },
    observe: () => {
      if (++done >= command.count && last === 0) {
        last = performance.now();
        worker.stop();
      }
    },
  });
  await worker.run({ signal: ended.signal });
  if (last > 0) say('benched', { jobs: command.count, seconds: (last - first) / 1000 });
}

const input = createInterface({ input: process.stdin });
const ended = new AbortController();
process.once('SIGTERM', () => {
  ended.abort();
  input.close();
});
input.once('close', () => ended.abort());

let working;
const logger = { ...console, debug: () => {}, info: console.error, warn: console.error };
for await (const line of input) {
  const command = JSON.parse(line);
  if (command.do === 'enqueue') {
    try {
      say('enqueued', { job_ids: (await enqueue(command)).map(String) });
    } catch (error) {
      say('error', { sqlstate: openqueue.sqlstate(error), message: error.message });
    }
  } else if (command.do === 'bench') {
    await bench(command);
  } else {
    const worker = new openqueue.Worker({ ...settings(command), handler: handle, decode, middleware: [report], logger });
    working = worker.run({ signal: ended.signal });
    working.then(
      () => input.close(),
      (error) => {
        console.error(error);
        process.exit(1);
      },
    );
    say('working');
  }
}
await working;
await pool.end();
say('stopped');
process.exitCode = 0;
