// The calls of the SQL API: their texts, arguments and answers.
import { ArgumentError, sqlstate, translated } from './errors.js';
import { traced } from './trace.js';

// Everything comes as text, whatever parsers the program has set, and is read here.
const asText = { getTypeParser: () => (value) => value };

function noDatabase(db) {
  return new TypeError(`db is no pg Pool or Client: ${db === null ? 'null' : typeof db}`);
}

/** Runs a statement on a Pool, a Client or a PoolClient; the caller commits. */
export async function run(db, text, values) {
  if (typeof db?.query !== 'function') throw noDatabase(db);
  try {
    return (await db.query({ text, values, rowMode: 'array', types: asText })).rows;
  } catch (error) {
    throw translated(error);
  }
}

/** Whether db is one connection, and not a pool of them. */
export function isClient(db) {
  if (typeof (db?.query ?? db?.connect) !== 'function') throw noDatabase(db);
  return db.connectionParameters !== undefined;
}

/** Makes a savepoint; false where the client is in no transaction. */
export async function savepoint(client, name) {
  try {
    await client.query(`savepoint ${name}`);
    return true;
  } catch (error) {
    if (sqlstate(error) === '25P01') return false;
    throw translated(error);
  }
}

export function encode(value) {
  let json;
  try {
    json = JSON.stringify(value);
  } catch (cause) {
    throw new ArgumentError(`no JSON value: ${cause.message}`);
  }
  if (json === undefined) throw new ArgumentError(`no JSON value: ${String(value)}`);
  return json;
}

/** A bigint, or digits, or a number that is exact, as digits. */
export function int8(name, value) {
  if (typeof value === 'bigint') return value.toString();
  if (typeof value === 'string' && /^-?\d{1,19}$/.test(value)) return value;
  if (Number.isSafeInteger(value)) return String(value);
  throw new ArgumentError(`${name} ${String(value)} is no bigint, digits or safe integer`);
}

/** Milliseconds, or text, as PostgreSQL reads an interval; version 14 takes no field beyond 2^31. */
export function interval(value) {
  if (typeof value === 'string') return value;
  if (typeof value !== 'number' || !Number.isFinite(value)) {
    throw new ArgumentError(`no duration: ${String(value)}`);
  }
  return `${(value / 1000).toFixed(6)} seconds`;
}

function moment(name, value) {
  if (typeof value === 'string') return value;
  if (!(value instanceof Date) || Number.isNaN(value.getTime())) {
    throw new ArgumentError(`${name} ${String(value)} is no Date`);
  }
  return value.toISOString();
}

const plain = (_, value) => encode(value);
const duration = (_, value) => encode(interval(value));
const instant = (name, value) => encode(moment(name, value));
const numbers = (name, values) => `[${values.map((v) => int8(name, v)).join(',')}]`;

function policy(_, value) {
  const { base, max, ...rest } = Object(value);
  if (base !== undefined) rest.base = interval(base);
  if (max !== undefined) rest.max = interval(max);
  return encode(rest);
}

// Each option: its name in SQL, how it is written as JSON, and whether null is a value of it.
const ARGUMENTS = {
  priority: ['priority', plain],
  runAt: ['run_at', instant],
  maxRetries: ['max_retries', plain],
  uniqueKey: ['unique_key', plain],
  groupKey: ['group_key', plain],
  headers: ['headers', plain],
};
const OPTIONS = {
  delay: ['delay', duration],
  ttl: ['ttl', duration],
  expiresAt: ['expires_at', instant],
  retry: ['retry', policy],
  tags: ['tags', plain],
  uniqueMode: ['unique_mode', plain],
  uniqueFor: ['unique_for', duration],
  debounceMax: ['debounce_max', duration],
  dependsOn: ['depends_on', numbers],
  onParentFailure: ['on_parent_failure', plain],
  batchId: ['batch_id', int8],
};
const NEW_JOB = {
  queue: ['queue_name', plain],
  payload: ['payload', plain, true],
  ref: ['ref', plain],
  dependsOnRefs: ['depends_on_refs', plain],
  ...ARGUMENTS,
  ...OPTIONS,
};

/**
 * JSON text of what is there, by the names of SQL. Values are written one by one: int8 stays exact. Names are those
 * that the caller may give, beside those of known.
 */
function object(given, known, names = []) {
  const parts = [];
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(known, name)) {
      throw new ArgumentError(`no such option: ${name} (there are ${[...names, ...Object.keys(known)].join(', ')})`);
    }
    const [sql, write, nullable] = known[name];
    if (value === undefined || (value === null && !nullable)) continue;
    parts.push(`${JSON.stringify(sql)}:${write(name, value)}`);
  }
  return `{${parts.join(',')}}`;
}

export async function enqueue(db, queue, payload = {}, options = {}) {
  const { priority = 0, runAt, maxRetries, uniqueKey, groupKey, headers, ...rest } = options;
  const more = object(rest, OPTIONS, Object.keys(ARGUMENTS));
  const all = traced(headers);
  const rows = await run(
    db,
    `select oq_enqueue($1::text, $2::jsonb, $3::int, $4::timestamptz, $5::int, $6::text, $7::text,
      $8::jsonb, $9::jsonb)`,
    [
      queue,
      encode(payload),
      priority ?? 0,
      runAt == null ? null : moment('runAt', runAt),
      maxRetries ?? null,
      uniqueKey ?? null,
      groupKey ?? null,
      all == null ? null : encode(all),
      more === '{}' ? null : more,
    ],
  );
  return BigInt(rows[0][0]);
}

export async function enqueueBulk(db, queue, payloads, { priority = 0, runAt, maxRetries, ...rest } = {}) {
  object(rest, {}, ['priority', 'runAt', 'maxRetries']);
  const rows = await run(
    db,
    'select oq_enqueue_bulk($1::text, $2::jsonb[], $3::int, $4::timestamptz, $5::int)',
    [
      queue,
      Array.from(payloads, encode),
      priority,
      runAt == null ? null : moment('runAt', runAt),
      maxRetries ?? null,
    ],
  );
  return rows.map((row) => BigInt(row[0]));
}

export async function enqueueMany(db, jobs) {
  const all = [];
  for (const job of jobs) {
    const headers = traced(job.headers);
    try {
      all.push(object(headers === undefined ? job : { ...job, headers }, NEW_JOB));
    } catch (error) {
      error.message = `jobs[${all.length}]: ${error.message}`;
      throw error;
    }
  }
  const rows = await run(
    db,
    'select job_id, inserted from oq_enqueue_many($1::jsonb) order by idx',
    [`[${all.join(',')}]`],
  );
  return rows.map(([id, inserted]) => ({ jobId: BigInt(id), inserted: inserted === 't' }));
}

export async function cancel(db, jobId, reason = null) {
  const rows = await run(db, 'select oq_cancel($1::bigint, $2::text)', [int8('jobId', jobId), reason]);
  return rows[0][0] === 't';
}

const PATCH = {
  payload: NEW_JOB.payload,
  priority: ARGUMENTS.priority,
  runAt: ARGUMENTS.runAt,
  maxRetries: ARGUMENTS.maxRetries,
  headers: ARGUMENTS.headers,
};

export async function update(db, jobId, patch) {
  // A null is a value here: it takes back what was said before.
  const nulls = Object.keys(patch).filter((name) => patch[name] === null && Object.hasOwn(PATCH, name) && !PATCH[name][2]);
  const given = object(patch, PATCH).slice(1, -1);
  const parts = nulls.map((name) => `"${PATCH[name][0]}":null`);
  if (given !== '') parts.push(given);
  const rows = await run(db, 'select oq_update($1::bigint, $2::jsonb)', [
    int8('jobId', jobId),
    `{${parts.join(',')}}`,
  ]);
  return rows[0][0] === 't';
}

const MOMENTS = ['runAt', 'createdAt', 'expiresAt', 'leasedAt', 'leaseExpiresAt', 'finishedAt'];

/** A row of oq_jobs as an object: its id, and the other columns as JSON. */
function jobRow([id, json]) {
  const row = { jobId: BigInt(id) };
  for (const [column, value] of Object.entries(JSON.parse(json))) {
    const name = column.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
    row[name] = value !== null && MOMENTS.includes(name) ? new Date(value) : value;
  }
  return row;
}

export async function get(db, jobId) {
  const rows = await run(
    db,
    "select job_id, to_jsonb(j) - 'job_id' from oq_get($1::bigint) j",
    [int8('jobId', jobId)],
  );
  return rows.length === 0 ? undefined : jobRow(rows[0]);
}

export async function result(db, jobId) {
  const rows = await run(db, 'select state, result, error from oq_result($1::bigint)', [int8('jobId', jobId)]);
  if (rows.length === 0) return undefined;
  const [state, value, error] = rows[0];
  return { state, result: value === null ? undefined : JSON.parse(value), error: error ?? undefined };
}

export async function ackStrictly(db, id, token, value) {
  await run(db, 'select oq_ack($1::bigint, $2::bigint, $3::jsonb, true)', [
    id.toString(),
    token.toString(),
    value ?? null,
  ]);
}

export async function throttle(db, queue, until, groupKey) {
  await run(db, 'select oq_throttle($1::text, $2::timestamptz, $3::text)', [
    queue,
    moment('until', until),
    groupKey ?? null,
  ]);
}

/** The columns of a lease that a Job has, and how many seconds the lease lasts. */
export const COLUMNS = `job_id, lease_token, attempt, payload::text, headers::text, priority, max_retries,
  group_key, extract(epoch from created_at), extract(epoch from lease_expires_at - clock_timestamp())`;

export async function unfinished(db, queue) {
  const rows = await run(
    db,
    `select job_id, to_jsonb(j) - 'job_id' from oq_jobs j where queue_name = $1
      and state in ('ready', 'scheduled', 'waiting', 'leased') order by job_id`,
    [queue],
  );
  return rows.map(jobRow);
}
