import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { enqueueBulk } from '../index.js';
import { pool } from './help.js';

const file = (name) => fileURLToPath(new URL(`../${name}`, import.meta.url));

test('bench.js measures', async () => {
  const bench = async (...args) => JSON.parse((await promisify(execFile)(process.execPath, [file('bench.js'), ...args])).stdout);
  const { jobs, seconds } = await bench('throughput', '1000');
  assert.ok(jobs === 1000 && seconds > 0, `${jobs} ${seconds}`);
  const { p50_ms, p99_ms } = await bench('latency', '20');
  assert.ok(p50_ms > 0 && p50_ms <= p99_ms && p50_ms < 1000, `${p50_ms} ${p99_ms}`);
});

test('the contract worker measures, and can be stopped', async () => {
  const worker = spawn(process.execPath, [file('contract-worker.js')], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: worker.stdout })[Symbol.asyncIterator]();
  const next = async () => JSON.parse((await lines.next()).value);
  const ask = (command) => worker.stdin.write(`${JSON.stringify({ do: 'bench', queue: 'benched', concurrency: 16, batch: 100, fetchers: 4, ...command })}\n`);
  await enqueueBulk(pool, 'benched', Array(2000).fill({}));
  ask({ count: 1000, worker_id: 'b', lease_seconds: 600 });
  const { event, jobs, seconds } = await next();
  assert.ok(event === 'benched' && jobs === 1000 && seconds > 0, `${event} ${jobs} ${seconds}`);
  ask({ count: 1_000_000 });
  worker.kill('SIGTERM');
  assert.deepEqual(await next(), { event: 'stopped' });
});
