// One job at a time, on a connection of the caller's.
import { COLUMNS, encode, interval, run, savepoint } from './calls.js';
import { describe, Discard, RetryAfter, Snooze, sqlstate } from './errors.js';
import { Job } from './job.js';
import { traceOf, withTrace } from './trace.js';

const LEASE = `select ${COLUMNS} from oq_lease($1::text, $2::text)`;
const ACK = 'select oq_ack($1::bigint, $2::bigint, $3::jsonb)';
const NACK = 'select oq_nack($1::bigint, $2::bigint, $3::text, $4::boolean, $5::interval)';
const RELEASE = 'select oq_release($1::bigint, $2::bigint, $3::interval)';

export async function workOne(db, queue, handler, options) {
  return one(db, queue, handler, options);
}

/**
 * With savepoints, and in a transaction on db, a handler whose SQL makes that fail takes back what it did there, and
 * no more.
 */
export async function one(db, queue, handler, { workerId = null, decode } = {}, savepoints = false) {
  const [row] = await run(db, LEASE, [queue, workerId]);
  if (row === undefined) return undefined;
  const job = new Job(row, queue, decode);
  const saved = savepoints && (await savepoint(db, 'openqueue_drain'));
  const report = async (text, ...values) => {
    const rows = await run(db, text, [job.id.toString(), job.token.toString(), ...values]);
    return rows[0][0];
  };
  // Of a failure: the transaction may have failed with it.
  const reportFailed = async (error, ...call) => {
    try {
      return await report(...call);
    } catch (e) {
      if (sqlstate(e) !== '25P02') throw e;
      if (!saved) throw Object.assign(e, { cause: error });
      await db.query('rollback to savepoint openqueue_drain');
      return report(...call);
    }
  };
  const done = async (state, error) => {
    // Where the handler ended the transaction there is none.
    if (saved) await db.query('release savepoint openqueue_drain').catch((e) => sqlstate(e) === '25P01' || Promise.reject(e));
    return { job, state, error };
  };
  // A job that is not ours any more was perhaps acked in a transaction of the handler.
  const gone = () => (job._acked ? 'completed' : 'lost');
  let result = null;
  try {
    const value = await withTrace(traceOf(job.headers), () => handler(job));
    if (value !== undefined && !job._acked) result = encode(value);
  } catch (error) {
    if (error instanceof Snooze) {
      const given = await reportFailed(error, RELEASE, interval(error.pause));
      return done(given === 't' ? 'released' : gone(), error);
    }
    const after = error instanceof RetryAfter ? interval(error.pause) : null;
    const state = await reportFailed(error, NACK, describe(error), !(error instanceof Discard), after);
    return done(state ?? gone(), error);
  }
  const acked = job._acked || (await report(ACK, result)) === 't';
  return done(acked ? 'completed' : 'lost', undefined);
}
