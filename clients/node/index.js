export { cancel, enqueue, enqueueBulk, enqueueMany, get, result, update } from './lib/calls.js';
export {
  Abandoned,
  ArgumentError,
  Discard,
  DuplicateJobError,
  Failed,
  LeaseLostError,
  NoSuchQueueError,
  NotPermittedError,
  OpenQueueError,
  QueueFullError,
  RetryAfter,
  Snooze,
  sqlstate,
  Stopped,
  TryAgainError,
} from './lib/errors.js';
export { Job, timeout } from './lib/job.js';
export { workOne } from './lib/one.js';
export { currentTrace, withTrace } from './lib/trace.js';
export { Worker } from './lib/worker.js';
