import type { ClientBase, ClientConfig, Pool, PoolClient } from 'pg';

/**
 * A pool, a client or a pool's client, inside a transaction or not. Nothing here begins or commits on it. What has no
 * query, such as a connection string, is a TypeError.
 */
export type Db = Pool | ClientBase;

/** What goes in for a bigint: a number only up to 2^53 - 1. Out come BigInts. */
export type Int8 = bigint | string | number;

/** Milliseconds, or text as PostgreSQL reads an interval: '1 day'. */
export type Duration = number | string;

/** Travel with a job beside its payload. */
export type Headers = Record<string, unknown>;

/** How a job is retried. Fields left out take the server's defaults. */
export interface Retry {
  kind?: 'exponential' | 'linear' | 'fixed';
  /** The first pause. */
  base?: Duration;
  factor?: number;
  max?: Duration;
  /** Part of the pause, up and down: 0.1. */
  jitter?: number;
}

export interface BulkOptions {
  /** Higher first; 0. */
  priority?: number;
  /** Not before; text as PostgreSQL reads a timestamptz. */
  runAt?: Date | string;
  /** Default: the queue's. */
  maxRetries?: number;
}

/** The arguments and options of oq_enqueue. What is left out takes the server's default. */
export interface EnqueueOptions extends BulkOptions {
  /** The same as runAt, from now. */
  delay?: Duration;
  /** Not leased any more after it. */
  ttl?: Duration;
  /** The same as a time. */
  expiresAt?: Date | string;
  /** Default: the queue's. */
  retry?: Retry;
  tags?: readonly string[];
  /** The trace of withTrace is added, unless these have a traceparent. */
  headers?: Headers;
  /** At most one unfinished job of the queue has it. */
  uniqueKey?: string;
  /** What happens to a second one; skip: the other job's id is returned. */
  uniqueMode?: 'skip' | 'replace' | 'debounce' | 'reject';
  /** How long the key is taken; default: while the job is unfinished. */
  uniqueFor?: Duration;
  /** With debounce: put off no longer than this. */
  debounceMax?: Duration;
  /** Jobs of a group run one at a time, in their order. */
  groupKey?: string;
  /** Jobs that must be completed before. */
  dependsOn?: readonly Int8[];
  /** What happens to this one when they are not; cancel. */
  onParentFailure?: 'cancel' | 'run';
  batchId?: Int8;
}

/** A job to be made by enqueueMany. */
export interface NewJob<P = unknown> extends EnqueueOptions {
  queue: string;
  /** Default: {}. */
  payload?: P;
  /** A name within the call, for dependsOnRefs. */
  ref?: string;
  dependsOnRefs?: readonly string[];
}

/** What became of a NewJob. Not inserted: its unique key was taken, jobId is the other's. */
export interface Made {
  jobId: bigint;
  inserted: boolean;
}

/**
 * Enqueues one job and gives its id. The payload, {} by default, is what JSON.stringify makes of it. An
 * option that there is not, and what oq_enqueue refuses, is an OpenQueueError.
 */
export function enqueue<P = unknown>(db: Db, queue: string, payload?: P, options?: EnqueueOptions): Promise<bigint>;

/**
 * Enqueues many jobs of one queue by one call, the fastest way in. The ids come in the order of the payloads. The jobs
 * have no headers, and so no trace.
 */
export function enqueueBulk<P = unknown>(
  db: Db,
  queue: string,
  payloads: Iterable<P>,
  options?: BulkOptions,
): Promise<bigint[]>;

/** Enqueues jobs of their own queues and options by one call: all, or with an error that names the element none. */
export function enqueueMany(db: Db, jobs: Iterable<NewJob>): Promise<Made[]>;

/** Ends a job in any unfinished state. False where it is finished or not there. */
export function cancel(db: Db, jobId: Int8, reason?: string): Promise<boolean>;

/** Changes a job that nobody holds; null takes a value back to the default. False where it is held or finished. */
export function update(
  db: Db,
  jobId: Int8,
  patch: {
    payload?: unknown;
    priority?: number;
    runAt?: Date | string | null;
    maxRetries?: number | null;
    headers?: Headers | null;
  },
): Promise<boolean>;

export type JobState =
  | 'scheduled'
  | 'waiting'
  | 'ready'
  | 'leased'
  | 'completed'
  | 'dead'
  | 'cancelled'
  | 'expired';

/** A row of the view oq_jobs. Its JSON is read by JSON.parse, which rounds numbers beyond 2^53. */
export interface JobRow {
  jobId: bigint;
  queueName: string;
  state: JobState;
  priority: number;
  attempt: number;
  maxRetries: number;
  failures: number;
  lostLeases: number;
  runAt: Date | null;
  createdAt: Date;
  expiresAt: Date | null;
  workerId: string | null;
  leasedAt: Date | null;
  leaseExpiresAt: Date | null;
  finishedAt: Date | null;
  reason: string | null;
  groupKey: string | null;
  uniqueKey: string | null;
  payload: unknown;
  headers: Headers | null;
  tags: string[] | null;
  progress: unknown;
  result: unknown;
  error: string | null;
}

/** A job as it is now; undefined where it is not there, or no longer. */
export function get(db: Db, jobId: Int8): Promise<JobRow | undefined>;

/** What a job gave, kept for the queue's retention, by JSON.parse, which rounds numbers beyond 2^53. */
export function result(
  db: Db,
  jobId: Int8,
): Promise<{ state: JobState; result: unknown; error: string | undefined } | undefined>;

/** Why a job's signal is aborted. */
export type Why = 'lost' | 'cancelled' | 'drain' | 'timeout';

/** A leased job in the hands of its handler. */
export class Job<P = unknown> {
  private constructor();
  readonly id: bigint;
  /** Rises with each lease of the job: pass it on to what must not be done twice. */
  readonly token: bigint;
  readonly queue: string;
  /** Counts from 1. */
  readonly attempt: number;
  readonly priority: number;
  readonly maxRetries: number;
  readonly groupKey: string | undefined;
  readonly createdAt: Date;
  /** By JSON.parse, which rounds numbers beyond 2^53. */
  readonly headers: Headers;
  /**
   * The payload, by JSON.parse and the worker's decode; what that throws fails the attempt. JSON.parse
   * rounds numbers beyond 2^53: send them as strings, or read payloadText.
   */
  readonly payload: P;
  /** The payload's JSON as the server has it. */
  readonly payloadText: string;
  /** Aborted, with a Stopped, when the handler has to end: see why. */
  readonly signal: AbortSignal;
  /**
   * lost: the lease is somebody else's, or nobody could extend it in time; cancelled: by oq_cancel; in
   * both cases what the handler returns goes nowhere. drain: the worker's time to drain is over; an error
   * then gives the job back, without an attempt counted. timeout: by that middleware. Lost and cancelled
   * override the others, whose signal is aborted already and keeps its reason.
   */
  readonly why: Why | undefined;
  /** How long the handler took, in milliseconds, for observe. */
  readonly took: number;

  /**
   * Shows value (JSON, at most 64 kB) in oq_jobs, and is a heartbeat: throws the signal's reason where the job has to
   * end, or the error of the call. It waits for nobody: where another transaction is about to end the job, or ack was
   * called, the value is left out without an error.
   */
  progress(value: unknown): Promise<void>;

  /** Keeps the job's queue, or its group where it has one, from everybody until then. */
  throttle(db: Db, until: Date | string): Promise<void>;

  /**
   * Acks the job in the caller's transaction, so that what it did there takes effect once, with the ack,
   * or not at all: LeaseLostError fails the transaction. The caller commits. Value is the job's result. From here on
   * the worker takes the job for acked, and sends no heartbeats for it: a handler whose transaction rolls back after
   * this, or fails to commit, has to throw. Else the job stays leased until its lease ends, which counts as lost.
   */
  ack(client: ClientBase, value?: unknown): Promise<void>;

  /**
   * Runs work and the ack in one transaction, up to five times where the isolation level asks for it.
   * What work returns is the job's result. On a client it is that client's transaction; inside one of the caller's,
   * as of a test, it is a savepoint there, and is run once.
   */
  transact(pool: Pool, work: (client: PoolClient) => unknown): Promise<void>;
  transact(db: Db, work: (client: ClientBase) => unknown): Promise<void>;
}

/**
 * Does a job. What it returns, if anything, is the job's result (JSON), and acks it. What it throws fails the
 * attempt, but for Snooze, Discard and RetryAfter. It may be called for two jobs at once.
 */
export type Handler<P = unknown> = (job: Job<P>) => unknown;

/** Wraps a handler. Without P it is for workers of any payload. */
export type Middleware<P = any> = (next: Handler<P>) => (job: Job<P>) => unknown;

/** A middleware: aborts the job's signal, with why = timeout, after so many milliseconds. */
export function timeout(ms: number): (next: Handler<any>) => (job: Job<any>) => Promise<unknown>;

/** console, pino, winston and the like. Failures are warn, dead jobs error, each job debug. */
export interface Logger {
  debug?(line: string): void;
  info?(line: string): void;
  warn?(line: string): void;
  error?(line: string): void;
}

/** What became of a job in a worker. */
export interface Event<P = unknown> {
  job: Job<P>;
  /**
   * acked: the server took the ack, of a lease that was good as far as the worker knew. The others are where a job
   * went that was not acked; lost: nowhere, its lease was over and is or was somebody else's, or nobody knows whether
   * the server took the ack.
   */
  state: 'acked' | 'scheduled' | 'ready' | 'dead' | 'expired' | 'released' | 'lost' | 'cancelled';
  /** What the handler threw. With acked: after it acked the job in a transaction of its own. */
  error: unknown;
}

export interface WorkerOptions<P = unknown> {
  /**
   * How the worker's own connections are made: as this pool or this client makes its own, by a connection
   * string or pg's config, or by a function that gives a new pg.Client, not connected. While the worker runs it
   * listens to a pool's 'error', an idle client that was lost, and logs it: where nobody does, it ends the process.
   */
  db: Pool | ClientBase | string | ClientConfig | (() => ClientBase | Promise<ClientBase>);
  queue: string;
  handler: Handler<P>;
  /** Makes the payload of what JSON.parse gives, and throws where it can't: a zod schema's parse. */
  decode?: (payload: unknown) => P;
  /** The first is the outermost. */
  middleware?: readonly Middleware<P>[];
  /** Shown to people; default: host name, process and a random part. */
  workerId?: string;
  /** Handlers at a time; 10. */
  concurrency?: number;
  /** Jobs a lease, 1 to 10000, of which those wait here that no handler is free for; concurrency. */
  batch?: number;
  /** 1 to 604800; default: the queue's. */
  leaseSeconds?: number;
  /** How often to look though nothing woke it, in ms; 5000, with pooler 1000. */
  pollMs?: number;
  /** How long running jobs may go on when the worker is stopped, in ms; 30000. */
  drainMs?: number;
  /** How long a call of the server may take before its connection is given up, in ms; 30000. */
  timeoutMs?: number;
  /** A transaction pooler stands between: poll only, no prepared statements. */
  pooler?: boolean;
  /** Without one nothing is logged. */
  logger?: Logger;
  /** Called for each job when it is over; keep it short: nobody waits for a promise. What it throws is logged. */
  observe?: (event: Event<P>) => unknown;
}

/** Does the jobs of one queue. An option that makes no sense is an ArgumentError. */
export class Worker<P = unknown> {
  constructor(options: WorkerOptions<P>);
  readonly queue: string;
  readonly workerId: string;
  readonly concurrency: number;
  readonly batch: number;
  readonly leaseSeconds: number | null;
  readonly pollMs: number;
  readonly drainMs: number;
  readonly timeoutMs: number;
  readonly pooler: boolean;
  /** Whether it was told to stop. */
  readonly stopping: boolean;

  /**
   * Works until the signal is aborted, one of the signals arrives (SIGTERM and SIGINT, where no signal is
   * given; a second one ends the process as ever) or stop is called; then drains: jobs not begun are
   * released, those that run have drainMs to finish, and are aborted and released after it. Connections
   * that fail are made again. Rejects with the server's error where it refuses the first lease, and
   * with Abandoned. Runs once.
   */
  run(options?: { signal?: AbortSignal; signals?: readonly NodeJS.Signals[] }): Promise<void>;

  /** Drains. The promise is that of run. */
  stop(): Promise<void>;
}

/** What became of a job. */
export interface Done<P = unknown> {
  job: Job<P>;
  state: 'completed' | 'scheduled' | 'ready' | 'dead' | 'expired' | 'released' | 'lost';
  /** What the handler threw. With completed: after it acked the job in a transaction of its own. */
  error: unknown;
}

/**
 * Leases one job, does it and reports it, all on db and without heartbeats: for a test, or a program
 * that runs now and then. Undefined where there is no job.
 */
export function workOne<P = unknown>(
  db: Db,
  queue: string,
  handler: Handler<P>,
  options?: { workerId?: string; decode?: (payload: unknown) => P },
): Promise<Done<P> | undefined>;

/** W3C trace context, as it stands in a job's headers. */
export interface Trace {
  traceparent: string;
  tracestate?: string;
}

/** What fn enqueues carries the trace. A worker calls its handlers so, with the trace of their jobs. */
export function withTrace<T>(trace: Trace | undefined, fn: () => T): T;

/** The trace that jobs enqueued here will carry. */
export function currentTrace(): Trace | undefined;

/** The SQLSTATE of an error of the server, the driver's or one of those below, or ''. */
export function sqlstate(error: unknown): string;

/** The server's refusal, or the library's own of an argument. */
export class OpenQueueError extends Error {
  /** The SQLSTATE. */
  readonly code: string | undefined;
  /** What is allowed. It is in the message, too. */
  readonly hint: string | undefined;
  readonly detail: string | undefined;
  /** The driver's error. */
  readonly cause?: unknown;
}
/** OQ001: an argument that makes no sense. */
export class ArgumentError extends OpenQueueError {}
/** OQ002 */
export class LeaseLostError extends OpenQueueError {}
/** OQ003 */
export class NoSuchQueueError extends OpenQueueError {}
/** OQ005: under uniqueMode reject. */
export class DuplicateJobError extends OpenQueueError {}
/** OQ006 */
export class QueueFullError extends OpenQueueError {}
/** 42501 */
export class NotPermittedError extends OpenQueueError {}
/** 40001 and 40P01: the same transaction may succeed when it is run again. */
export class TryAgainError extends OpenQueueError {}

/** Thrown by a handler: a failure that was to be expected. Its message is the job's error, without a stack. */
export class Failed extends Error {}

/** Thrown by a handler: the job is dead, with this reason, whatever retries it has left. */
export class Discard extends Error {
  constructor(reason?: unknown);
  readonly reason: unknown;
}

/** Thrown by a handler: the attempt failed, and the next one comes after so many milliseconds. */
export class RetryAfter extends Error {
  constructor(pause: number, reason?: unknown);
  readonly pause: number;
  readonly reason: unknown;
}

/** Thrown by a handler: gives the job back for so many milliseconds, 0 by default. No attempt is counted. */
export class Snooze extends Error {
  constructor(pause?: number);
  readonly pause: number;
}

/** The reason of a job's signal. Its name is AbortError. */
export class Stopped extends Error {
  constructor(why: Why);
  readonly why: Why;
}

/** Of Worker.run: handlers did not return within 5 s of their abort. Their leases run out by themselves. */
export class Abandoned extends Error {}
