// W3C trace context in the headers of jobs.
import { AsyncLocalStorage } from 'node:async_hooks';

const current = new AsyncLocalStorage();

/** The trace that jobs enqueued here will carry: inside a handler, its job's. */
export function currentTrace() {
  return current.getStore();
}

/** What `fn` enqueues carries the trace, in the headers traceparent and tracestate. */
export function withTrace(trace, fn) {
  return current.run(trace, fn);
}

export function traceOf(headers) {
  const { traceparent, tracestate } = headers;
  if (typeof traceparent !== 'string' || traceparent === '') return undefined;
  return { traceparent, ...(typeof tracestate === 'string' && tracestate !== '' && { tracestate }) };
}

/** The headers, and the trace where they name none. */
export function traced(headers) {
  const trace = current.getStore();
  if (trace === undefined || headers?.traceparent !== undefined) return headers;
  return { ...headers, ...trace };
}
