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
/** 0A000 */
export class NotSupportedError extends OpenQueueError {}
/** 40001 and 40P01: the same transaction may succeed when it is run again. */
export class TryAgainError extends OpenQueueError {}

const byState = {
  OQ001: ArgumentError,
  OQ002: LeaseLostError,
  OQ003: NoSuchQueueError,
  OQ005: DuplicateJobError,
  OQ006: QueueFullError,
  42501: NotPermittedError,
  '0A000': NotSupportedError,
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
 * server going away, 08 a pooler that lost it, 53 a server without room, 40 what can be run again.
 */
export function refused(error) {
  const state = sqlstate(error);
  return state !== '' && !/^(57|08|53|40)/.test(state);
}

/** A failure that was to be expected: its message is the job's error, without a stack. */
export class Failed extends Error {}

/** Fails the job for good: it is dead, whatever retries it has left. */
export class Discard extends Error {
  constructor(reason) {
    super(text(reason));
    this.reason = reason;
  }
}

/** Fails the attempt; the next one comes after this pause, not after the backoff. */
export class RetryAfter extends Error {
  constructor(pause, reason = '') {
    super(text(reason));
    this.pause = pause;
    this.reason = reason;
  }
}

/** Gives the job back for a while. No attempt is counted. */
export class Snooze extends Error {
  constructor(pause = 0) {
    super(`snoozed for ${pause}`);
    this.pause = pause;
  }
}

/** Why a job's signal is aborted: `why` is lost, cancelled or drain. */
export class Stopped extends Error {
  constructor(why) {
    super(why);
    this.name = 'AbortError';
    this.why = why;
  }
}

/** Handlers did not return though their signals were aborted. Their leases run out by themselves. */
export class Abandoned extends Error {}

const LIMIT = 10_000;

function text(reason) {
  try {
    return reason instanceof Error ? reason.message : String(reason);
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
  if (error instanceof Discard || error instanceof RetryAfter) {
    if (error.reason instanceof Error) return describe(error.reason);
    return legible(error.message || error.constructor.name).slice(0, LIMIT);
  }
  if (!(error instanceof Error) || error instanceof Failed) {
    return legible(text(error) || 'no reason given').slice(0, LIMIT);
  }
  const head = `${error.name}: ${text(error)}`;
  let stack = '';
  for (let e = error, n = 0; e instanceof Error && n < 5; e = e.cause, n++) {
    const own = `${e.name}: ${text(e)}`;
    const full = typeof e.stack === 'string' ? e.stack : '';
    const frames = full.slice(Math.max(0, full.indexOf('\n    at ')));
    stack += n === 0 ? frames : `\ncaused by ${own}${frames}`;
  }
  const room = LIMIT - Math.min(head.length, LIMIT / 2) - 1;
  return legible(head.slice(0, LIMIT / 2) + (stack.startsWith('\n') ? '' : '\n') + stack.slice(0, room));
}
