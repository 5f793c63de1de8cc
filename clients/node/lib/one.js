// One job at a time, on a connection of the caller's.
import { COLUMNS, encode, interval, run } from './calls.js';
import { describe, Discard, RetryAfter, Snooze } from './errors.js';
import { Job } from './job.js';
import { traceOf, withTrace } from './trace.js';

const LEASE = `select ${COLUMNS} from oq_lease($1::text, $2::text)`;
const ACK = 'select oq_ack($1::bigint, $2::bigint, $3::jsonb)';
const NACK = 'select oq_nack($1::bigint, $2::bigint, $3::text, $4::boolean, $5::interval)';
const RELEASE = 'select oq_release($1::bigint, $2::bigint, $3::interval)';

export async function workOne(db, queue, handler, { workerId = null, decode } = {}) {
  const [row] = await run(db, LEASE, [queue, workerId]);
  if (row === undefined) return undefined;
  const job = new Job(row, queue, decode);
  const report = async (text, ...values) => {
    const rows = await run(db, text, [job.id.toString(), job.token.toString(), ...values]);
    return rows[0][0];
  };
  // A job that is not ours any more was perhaps acked in a transaction of the handler.
  const gone = () => (job._acked ? 'completed' : 'lost');
  let result = null;
  try {
    const value = await withTrace(traceOf(job.headers), () => handler(job));
    if (value !== undefined && !job._acked) result = encode(value);
  } catch (error) {
    if (error instanceof Snooze) {
      const given = await report(RELEASE, interval(error.pause));
      return { job, state: given === 't' ? 'released' : gone(), error };
    }
    const after = error instanceof RetryAfter ? interval(error.pause) : null;
    const state = await report(NACK, describe(error), !(error instanceof Discard), after);
    return { job, state: state ?? gone(), error };
  }
  const acked = job._acked || (await report(ACK, result)) === 't';
  return { job, state: acked ? 'completed' : 'lost', error: undefined };
}
