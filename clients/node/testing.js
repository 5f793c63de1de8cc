// For tests: do the jobs of a queue on the test's own connection, without a worker.
import { ack, interval, encode, leaseOne, nack, release, unfinished } from './lib/calls.js';
import { describe, Discard, RetryAfter, Snooze } from './lib/errors.js';
import { Job } from './lib/job.js';
import { traceOf, withTrace } from './lib/trace.js';

export async function drain(db, queue, handler, { decode, maxJobs = 1000 } = {}) {
  const done = [];
  for (;;) {
    const row = await leaseOne(db, queue, 'openqueue/testing');
    if (row === undefined) return done;
    if (done.length === maxJobs) throw new Error(`${queue} is not empty after ${maxJobs} jobs`);
    const job = new Job(row, queue, decode);
    let error;
    let value;
    let failed = false;
    try {
      const result = await withTrace(traceOf(job.headers), () => handler(job));
      if (result !== undefined) value = encode(result);
    } catch (e) {
      failed = true;
      error = e;
    }
    done.push({ job, state: await report(db, job, failed, error, value), error });
  }
}

async function report(db, job, failed, error, value) {
  if (!failed) {
    return job._acked || (await ack(db, job.id, job.token, value)) ? 'completed' : 'lost';
  }
  if (error instanceof Snooze) {
    return (await release(db, job.id, job.token, interval(error.pause))) ? 'released' : 'lost';
  }
  const after = error instanceof RetryAfter ? interval(error.pause) : null;
  return (await nack(db, job.id, job.token, describe(error), !(error instanceof Discard), after)) ?? 'lost';
}

/** The unfinished jobs of a queue as rows of oq_jobs, ids ascending: what was enqueued. */
export function jobs(db, queue) {
  return unfinished(db, queue);
}
