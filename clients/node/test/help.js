import { after } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';

if (!process.env.DATABASE_URL) throw new Error('the tests need DATABASE_URL: go test ./clients/node gives one');
export const url = process.env.DATABASE_URL;

export const pool = new pg.Pool({ connectionString: url, max: 5 });
pool.on('error', () => {}); // A test ends sessions.
after(() => {
  setTimeout(() => process.exit(1), 10_000).unref(); // Where a test that failed keeps a client.
  return pool.end();
});

export const PATIENCE = 30_000;

/** Waits for a query, or whatever fn looks at, to become true. */
export async function until(what, fn) {
  for (const deadline = Date.now() + PATIENCE; !(await fn()); await sleep(5)) {
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`);
  }
}

/** The first column of the first row. */
export async function ask(text, values = [], db = pool) {
  return (await db.query({ text, values, rowMode: 'array' })).rows[0]?.[0];
}

export const counts = (queue) =>
  ask("select concat_ws(' ', completed, dead) from oq_stats($1)", [queue]);

/** A promise, and what settles it. */
export function deferred() {
  const d = {};
  d.promise = new Promise((resolve, reject) => Object.assign(d, { resolve, reject }));
  return d;
}

/** Runs a worker until the test ends; stop() gives what run() gave. */
export function start(t, worker) {
  const run = worker.run({ signals: [] });
  run.catch(() => {});
  const stop = async () => {
    worker.stop().catch(() => {});
    await run;
  };
  t.after(() => stop().catch(() => {}));
  return stop;
}

export const failed = (error, code, type) => {
  if (!(error instanceof type) || error.code !== code) throw new Error(`no ${type.name} ${code}: ${error?.stack}`);
  return true;
};
