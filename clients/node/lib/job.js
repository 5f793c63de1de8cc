// A leased job, in the hands of its handler.
import { ackStrictly, encode, isClient, run, savepoint, throttle } from './calls.js';
import { ArgumentError, Stopped, translated, TryAgainError } from './errors.js';

export class Job {
  #row;
  #decode;
  #payload;
  #decoded = false;
  #headers;
  #controller;
  #worker;
  /** What the worker knows of it. */
  _since = 0; // of the lease, or the last heartbeat
  _lasts = 0; // the lease, in ms
  _over = false; // finished, or nobody's any more
  _acked = false; // in a transaction of the handler
  _result = undefined;
  _failed = false;
  _error = undefined;

  constructor(row, queue, decode, worker) {
    this.#row = row;
    this.#decode = decode;
    this.#worker = worker;
    this.id = BigInt(row[0]);
    this.token = BigInt(row[1]);
    this.attempt = Number(row[2]);
    this.queue = queue;
    this.why = undefined;
    this.took = 0;
  }

  get payloadText() {
    return this.#row[3];
  }

  get payload() {
    if (!this.#decoded) {
      const value = JSON.parse(this.#row[3]);
      this.#payload = this.#decode === undefined ? value : this.#decode(value);
      this.#decoded = true;
    }
    return this.#payload;
  }

  get headers() {
    this.#headers ??= this.#row[4] === null ? {} : JSON.parse(this.#row[4]);
    return this.#headers;
  }

  get priority() {
    return Number(this.#row[5]);
  }

  get maxRetries() {
    return Number(this.#row[6]);
  }

  get groupKey() {
    return this.#row[7] ?? undefined;
  }

  get createdAt() {
    return new Date(Number(this.#row[8]) * 1000);
  }

  /** Aborted when the handler has to end; the reason is a Stopped. */
  get signal() {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      if (this.why !== undefined) this.#controller.abort(new Stopped(this.why));
    }
    return this.#controller.signal;
  }

  /** The signal is aborted once. That the job is not the worker's any more overrides what was said before. */
  _stop(why) {
    const gone = why === 'lost' || why === 'cancelled';
    if (this._over || (this.why !== undefined && !(gone && (this.why === 'timeout' || this.why === 'drain')))) return;
    this.why = why;
    this.#controller?.abort(new Stopped(why));
  }

  async progress(value) {
    await this.#worker?._progress(this, value);
  }

  async throttle(db, until) {
    await throttle(db, this.queue, until, this.groupKey);
  }

  async ack(client, value) {
    const json = value === undefined ? undefined : encode(value);
    this._acked = true; // Before it is: a heartbeat would wait for the transaction.
    try {
      await ackStrictly(client, this.id, this.token, json);
    } catch (error) {
      this._acked = false;
      throw error;
    }
  }

  async transact(db, work) {
    const given = isClient(db);
    const nested = given && (await savepoint(db, 'openqueue_transact'));
    const undo = nested
      ? 'rollback to savepoint openqueue_transact; release savepoint openqueue_transact'
      : 'rollback';
    for (let tries = 1; ; tries++) {
      const client = given ? db : await db.connect();
      // The pool listens to its idle clients only, and an error that nobody listens to ends the process.
      let broken;
      const lost = (error) => {
        broken = error;
      };
      client.on('error', lost);
      try {
        if (!nested) await run(client, 'begin', []);
        const value = await work(client);
        await this.ack(client, value);
        await run(client, nested ? 'release savepoint openqueue_transact' : 'commit', []);
        return;
      } catch (error) {
        this._acked = false;
        await client.query(undo).catch(lost);
        // The caller's transaction is the caller's to run again.
        if (nested || tries === 5 || !(translated(error) instanceof TryAgainError)) throw translated(error);
      } finally {
        client.removeListener('error', lost);
        if (!given) client.release(broken);
      }
    }
  }

  [Symbol.for('nodejs.util.inspect.custom')]() {
    return `Job ${this.id} of ${this.queue}, attempt ${this.attempt}`;
  }
}

/** A middleware: aborts the job's signal, with why = timeout, after so many milliseconds. */
export function timeout(ms) {
  // Beyond it a timer would fire at once.
  if (!(ms > 0 && ms < 2 ** 31)) throw new ArgumentError(`timeout ${String(ms)} is no number of milliseconds below 2 ** 31`);
  return (next) => async (job) => {
    const timer = setTimeout(() => job._stop('timeout'), ms);
    try {
      return await next(job);
    } finally {
      clearTimeout(timer);
    }
  };
}
