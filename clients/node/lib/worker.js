// The worker: one connection acks and leases in one call, one listens while there is nothing to do. Two
// are made when they are needed: one sends heartbeats and progress, one reports what failed or is given back.
// They are apart because a report may wait for a lock, and no lease may end meanwhile.
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { COLUMNS, encode, interval } from './calls.js';
import { Abandoned, ArgumentError, describe, Discard, locked, refused, RetryAfter, Snooze, text, translated, unfit } from './errors.js';
import { Job } from './job.js';
import { backoff, connector, isPool, Session } from './session.js';
import { listen } from './shared.js';
import { traceOf, withTrace } from './trace.js';

// A row that another transaction holds is waited for so long and no longer, by a setting of the statement's own: behind
// a pooler a session has none.
const NO_WAIT = `set_config('lock_timeout', '200', true) soon`;
const NEXT = `select ${COLUMNS} from ${NO_WAIT} cross join lateral
  oq_next($1::text, $2::text, $3::int, $4::int, $5::bigint[], case when soon is not null then $6::bigint[] end)`;
// Results go by oq_ack_many; lateral on its count makes it come first, in the same transaction.
const RESULTS_NEXT = `select j.* from ${NO_WAIT} cross join lateral (select count(*) as n
  from oq_ack_many($5::bigint[], case when soon is not null then $6::bigint[] end, $7::jsonb[])) a
 cross join lateral (select ${COLUMNS}
  from oq_next($1::text, $2::text, $3::int, $4::int + least(a.n, 0)::int)) j`;
// Nothing but a lease: should its commit be lost in a crash, the jobs are only done again.
const LEASE = `select ${COLUMNS} from set_config('synchronous_commit', 'off', true) c,
  oq_lease($1::text, $2::text, $3::int, $4::int)`;
const ACK = `select id from ${NO_WAIT} cross join lateral
  oq_ack_many($1::bigint[], case when soon is not null then $2::bigint[] end) id`;
const ACK_RESULTS = `select id from ${NO_WAIT} cross join lateral
  oq_ack_many($1::bigint[], case when soon is not null then $2::bigint[] end, $3::jsonb[]) id`;
const NACK = `select u.n, oq_nack(u.id, u.token, u.error, u.retry, u.after)
  from ${NO_WAIT} cross join unnest($1::bigint[], $2::bigint[], $3::text[], $4::boolean[], $5::interval[])
    with ordinality u(id, token, error, retry, after, n)`;
const RELEASE = `select u.n, oq_release(u.id, u.token, u.delay) from ${NO_WAIT} cross join
  unnest($1::bigint[], $2::bigint[], $3::interval[]) with ordinality u(id, token, delay, n)`;
const BEATS = `select status from set_config('lock_timeout', $4, true) soon cross join lateral
  oq_heartbeat_many($1::bigint[], $2::bigint[], case when soon is not null then $3::int end)`;
// No longer: the heartbeats of all other jobs wait for it.
const PROGRESS = `select oq_heartbeat($1::bigint, $2::bigint, $3::int, $4::jsonb) from set_config('lock_timeout', '10', true)`;
/** The same, for one of many: the others wait meanwhile, and a drain has an end. */
const barely = (sql) => sql.replace("'200'", "'10'");
const LISTEN = 'select oq_listen($1::text)';
const UNLISTEN = 'select oq_unlisten($1::text)';

// Milliseconds.
export const pace = {
  // Tests are in a hurry.
  probe: 15_000, // a listening session is tried, and made again where it died without a word
  grace: 5_000, // for handlers to return once they were told to
  last: 10_000, // for all calls of the end together, once no handler runs; or timeoutMs, if that is less
};
const LINGER_IDLE = 1; // while some still run, a call waits so long for more of them to end
const LINGER_ACK = 5;
const MANY = 500; // reports in one call

const now = () => performance.now();
const ids = (jobs) => `{${jobs.map((j) => j.id).join(',')}}`;
const tokens = (jobs) => `{${jobs.map((j) => j.token).join(',')}}`;

/** Calls what the program gave; it may throw, or reject, which nobody waits for. */
function guarded(fn, failed) {
  try {
    const answer = fn();
    if (typeof answer?.then === 'function') answer.then(undefined, failed);
  } catch (error) {
    failed(error);
  }
}

function whole(name, value, least, most) {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new ArgumentError(`${name} ${String(value)} is no whole number from ${least} to ${most}`);
  }
  return value;
}

const MOST = 2 ** 31 - 1; // What a timer takes.

export class Worker {
  #db;
  #pool; // whose idle clients may be lost meanwhile
  #handler;
  #observe;
  #logger;
  #decode;
  #most;
  #lasts; // of a lease, in ms; 0 while nobody knows
  #stopping = false;
  #run;

  #queue = []; // leased, and not begun; those before #head were begun
  #head = 0;
  #running = 0;
  #held = new Set(); // what is not over
  #acks = [];
  #reports = [];
  #ackAt = 0;
  #idleAt = 0;
  #lookedAt = 0;
  #asleep = false; // the last lease was empty
  #woken = false;
  #again = false; // the lease before this one gave something as well
  #closed = false;
  #answered = false;

  #signalled = false;
  #sleeper;

  #lane;
  #beats;
  #reporting;
  #ear;
  #over = false; // the side loops end
  #wantsWakes = false;
  #listening = false;
  #earWake = () => {};
  #reportWake = () => {};
  #beatTimer;
  #beating = false;

  constructor({
    db,
    queue,
    handler,
    workerId,
    concurrency = 10,
    batch,
    leaseSeconds,
    pollMs,
    drainMs = 30_000,
    timeoutMs = 30_000,
    pooler = false,
    decode,
    middleware = [],
    observe,
    logger,
    ...unknown
  }) {
    const [name] = Object.keys(unknown);
    if (name !== undefined) throw new ArgumentError(`no such option of a Worker: ${name}`);
    if (typeof queue !== 'string' || queue === '') throw new ArgumentError('queue is no name');
    if (typeof handler !== 'function') throw new ArgumentError('handler is no function');
    this.queue = queue;
    this.workerId = workerId ?? `${hostname()}-${process.pid}-${randomBytes(3).toString('hex')}`;
    this.concurrency = whole('concurrency', concurrency, 1, 100_000);
    this.batch = whole('batch', batch ?? Math.min(concurrency, 10_000), 1, 10_000);
    this.leaseSeconds = leaseSeconds === undefined ? null : whole('leaseSeconds', leaseSeconds, 1, 604_800);
    this.pollMs = whole('pollMs', pollMs ?? (pooler ? 1000 : 5000), 1, MOST);
    this.drainMs = whole('drainMs', drainMs, 0, MOST);
    this.timeoutMs = whole('timeoutMs', timeoutMs, 1, MOST);
    this.pooler = pooler;
    this.#db = connector(db, this.timeoutMs);
    this.#pool = isPool(db) ? db : undefined;
    this.#handler = middleware.reduceRight((next, wrap) => wrap(next), handler);
    this.#decode = decode;
    this.#observe = observe;
    this.#logger = logger;
    this.#most = Math.max(this.concurrency, this.batch);
    this.#lasts = (this.leaseSeconds ?? 0) * 1000;
  }

  /** Works until it is stopped, and drains. */
  async run({ signal, signals = signal === undefined ? ['SIGTERM', 'SIGINT'] : [] } = {}) {
    if (this.#run !== undefined) throw new ArgumentError('a worker runs once');
    const stop = () => void this.stop().catch(() => {});
    const ends = signals.map((name) => {
      // The first drains; the second does what it would have done without a worker.
      const end = listen(process, name, () => {
        end();
        stop();
      });
      return end;
    });
    if (signal !== undefined) ends.push(listen(signal, 'abort', stop));
    if (signal?.aborted) this.#stopping = true;
    this.#run = this.#work().finally(() => {
      for (const end of ends) end();
    });
    return this.#run;
  }

  /** Drains: no job is begun any more. The promise is that of run(). */
  stop() {
    this.#stopping = true;
    this.#wake();
    if (this.#held.size === 0) this.#lane?.dropOpening(); // The server may be mute.
    return this.#run ?? Promise.resolve();
  }

  get stopping() {
    return this.#stopping;
  }

  async #work() {
    this.#lane = new Session(this.#db, 'leasing', this.timeoutMs, !this.pooler);
    this.#beats = new Session(this.#db, 'heartbeats', this.timeoutMs, !this.pooler);
    this.#reporting = new Session(this.#db, 'reports', this.timeoutMs, !this.pooler);
    this.#ear = new Session(this.#db, 'listening', this.timeoutMs, !this.pooler);
    this.#ear.onWake = () => this.#nudge();
    this.#ear.onLost = () => this.#earWake();
    this.#log('info', `worker ${this.workerId} works on ${this.queue}`);
    // A pool says of an idle client that is lost that it is an error, which ends a process where nobody listens.
    const deaf = this.#pool && listen(this.#pool, 'error', (error) => {
      this.#log('warn', `worker ${this.workerId}: the pool lost a client: ${text(error)}`);
    });
    const sides = [this.#report(), this.pooler ? undefined : this.#listen()];
    this.#beat();
    try {
      await this.#fetch();
    } finally {
      this.#over = true;
      clearTimeout(this.#beatTimer);
      this.#reportWake();
      this.#earWake();
      for (const session of [this.#lane, this.#beats, this.#reporting, this.#ear]) session.close();
      await Promise.all(sides);
      deaf?.();
    }
  }

  #log(level, line) {
    // What can't be logged is no reason to stop working.
    guarded(() => this.#logger?.[level]?.(line), () => {});
  }

  #wake() {
    this.#signalled = true;
    this.#sleeper?.();
  }

  /** A notification: there may be work. */
  #nudge() {
    this.#woken = true;
    this.#asleep = false;
    this.#wake();
  }

  /** Until #wake, which may have been already, or for so long. */
  async #pause(ms) {
    if (this.#signalled) return;
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.min(Math.max(ms, 0), MOST));
      this.#sleeper = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#sleeper = undefined;
  }

  /** Whether to lease and to ack now, or else when to look again. */
  #plan(at) {
    const unstarted = this.#queue.length - this.#head;
    const active = unstarted + this.#running;
    const acks = this.#acks.length;
    let wait = 3_600_000;
    // Who can't tell how jobs end begins no more of them.
    const untold = this.#held.size - active - acks;
    const hungry = unstarted === 0 && this.#running < this.concurrency && untold <= this.#most && !this.#closed;
    if (hungry) {
      const since = at - this.#idleAt;
      if (this.#asleep) {
        const poll = this.pooler || this.#listening ? this.pollMs : Math.min(this.pollMs, 1000);
        wait = poll - (at - this.#lookedAt);
        if (wait <= 0) return { lease: true, ack: true, wait: 0 };
      } else if (
        this.#running === 0 ||
        (acks > 0 && this.#most - active >= (this.batch + 1) >> 1) ||
        since >= LINGER_IDLE
      ) {
        return { lease: true, ack: true, wait: 0 };
      } else {
        wait = LINGER_IDLE - since;
      }
    }
    if (acks > 0) {
      const since = at - this.#ackAt;
      if (active === 0 || acks >= this.batch || since >= LINGER_ACK) {
        return { lease: hungry, ack: true, wait: 0 };
      }
      wait = Math.min(wait, LINGER_ACK - since);
    }
    return { lease: false, ack: false, wait };
  }

  async #fetch() {
    let failures = 0;
    while (!this.#stopping) {
      this.#signalled = false;
      const { lease, ack, wait } = this.#plan(now());
      if (!lease && !ack) {
        await this.#pause(wait);
        continue;
      }
      try {
        await this.#turn(lease);
        failures = 0;
      } catch (error) {
        if (!this.#answered && (refused(error) || refused(error.cause))) {
          throw refused(error) ? error : translated(error.cause);
        }
        if (!this.#stopping) this.#log('warn', `worker ${this.workerId}: a call failed: ${text(error)}`);
        const until = now() + backoff(failures++);
        while (!this.#stopping && now() < until) {
          this.#signalled = false;
          await this.#pause(until - now());
        }
      }
    }
    this.#log('info', `worker ${this.workerId} drains`);
    await this.#end();
  }

  /** Acks what is done and leases what there is room for: one round trip, one commit. */
  async #turn(lease) {
    let acks = this.#acks;
    this.#acks = [];
    const active = this.#queue.length - this.#head + this.#running;
    const want = lease ? Math.min(this.batch, this.#most - active) : 0;
    this.#woken = false;
    let rows = [];
    try {
      // Whose lease is over may be somebody else's: oq_next would not say which. And a server that crashed, or took over,
      // may not know of a lease that was not waited for.
      const at = now();
      const since = this.#lane.since;
      const asked = lease ? acks.filter((job) => at - job._since > job._lasts || job._since < since) : acks;
      if (asked.length > 0) {
        await this.#ack(this.#lane, asked);
        acks = acks.filter((job) => this.#held.has(job));
      }
      if (lease) rows = await this.#exchange(acks, want);
    } catch (error) {
      if (acks.length > 0 && (refused(error) || locked(error))) {
        // One of them is at fault, by its result, or as somebody holds its row: each for itself, while others are
        // leased and acked.
        this.#reportAcks(acks);
        return;
      }
      this.#keep(acks);
      throw error;
    }
    this.#answered = true;
    for (const job of acks) this.#done(job, 'acked');
    if (!lease) return;
    this.#lookedAt = this.#idleAt = now();
    const before = this.#queue.length - this.#head;
    this.#queue = this.#queue.slice(this.#head);
    this.#head = 0;
    for (const row of rows) {
      const job = new Job(row, this.queue, this.#decode, this);
      job._since = this.#lane.sent;
      job._lasts = Number(row[9]) * 1000;
      this.#held.add(job);
      this.#queue.push(job);
    }
    if (rows.length > 0) this.#learn(this.leaseSeconds === null ? Number(rows[0][9]) * 1000 : this.#lasts);
    const some = rows.length > 0;
    const full = before + rows.length + this.#running >= this.#most;
    this.#asleep = !some && !this.#woken;
    // Listening is for the idle. One job now and then is taken without leaving off.
    if (this.#wantsWakes && some && (this.#again || full)) {
      this.#wantsWakes = false;
      this.#earWake();
    } else if (!some && !this.#wantsWakes) {
      this.#wantsWakes = true;
      this.#earWake();
    }
    this.#again = some;
    this.#start();
  }

  async #exchange(acks, want) {
    const lease = [this.queue, this.workerId, this.leaseSeconds, want];
    if (acks.length === 0) return this.#lane.call(LEASE, lease);
    const leases = this.#leases(acks);
    return this.#lane.call(leases.length === 2 ? NEXT : RESULTS_NEXT, [...lease, ...leases]);
  }

  /** Ids, tokens, and results where there is one. */
  #leases(acks) {
    const leases = [ids(acks), tokens(acks)];
    if (acks.some((j) => j._result !== undefined)) leases.push(acks.map((j) => j._result ?? null));
    return leases;
  }

  /** Acks, and asks which of the leases were lost. */
  async #ack(session, acks, one = false) {
    const leases = this.#leases(acks);
    const sql = leases.length === 2 ? ACK : ACK_RESULTS;
    const done = new Set((await session.call(one ? barely(sql) : sql, leases)).map(([id]) => BigInt(id)));
    // One job may be here by two leases: the later one counts.
    for (const job of acks.slice().sort((a, b) => (a.token > b.token ? -1 : 1))) {
      this.#done(job, done.delete(job.id) ? 'acked' : 'lost');
    }
  }

  /** Acks that the server did not answer wait for the next call, as long as there is hope. */
  #keep(acks) {
    for (const job of acks) {
      // An ack is accepted after the lease's end too, while nobody has the job.
      if (now() - job._since > job._lasts + 60_000) this.#done(job, 'lost');
      else this.#pushAck(job);
    }
  }

  #pushAck(job) {
    if (this.#acks.length === 0) this.#ackAt = now();
    this.#acks.push(job);
  }

  #reportAcks(acks) {
    for (const job of acks) this.#putReport({ job, how: 'ack' });
  }

  /** The end of a job in this worker. */
  #done(job, state, error) {
    if (!this.#held.delete(job)) return; // The worker has ended without an answer.
    job._over = true;
    if (this.#logger !== undefined) {
      let level = 'debug';
      if (state === 'dead') level = 'error';
      else if (state === 'lost' || (error !== undefined && state !== 'released')) level = 'warn';
      const why = error === undefined ? '' : `: ${describe(error).split('\n', 1)[0]}`;
      this.#log(level, `job ${job.id} of ${job.queue}, attempt ${job.attempt}: ${state}${why}`);
    }
    if (this.#observe !== undefined) {
      guarded(() => this.#observe({ job, state, error }), (e) => this.#log('error', `observe failed: ${describe(e)}`));
    }
  }

  #start() {
    while (this.#head < this.#queue.length && this.#running < this.concurrency && !this.#closed) {
      const job = this.#queue[this.#head];
      this.#queue[this.#head++] = undefined;
      // Whose lease ended here, while the process stood still, may be somebody else's.
      if (now() - job._since > job._lasts) job._stop('lost');
      if (job.why !== undefined) {
        this.#done(job, job.why);
        continue;
      }
      this.#running++;
      this.#handle(job);
    }
  }

  async #handle(job) {
    const began = now();
    try {
      const trace = traceOf(job.headers);
      const value = await (trace === undefined
        ? this.#handler(job)
        : withTrace(trace, () => this.#handler(job)));
      if (value !== undefined && !job._acked) job._result = encode(value);
    } catch (error) {
      job._failed = true;
      job._error = error ?? new Error('no reason given');
    }
    job.took = now() - began;
    this.#running--;
    this.#settle(job);
    this.#start();
    // As few wake-ups as there can be: to lease, to start the time of the acks, or for a full batch.
    const n = this.#acks.length;
    if (this.#closed || this.#head === this.#queue.length || n === 1 || n === this.batch) this.#wake();
  }

  /** A handler has ended: its outcome goes to the server. */
  #settle(job) {
    this.#idleAt = now();
    job._over = true;
    const error = job._error;
    if (job.why === 'lost' || job.why === 'cancelled') this.#done(job, job.why, error);
    else if (!job._failed && job._acked) this.#done(job, 'acked');
    else if (!job._failed) this.#pushAck(job);
    else if (job.why === 'drain') this.#putReport({ job, how: 'release', pause: null, raised: error });
    else this.#fail(job, error);
  }

  #fail(job, error) {
    let report;
    try {
      if (error instanceof Snooze) {
        report = { job, how: 'release', pause: interval(error.pause), raised: error };
      } else {
        const pause = error instanceof RetryAfter ? interval(error.pause) : null;
        const retry = !(error instanceof Discard);
        report = { job, how: 'nack', error: describe(error), retry, pause, raised: error };
      }
    } catch (e) {
      // A pause that is none.
      report = { job, how: 'nack', error: describe(e), retry: true, pause: null, raised: e };
    }
    this.#putReport(report);
  }

  #putReport(report) {
    report.tries = 0;
    this.#reports.push(report);
    this.#reportWake();
  }

  /** Tells the server of failures, of what is given back, and of acks that have to wait, many in a call. */
  async #report() {
    let failures = 0;
    while (!this.#over) {
      if (this.#reports.length === 0) {
        await new Promise((resolve) => {
          this.#reportWake = resolve;
        });
        continue;
      }
      const { how } = this.#reports[0];
      const reports = this.#reports.filter((r) => r.how === how).slice(0, MANY);
      const chosen = new Set(reports);
      this.#reports = this.#reports.filter((r) => !chosen.has(r));
      try {
        await this.#send(reports);
        failures = 0;
      } catch (error) {
        const judged = this.#judged(how, error);
        if ((refused(error) || locked(error)) && reports.length > 1) {
          for (const report of reports) await this.#sendOne(report);
        } else if (judged) {
          this.#refused(reports[0], error);
        } else if (!this.#over) {
          this.#hope(reports, error);
        }
        if (!judged && !this.#over) {
          this.#log('warn', `worker ${this.workerId}: a report failed: ${text(error)}`);
          // Heartbeats can't extend the lease of what is locked: it may be reaped soon afterwards.
          await this.#sleep(backoff(locked(error) ? 1 : failures++));
        }
      }
      this.#wake();
    }
  }

  /** Whether trying again makes no sense. */
  #judged(how, error) {
    return refused(error) && (how !== 'ack' || unfit(error));
  }

  async #sendOne(report) {
    try {
      await this.#send([report], true);
    } catch (error) {
      if (this.#judged(report.how, error)) this.#refused(report, error);
      else this.#hope([report], error);
    }
  }

  /** An ack that is refused alone has failed by it; else the lease has to run out. */
  #refused(report, error) {
    if (report.how === 'ack') this.#fail(report.job, error);
    else this.#giveUp(report, error);
  }

  /** Reports that found no server are tried again while the lease lasts; acks longer, as #keep says. */
  #hope(reports, error) {
    for (const report of reports) {
      const age = now() - report.job._since - (report.how === 'ack' ? 60_000 : 0);
      if (age > report.job._lasts || (this.#closed && report.tries >= 8)) this.#giveUp(report, error);
      else {
        if (!locked(error)) report.tries++;
        this.#reports.push(report);
      }
    }
  }

  #giveUp(report, error) {
    this.#log('error', `job ${report.job.id}: its end could not be reported: ${text(error)}`);
    this.#done(report.job, 'lost', report.raised);
  }

  async #send(reports, one = false) {
    reports.sort((a, b) => (a.job.id < b.job.id ? -1 : 1));
    const jobs = reports.map((r) => r.job);
    if (reports[0].how === 'ack') {
      await this.#ack(this.#reporting, jobs, one);
      return;
    }
    const release = reports[0].how === 'release';
    const pauses = reports.map((r) => r.pause ?? null);
    let sql = release ? RELEASE : NACK;
    if (one) sql = barely(sql);
    const rows = release
      ? await this.#reporting.call(sql, [ids(jobs), tokens(jobs), pauses])
      : await this.#reporting.call(sql, [
          ids(jobs),
          tokens(jobs),
          reports.map((r) => r.error),
          reports.map((r) => r.retry),
          pauses,
        ]);
    for (const [n, answer] of rows) {
      const report = reports[Number(n) - 1];
      let state = release ? answer === 't' && 'released' : answer;
      // Where it was acked in a transaction of the handler that is why.
      state ||= report.job._acked ? 'acked' : 'lost';
      this.#done(report.job, state, report.raised);
    }
  }

  /** How long the last lease lasts: heartbeats have to know where that is not what it was. */
  #learn(lasts) {
    const other = Math.abs(lasts - this.#lasts) > lasts / 10;
    this.#lasts = lasts;
    if (!other || this.#beating) return;
    clearTimeout(this.#beatTimer);
    this.#beat();
  }

  /**
   * Keeps the leases of all that is held, begun or not, done and not told: each once a third of it is over. How long those of the
   * queue last may change; the server extends them by what holds then. One that failed is soon tried again: it may have taken a
   * third of the lease to fail.
   */
  #beat(failed = false) {
    let lasts = this.#lasts || 3_600_000;
    for (const job of this.#held) lasts = Math.min(lasts, job._lasts);
    this.#beatTimer = setTimeout(async () => {
      this.#beating = true;
      let fails = false;
      const at = now();
      const due = [];
      for (const job of this.#held) {
        const age = at - job._since;
        if (job._acked || age < job._lasts / 3) continue;
        if (age > job._lasts) job._stop('lost'); // Not even a heartbeat went through.
        else due.push(job);
      }
      try {
        for (let i = 0; i < due.length; i += 1000) await this.#beatAll(due.slice(i, i + 1000));
      } catch (error) {
        fails = true;
        if (!this.#over) this.#log('warn', `worker ${this.workerId}: a heartbeat failed: ${text(error)}`);
      }
      this.#beating = false;
      if (!this.#over) this.#beat(fails);
    }, Math.min(lasts / (failed ? 30 : 6), MOST));
  }

  async #beatAll(jobs) {
    try {
      await this.#beatMany(jobs, 200);
    } catch (error) {
      if (!locked(error)) throw error;
      // Open transactions are about to end some of them: the others don't wait for these, however many they are.
      for (const job of jobs.length > 1 ? jobs : []) {
        await this.#beatMany([job], 10).catch((e) => {
          if (!locked(e)) throw e;
        });
      }
    }
  }

  /** One that comes too late is none; but to connect takes its time, however short a lease is. */
  get #beatTimeout() {
    return Math.min(this.timeoutMs, Math.max(this.#lasts / 3, 2000));
  }

  /** Waits for each row that another transaction holds as many milliseconds as wait says. */
  async #beatMany(jobs, wait) {
    const sent = now();
    const rows = await this.#beats.call(BEATS, [ids(jobs), tokens(jobs), this.leaseSeconds, wait], this.#beatTimeout);
    // The rows come in the order of the arguments.
    jobs.forEach((job, i) => this.#told(job, rows[i]?.[0], sent));
  }

  #told(job, status, sent) {
    if (status === 'ok') {
      job._since = sent;
      job._lasts = this.#lasts;
    } else if (!job._acked) job._stop(status === 'cancelled' ? 'cancelled' : 'lost');
  }

  /** Shows value in oq_jobs; aborts the job's signal where the job is not the worker's any more. */
  async _progress(job, value) {
    const json = encode(value);
    if (job._acked) return; // It would wait for the handler's own transaction.
    const sent = now();
    try {
      const rows = await this.#beats.call(
        PROGRESS,
        [job.id.toString(), job.token.toString(), this.leaseSeconds, json],
        this.#beatTimeout,
      );
      this.#told(job, rows[0][0], sent);
    } catch (error) {
      if (!locked(error)) throw error; // An open transaction is about to end the job.
    }
    job.signal.throwIfAborted();
  }

  /** Listens while there is nothing to do. Where that fails there is polling. */
  async #listen() {
    let failures = 0;
    while (!this.#over) {
      try {
        if (this.#wantsWakes) {
          await this.#ear.call(LISTEN, [this.queue]);
          if (!this.#listening) {
            this.#listening = true;
            this.#nudge(); // For what came in between.
          }
          failures = 0;
          await this.#earUntil(pace.probe, () => this.#wantsWakes && this.#ear.open);
          if (!this.#ear.open && !this.#over) throw new Error('the connection was lost');
        } else if (this.#listening) {
          this.#listening = false;
          await this.#ear.call(UNLISTEN, [this.queue]);
        } else {
          await this.#earUntil(MOST, () => !this.#wantsWakes);
        }
      } catch (error) {
        this.#listening = false;
        if (this.#over) return;
        this.#log('warn', `worker ${this.workerId} listens no more, and polls: ${text(error)}`);
        this.#wake();
        await this.#sleep(backoff(failures++));
      }
    }
  }

  /** While that stays so, and no longer than that. */
  async #earUntil(ms, still) {
    const until = now() + ms;
    while (still() && !this.#over && now() < until) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, Math.min(until - now(), MOST));
        this.#earWake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#earWake = () => {};
    }
  }

  /** A pause of a side loop, which ends with the worker. */
  async #sleep(ms) {
    const until = now() + ms;
    while (!this.#over && now() < until) {
      await new Promise((resolve) => setTimeout(resolve, Math.min(100, until - now())));
    }
  }

  /** Releases what was not begun, waits for what runs, acks and reports it. */
  async #end() {
    this.#closed = true;
    this.#wantsWakes = false;
    this.#earWake();
    for (const job of this.#queue.slice(this.#head)) {
      if (job.why !== undefined) {
        this.#done(job, job.why);
        continue;
      }
      job._over = true;
      this.#putReport({ job, how: 'release', pause: null, raised: undefined });
    }
    this.#queue = [];
    this.#head = 0;
    let stage = 'run'; // then tell, in which handlers have to return, and last, when none runs that is waited for
    let until = now() + this.drainMs;
    while (this.#held.size > 0) {
      this.#signalled = false;
      this.#reportAcks(this.#acks.splice(0));
      const at = now();
      if (stage !== 'last' && (this.#running === 0 || (stage === 'tell' && at >= until))) {
        stage = 'last';
        until = at + Math.min(this.timeoutMs, pace.last);
      } else if (at >= until && stage === 'run') {
        stage = 'tell';
        until = at + pace.grace;
        for (const job of this.#held) job._stop('drain');
      } else if (at >= until) break;
      if (stage === 'last' && ![...this.#held].some((job) => job._over)) break;
      await this.#pause(until - at);
    }
    for (const job of [...this.#held]) if (job._over) this.#done(job, 'lost', job._error); // Its lease runs out.
    if (this.#running > 0) throw new Abandoned(`${this.#running} handlers did not return`);
  }
}
