// What the server refuses, what a handler may throw, and how a failure reads.

/** The server's refusal. `code` is its SQLSTATE, `hint` says what is allowed, `cause` is the driver's error. */
export class OpenQueueError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
    this.code = options?.cause?.code ?? new.target.code;
    this.hint = options?.cause?.hint;
    this.detail = options?.cause?.detail;
  }
}
/** OQ001 */
export class ArgumentError extends OpenQueueError {
  static code = 'OQ001';
}
/** OQ002 */
export class LeaseLostError extends OpenQueueError {
  static code = 'OQ002';
}
/** OQ003 */
export class NoSuchQueueError extends OpenQueueError {
  static code = 'OQ003';
}
/** OQ005 */
export class DuplicateJobError extends OpenQueueError {
  static code = 'OQ005';
}
/** OQ006 */
export class QueueFullError extends OpenQueueError {
  static code = 'OQ006';
}
/** 42501 */
export class NotPermittedError extends OpenQueueError {}
/** 40001 and 40P01: the same transaction may succeed when it is run again. */
export class TryAgainError extends OpenQueueError {}

const byState = {
  OQ001: ArgumentError,
  OQ002: LeaseLostError,
  OQ003: NoSuchQueueError,
  OQ005: DuplicateJobError,
  OQ006: QueueFullError,
  42501: NotPermittedError,
  40001: TryAgainError,
  '40P01': TryAgainError,
};

/** The SQLSTATE of an error of the server, or ''. */
export function sqlstate(error) {
  const code = error?.code;
  // Errors of the system have codes too: EPIPE, EPERM.
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && !/^E[A-Z]{4}$/.test(code) ? code : '';
}

export function translated(error) {
  if (error instanceof OpenQueueError) return error;
  const kind = byState[sqlstate(error)];
  if (kind === undefined) return error;
  const hint = error.hint ? ` (${error.hint})` : '';
  return new kind(error.message + hint, { cause: error });
}

/**
 * Whether the server answered; else the connection failed, and the call may be repeated. Class 57 is the
 * server going away, 08 a pooler that lost it, 53 a server without room, 40 what can be run again; 25006 a
 * standby, or what was the primary: another connection may lead to the one that is. 55P03 see locked().
 */
export function refused(error) {
  const state = sqlstate(error);
  return state !== '' && !/^(57|08|53|40|25006|55P03)/.test(state);
}

/**
 * Whether an ack was refused for what it has itself, as by its result, or by what hangs on its job. Whatever else the server
 * refuses acks for, as it may be broken or not ours to write to, is no failure of a job that was done.
 */
export function unfit(error) {
  return /^(OQ|22|23|54)/.test(sqlstate(error));
}

/** A lock that was not given within lock_timeout: it says nothing of the job, and may be had the next time. */
export function locked(error) {
  return sqlstate(error) === '55P03';
}

/** A failure that was to be expected: its message is the job's error, without a stack. */
export class Failed extends Error {}

/** Fails the job for good: it is dead, whatever retries it has left. */
export class Discard extends Error {
  constructor(reason = 'no reason given') {
    super(text(reason));
    this.reason = reason;
  }
}

const TEN_YEARS = 3_652 * 86_400_000; // What oq_nack and oq_release take.

function pauseOf(ms) {
  if (typeof ms !== 'number' || !(ms >= 0 && ms <= TEN_YEARS)) {
    throw new ArgumentError(`pause ${text(ms)} is no number of milliseconds from 0 to ten years`);
  }
  return ms;
}

/** Fails the attempt; the next one comes after so many milliseconds, not after the backoff. */
export class RetryAfter extends Error {
  constructor(pause, reason = 'no reason given') {
    super(text(reason));
    this.pause = pauseOf(pause);
    this.reason = reason;
  }
}

/** Gives the job back for so many milliseconds. No attempt is counted. */
export class Snooze extends Error {
  constructor(pause = 0) {
    super(`snoozed for ${pauseOf(pause)} ms`);
    this.pause = pause;
  }
}

const WHY = {
  lost: 'the lease is lost',
  cancelled: 'the job is cancelled',
  drain: 'the worker is ending',
  timeout: 'the time for the job is over',
};

/** Why a job's signal is aborted: `why` is lost, cancelled, drain or timeout. */
export class Stopped extends Error {
  constructor(why) {
    super(WHY[why]);
    this.name = 'AbortError';
    this.why = why;
  }
}

/** Handlers did not return though their signals were aborted. Their leases run out by themselves. */
export class Abandoned extends Error {}

const LIMIT = 10_000;

/** What a thrown value says. Node's AggregateError of a failed connection has no message. */
export function text(reason) {
  try {
    if (!(reason instanceof Error)) return String(reason);
    return String(reason.message || reason.errors?.[0]?.message || reason.code || reason.name);
  } catch {
    return 'an error without a text';
  }
}

/** Text that PostgreSQL takes. */
function legible(s) {
  return s.replaceAll('\0', '\ufffd').replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, '\ufffd');
}

/** What the job's error says: name and message, then the stack, at most 10,000 characters. */
export function describe(error) {
  if (error instanceof Discard || error instanceof RetryAfter) return describe(error.reason);
  if (!(error instanceof Error) || error instanceof Failed) {
    return legible(text(error).slice(0, LIMIT) || 'no reason given');
  }
  let all = '';
  try {
    for (let e = error, n = 0; e instanceof Error && n < 5; e = e.cause, n++) {
      const stack = typeof e.stack === 'string' ? e.stack : '';
      const frames = stack.includes('\n    at ') ? stack.slice(stack.indexOf('\n    at ')) : '';
      all += `${n === 0 ? '' : '\ncaused by '}${e.name}: ${text(e).slice(0, LIMIT / 2)}${frames}`;
    }
  } catch {
    all ||= text(error);
  }
  return legible(all.slice(0, LIMIT));
}
