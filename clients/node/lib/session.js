// A connection of the worker's own, made again when it fails.
import { createHash } from 'node:crypto';
import pg from 'pg';
import { ArgumentError, locked, refused, sqlstate, text as says, translated } from './errors.js';

// Names of prepared statements, by text: of all sessions, for behind a pooler they may meet on one connection of the
// server, where another's statement of the same name would be run.
const names = new Map();

function nameOf(text) {
  if (!names.has(text)) names.set(text, `openqueue_${createHash('sha256').update(text).digest('hex').slice(0, 16)}`);
  return names.get(text);
}

const asText = { getTypeParser: () => (value) => value };

export function isPool(db) {
  return typeof db?.connect === 'function' && db.totalCount !== undefined;
}

/** How to make a client as db does: a Pool, a Client, a connection string, a config, or a function. */
export function connector(db, timeout) {
  if (typeof db === 'function') return db;
  let Client = pg.Client;
  let given = db;
  if (typeof db === 'string') {
    given = { connectionString: db };
  } else if (db === null || typeof db !== 'object') {
    throw new ArgumentError('db is no pool, client, connection string, config or function that makes a client');
  } else if (isPool(db)) {
    given = db.options;
    Client = db.Client ?? Client;
  } else if (db.connectionParameters !== undefined) {
    given = db.connectionParameters;
    Client = db.constructor;
  }
  const config = { ...given, connectionTimeoutMillis: given.connectionTimeoutMillis || timeout };
  if (given.password !== undefined) config.password = given.password; // It is hidden from enumeration.
  return () => new Client(config);
}

/** Milliseconds to wait after so many failures: 100 to 5000, with jitter. */
export function backoff(failures) {
  return Math.min(5000, 100 * 2 ** Math.min(failures, 10)) * (0.5 + Math.random() / 2);
}

class ConnectionFailed extends Error {}

export class Session {
  #connect;
  #name;
  #timeout;
  #prepares;
  #client;
  #turn = Promise.resolve();
  #closed = false;
  #since = 0;
  #opening; // stands for the connection that is being made
  #interrupt = () => {}; // ends the call that waits; pg's own may wait for ever
  /** When the last call was sent, once there was a connection. */
  sent = 0;
  /** Called for a notification, and when the connection is gone. */
  onWake = () => {};
  onLost = () => {};

  constructor(connect, name, timeout, prepares) {
    this.#connect = connect;
    this.#name = name;
    this.#timeout = timeout;
    this.#prepares = prepares;
  }

  get open() {
    return this.#client !== undefined;
  }

  /** When the connection was made; where there is none, it is still to be. */
  get since() {
    return this.open ? this.#since : Infinity;
  }

  /** Runs one statement, in a transaction of its own, and gives its rows as arrays of text. */
  call(text, values, timeout = this.#timeout) {
    const answer = this.#turn.then(() => this.#call(text, values, timeout));
    this.#turn = answer.catch(() => {});
    return answer;
  }

  async #call(text, values, timeout) {
    try {
      // Each has its time: the server's, statement_timeout, begins with the query and must end before ours.
      const client = this.#client ?? (await this.#within(timeout, this.#open()));
      this.sent = performance.now();
      const query = { text, values, rowMode: 'array', types: asText };
      if (this.#prepares) query.name = nameOf(text);
      return (await this.#within(timeout, client.query(query))).rows;
    } catch (error) {
      if (!refused(error) && !locked(error)) this.drop(); // A call half done is nobody's.
      // A prepared statement that is there already, or not: the server's connections are not ours alone.
      if (this.#prepares && /^(42P05|26000)$/.test(sqlstate(error))) {
        error.message += ' (behind a transaction pooler? set pooler: true)';
      }
      throw translated(error);
    }
  }

  /** What the promise gives, if that comes in time and nobody interrupts. */
  async #within(timeout, promise) {
    let timer;
    const late = new Promise((_, reject) => {
      this.#interrupt = reject;
      timer = setTimeout(() => {
        reject(new ConnectionFailed(`${this.#name}: no answer within ${Math.round(timeout)} ms`));
      }, timeout);
    });
    try {
      return await Promise.race([promise, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #open() {
    if (this.#closed) throw new ConnectionFailed(`${this.#name}: the worker has ended`);
    const opening = (this.#opening = {});
    const client = await this.#connect();
    if (this.#opening !== opening) throw new ConnectionFailed(`${this.#name}: given up`);
    const lost = () => {
      if (this.#client !== client) return;
      this.#client = undefined;
      this.onLost();
    };
    client.on('error', lost);
    client.on('end', lost);
    client.on('notification', () => this.onWake());
    this.#client = client;
    try {
      await client.connect();
      // Above it a lost lease is 40001 and no answer, for all that the same call asks for. And a call that was
      // given up, which waits for a lock, must not lease for nobody when it gets it: the server gives up first. Until
      // then it waits, whatever lock_timeout the role has.
      if (this.#prepares) {
        await client.query(`set default_transaction_isolation = 'read committed'; set statement_timeout = ${Math.ceil(this.#timeout * 0.9)}; set lock_timeout = 0`);
      }
    } catch (error) {
      // Also where the server refused: it was the session that it refused, and not the call.
      throw new ConnectionFailed(`${this.#name}: ${says(error)}`, { cause: error });
    }
    if (this.#client !== client) throw new ConnectionFailed(`${this.#name}: given up`);
    this.#opening = undefined;
    this.#since = performance.now();
    return client;
  }

  close() {
    this.#closed = true;
    this.drop();
  }

  /** Gives up a connection that is being made, and the call that waits for it. */
  dropOpening() {
    if (this.#opening !== undefined) this.drop();
  }

  /** Closes the connection, without waiting for a server that may be mute. */
  drop() {
    this.#interrupt(new ConnectionFailed(`${this.#name}: the connection was closed`));
    this.#opening = undefined;
    const client = this.#client;
    if (client === undefined) return;
    this.#client = undefined;
    client.end().catch(() => {}); // Says goodbye, where somebody listens.
    client.connection?.stream?.destroySoon?.();
    setTimeout(() => client.connection?.stream?.destroy?.(), 100).unref();
    this.onLost();
  }
}
