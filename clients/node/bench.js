#!/usr/bin/env node
// Measures the library on DATABASE_URL, in a queue of its own, and prints JSON.
//   bench.js throughput [jobs] [concurrency] [batch]    {"jobs", "seconds"}, handlers that do nothing
//   bench.js latency [jobs]                             {"jobs", "p50_ms", "p99_ms"}, from the commit to the
//                                                       handler of a worker that sleeps
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { enqueue, enqueueBulk, Worker } from './index.js';

const [what = 'throughput', ...sizes] = process.argv.slice(2);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
const queue = `bench.node.${process.pid}`;
const sleeps = async (job) =>
  (
    await pool.query(
      `select not exists (select from oq_get($1) where state <> 'completed') and exists (select from pg_locks
        where locktype = 'advisory' and mode = 'ShareLock' and objsubid = 2) as yes`,
      [job],
    )
  ).rows[0].yes;

async function throughput(jobs = 50_000, concurrency = 16, batch = 100) {
  for (let left = jobs; left > 0; left -= 10_000) {
    await enqueueBulk(pool, queue, Array.from({ length: Math.min(left, 10_000) }, (_, n) => ({ n })));
  }
  let first = 0;
  let last = 0;
  let done = 0;
  const worker = new Worker({
    db: pool,
    queue,
    concurrency,
    batch,
    handler: () => {
      first ||= performance.now();
    },
    observe: () => {
      if (++done === jobs) {
        last = performance.now();
        worker.stop();
      }
    },
  });
  await worker.run({ signals: [] });
  return { jobs, seconds: (last - first) / 1000 };
}

async function latency(jobs = 300) {
  const took = [];
  let arrived;
  let previous;
  const worker = new Worker({
    db: pool,
    queue,
    concurrency: 1,
    handler: () => arrived(performance.now()),
  });
  const run = worker.run({ signals: [] });
  const client = await pool.connect();
  for (let i = 0; i < jobs + 10; i++) {
    // Until it sleeps: somebody listens, and nothing is left to ack.
    while (!(await sleeps(previous))) await sleep(2);
    const handled = new Promise((resolve) => {
      arrived = resolve;
    });
    await client.query('begin');
    previous = await enqueue(client, queue, { i });
    const sent = performance.now();
    await client.query('commit');
    const at = await handled;
    if (i >= 10) took.push(at - sent); // The first ones warm up.
  }
  client.release();
  await worker.stop();
  await run;
  took.sort((a, b) => a - b);
  const at = (part) => Number(took[Math.floor(took.length * part)].toFixed(3));
  return { jobs, p50_ms: at(0.5), p99_ms: at(0.99) };
}

const measured = await { throughput, latency }[what](...sizes.map(Number));
await pool.query('select oq_drop_queue($1, true)', [queue]);
await pool.end();
console.log(JSON.stringify(measured));
