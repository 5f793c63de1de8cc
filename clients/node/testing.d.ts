import type { Db, Done, Handler, JobRow } from './index.js';

/**
 * Does the jobs of a queue that are ready, with those that they make ready, one after the other on db, and says
 * what became of each. Throws after maxJobs, 10000 by default: a handler may enqueue into its own queue for ever.
 * In a transaction on db a handler that throws after its SQL failed there takes back what it did on db, and the
 * transaction goes on.
 */
export function drain<P = unknown>(
  db: Db,
  queue: string,
  handler: Handler<P>,
  options?: { decode?: (payload: unknown) => P; maxJobs?: number },
): Promise<Done<P>[]>;

/** The unfinished jobs of a queue, in the order in which they were enqueued. */
export function jobs(db: Db, queue: string): Promise<JobRow[]>;
