// Compiled under strict and run by types.test.js: what the types promise is there, and what they refuse is refused.
import pg from 'pg';
import * as openqueue from 'openqueue';
import { drain, jobs } from 'openqueue/testing';

interface Mail {
  to: string;
}

// Every value that index.d.ts exports, and no other.
export const names: Record<keyof typeof openqueue, true> = {
  Abandoned: true, ArgumentError: true, cancel: true, currentTrace: true, Discard: true, DuplicateJobError: true,
  enqueue: true, enqueueBulk: true, enqueueMany: true, Failed: true, get: true, Job: true, LeaseLostError: true,
  NoSuchQueueError: true, NotPermittedError: true, OpenQueueError: true, QueueFullError: true, result: true,
  RetryAfter: true, Snooze: true, sqlstate: true, Stopped: true, timeout: true, TryAgainError: true, update: true,
  withTrace: true, Worker: true, workOne: true,
};

// Every option: the library refuses those that it does not know.
export const options: Required<openqueue.EnqueueOptions> = {
  priority: 1, runAt: new Date(), maxRetries: 0, delay: '1 ms', ttl: 3_600_000, expiresAt: new Date(Date.now() + 3_600_000),
  retry: { kind: 'fixed', base: 10, factor: 1, max: '1 h', jitter: 0.1 }, tags: ['a'], headers: { h: 1 }, uniqueKey: 'k',
  uniqueMode: 'debounce', uniqueFor: '1 h', debounceMax: 1000, groupKey: 'g', dependsOn: [1n, '2', 3],
  onParentFailure: 'run', batchId: 1n,
};
const job: Required<openqueue.NewJob<Mail>> = { queue: 'types', payload: { to: 'a@b' }, ref: 'r', dependsOnRefs: ['s'], ...options };

export async function use(pool: pg.Pool, seen: (sql: string, values: unknown[]) => void): Promise<string[]> {
  const spy = { query: async (q: { text: string; values: unknown[] }) => (seen(q.text, q.values), { rows: [['1', 't']] }) };
  await openqueue.enqueue(spy as unknown as pg.Pool, 'types', {}, options);
  await openqueue.enqueueMany(spy as unknown as pg.Pool, [job]);

  const client: pg.PoolClient = await pool.connect();
  const id: bigint = await openqueue.enqueue<Mail>(client, 'types', { to: 'a@b' });
  client.release();
  const ids: bigint[] = await openqueue.enqueueBulk<Mail>(pool, 'types', [{ to: 'c@d' }], { priority: 1, runAt: 'now', maxRetries: 1 });
  const made: openqueue.Made[] = await openqueue.enqueueMany(pool, [{ queue: 'types', payload: { to: 'e@f' } }]);
  const changed: boolean = await openqueue.update(pool, id, { priority: 9, runAt: null, maxRetries: null, headers: null, payload: { to: 'g@h' } });
  const row: openqueue.JobRow | undefined = await openqueue.get(pool, id);
  const at: number | undefined = row?.createdAt.getTime();
  const state: openqueue.JobState | undefined = (await openqueue.result(pool, ids[0]!))?.state;
  const unfinished: openqueue.JobRow[] = await jobs(pool, 'types');
  const gone: boolean = await openqueue.cancel(pool, made[0]!.jobId, 'why not');

  const to: string[] = [];
  const decode = (payload: unknown): Mail => payload as Mail;
  const handler: openqueue.Handler<Mail> = async (job) => {
    const exact: [bigint, bigint, number, string | undefined] = [job.id, job.token, job.attempt, job.groupKey];
    const signal: AbortSignal = job.signal;
    const why: openqueue.Why | undefined = job.why;
    await job.throttle(pool, new Date(0));
    await job.progress(exact.length);
    const on = (db: openqueue.Db) => job.transact(db, (tx) => tx.query('select 1'));
    if (on.length === 0) await on(pool);
    await job.transact(pool, async (tx) => {
      await tx.query('select $1::text', [job.payload.to]);
      to.push(job.payload.to, String(signal.aborted || why), job.createdAt.toISOString().slice(0, 2));
    });
  };
  const done: openqueue.Done<Mail>[] = await drain<Mail>(pool, 'types', handler, { decode, maxJobs: 10 });
  const one: openqueue.Done<Mail> | undefined = await openqueue.workOne<Mail>(pool, 'types', handler, { decode, workerId: 'me' });

  const log: openqueue.Middleware = (next) => async (job) => next(job); // Of any payload.
  const all: Required<openqueue.WorkerOptions<Mail>> = {
    db: pool, queue: 'types', handler, decode, middleware: [openqueue.timeout(1000), log], workerId: 'w',
    concurrency: 1, batch: 1, leaseSeconds: 30, pollMs: 1000, drainMs: 1000, timeoutMs: 1000, pooler: false, logger: console,
    observe: ({ job, state, error }) => void [job.payload.to, job.took, state, error],
  };
  const worker = new openqueue.Worker(all);
  const control = new AbortController();
  control.abort();
  await worker.run({ signal: control.signal, signals: ['SIGTERM'] });
  new openqueue.Worker<Mail>({ db: () => new pg.Client(), queue: 'q', handler });
  new openqueue.Worker({ db: { host: 'localhost' }, queue: 'q', handler: () => 1 });
  const trace: openqueue.Trace = { traceparent: 'x', tracestate: 'y' };
  const parent: string | undefined = openqueue.withTrace(trace, () => openqueue.currentTrace()?.traceparent);
  const error = new openqueue.Stopped('lost');
  const says: [string, string, unknown, number] = [openqueue.sqlstate(error), error.why, new openqueue.Discard('x').reason, new openqueue.RetryAfter(1).pause];
  if (!changed || !gone || at === undefined || state === undefined || one !== undefined || unfinished.length !== 3) throw new Error('lies');
  return [...to, ...done.map((d) => d.state), String(parent), ...says.map(String)];
}

export const refused = (pool: pg.Pool): unknown[] => [
  // @ts-expect-error no such option
  () => openqueue.enqueue(pool, 'q', {}, { prioritty: 1 }),
  // @ts-expect-error a bulk has fewer
  () => openqueue.enqueueBulk(pool, 'q', [], { delay: 1 }),
  // @ts-expect-error a mode that there is not
  () => openqueue.enqueue(pool, 'q', {}, { uniqueMode: 'drop' }),
  // @ts-expect-error a payload of the wrong type
  () => openqueue.enqueue<Mail>(pool, 'q', { too: 'a@b' }),
  // @ts-expect-error no database
  () => openqueue.enqueue('postgres://', 'q'),
  // @ts-expect-error ids are no booleans
  () => openqueue.cancel(pool, true),
  // @ts-expect-error an id is a bigint, not a number
  async (): Promise<number> => openqueue.enqueue(pool, 'q'),
  // @ts-expect-error a payload is unknown until it is decoded
  () => new openqueue.Worker({ db: pool, queue: 'q', handler: (job) => job.payload.to }),
  // @ts-expect-error decode and handler differ
  () => new openqueue.Worker<Mail>({ db: pool, queue: 'q', decode: () => 1, handler: (job) => job.payload.to }),
  // @ts-expect-error no handler
  () => new openqueue.Worker({ db: pool, queue: 'q' }),
  // @ts-expect-error jobs are made by a worker
  () => new openqueue.Job(),
  // @ts-expect-error a pause is a number
  () => new openqueue.RetryAfter('1 minute'),
  // @ts-expect-error an id can't be changed
  (job: openqueue.Job) => (job.id = 1n),
  // @ts-expect-error a signal that there is not
  (worker: openqueue.Worker) => worker.run({ signals: ['SIGNONE'] }),
];
