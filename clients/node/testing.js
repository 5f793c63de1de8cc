// For tests: do the jobs of a queue on the test's own connection, without a worker.
import { isClient, unfinished } from './lib/calls.js';
import { one as doOne } from './lib/one.js';

export async function drain(db, queue, handler, { decode, maxJobs = 10_000 } = {}) {
  const done = [];
  while (done.length < maxJobs) {
    const one = await doOne(db, queue, handler, { workerId: 'openqueue/testing', decode }, isClient(db));
    if (one === undefined) return done;
    done.push(one);
  }
  throw new Error(`${queue}: still not empty after ${maxJobs} jobs`);
}

export function jobs(db, queue) {
  return unfinished(db, queue);
}
