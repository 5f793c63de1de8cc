import assert from 'node:assert/strict';
import net from 'node:net';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import * as oq from '../index.js';
import { pace } from '../lib/worker.js';
import { ask, counts, deferred, failed, pool, start, until, url } from './help.js';

const named = (name) => {
  const u = new URL(url);
  u.searchParams.set('application_name', name);
  return u.href;
};
const trace = { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', tracestate: 'a=1' };

test('a worker: middleware, traces, failures, events, log lines', async (t) => {
  const queue = 'worker';
  let running = 0;
  let most = 0;
  const order = [];
  const events = [];
  const lines = { debug: 0, info: 0, warn: 0, error: [] };
  const count = (level) => () => void lines[level]++;
  const seen = new Set();
  const untraced = [];
  const stop = start(t, new oq.Worker({
    db: pool, queue, concurrency: 7, batch: 20, decode: (p) => ({ ...p, decoded: true }),
    handler: async (job) => {
      if (job.payload.plain) untraced.push(oq.currentTrace());
      else assert.deepEqual(oq.currentTrace(), trace);
      assert.equal(job.payload.decoded, true);
      if (job.payload.to === '') throw new TypeError('nobody');
      await oq.enqueue(pool, `${queue}.next`, job.id.toString());
    },
    middleware: [
      oq.timeout(60_000),
      (next) => async (job) => {
        most = Math.max(most, ++running);
        if (order.length < 2) order.push('outer');
        try {
          return await next(job);
        } finally {
          running--;
        }
      },
      (next) => (job) => {
        if (order.length < 2) order.push('inner');
        assert.ok(!seen.has(job.id), `job ${job.id} came twice`);
        seen.add(job.id);
        return next(job);
      },
    ],
    observe: (event) => {
      events.push(event);
      throw new Error('no reason to stop');
    },
    logger: { debug: count('debug'), info: count('info'), warn: count('warn'), error: (line) => void lines.error.push(line) },
  }));
  const jobs = Array.from({ length: 300 }, (_, i) => ({ queue, payload: { to: `${i}` } }));
  jobs.push({ queue, payload: { to: '' }, maxRetries: 0 });
  await oq.withTrace(trace, () => oq.enqueueMany(pool, jobs));
  await oq.enqueueMany(pool, Array.from({ length: 20 }, () => ({ queue, payload: { plain: true } })));
  await until('all done', async () => (await counts(queue)) === '320 1');
  await stop();
  assert.deepEqual([most, order], [7, ['outer', 'inner']]);
  assert.deepEqual(untraced, Array(20).fill(undefined));
  const states = {};
  for (const { state } of events) states[state] = (states[state] ?? 0) + 1;
  assert.deepEqual(states, { acked: 320, dead: 1 });
  const dead = events.find((e) => e.state === 'dead');
  assert.deepEqual([dead.error.message, dead.job.payload.to, dead.job.took >= 0], ['nobody', '', true]);
  assert.match(lines.error.find((l) => l.startsWith('job')), /^job \d+ of worker, attempt 1: dead: TypeError: nobody$/);
  assert.deepEqual([lines.debug, lines.warn, lines.info], [320, 0, 2]);
  assert.match(await ask('select error from oq_dead where queue_name = $1', [queue]), /^TypeError: nobody\n +at .*worker\.test\.js/);
  const next = await ask(`select count(*) filter (where headers->>'traceparent' = $2 and headers->>'tracestate' = 'a=1')::int
    from oq_jobs where queue_name = $1`, [`${queue}.next`, trace.traceparent]);
  assert.equal(next, 300);
  assert.equal(await ask('select count(*)::int from oq_audit() where violations > 0'), 0);
});

test('a logger that throws stops nobody', async (t) => {
  const fail = () => {
    throw new Error('disk full');
  };
  start(t, new oq.Worker({ db: url, queue: 'loud', handler: () => {}, logger: { debug: fail, info: fail, warn: fail, error: fail } }));
  await oq.enqueueBulk(pool, 'loud', [1, 2, 3]);
  await until('all done', async () => (await counts('loud')) === '3 0');
});

test('an observe or a logger that rejects ends no process', async (t) => {
  const lines = [];
  const reject = async () => {
    throw new Error('statsd is down');
  };
  start(t, new oq.Worker({
    db: pool, queue: 'rejects', handler: () => {}, observe: reject,
    logger: { debug: reject, info: reject, error: (line) => lines.push(line) },
  }));
  await oq.enqueue(pool, 'rejects');
  await until('it is logged', () => lines.some((line) => /^observe failed: Error: statsd is down/.test(line)));
});

test('a result that the server refuses fails its job alone', async (t) => {
  const queue = 'results';
  await oq.enqueueBulk(pool, queue, Array.from({ length: 20 }, (_, i) => (i === 7 ? 2_000_000 : i)), { maxRetries: 0 });
  start(t, new oq.Worker({ db: pool, queue, concurrency: 4, batch: 20, handler: (job) => 'x'.repeat(job.payload) }));
  await until('all ended', async () => (await counts(queue)) === '19 1');
  assert.match(await ask('select error from oq_dead where queue_name = $1', [queue]), /^ArgumentError: .*result/);
});

test('handlers may hold the whole pool, and their locks', async (t) => {
  const queue = 'held';
  const small = new pg.Pool({ connectionString: url, max: 2 });
  t.after(() => small.end());
  await oq.enqueueBulk(pool, queue, [1, 2]);
  const stop = start(t, new oq.Worker({
    db: small, queue, concurrency: 2, leaseSeconds: 5,
    handler: (job) => job.transact(small, (client) => client.query('select pg_sleep(6)')),
  }));
  // Whose lease ended would be taken from him at once.
  await until('all done', async () => (await pool.query('select oq_reap()')) &&
    (await ask(`select count(*)::int from oq_jobs where queue_name = $1 and state = 'completed' and attempt = 1
      and lost_leases = 0`, [queue])) === 2);
  await stop();
});

test('a report that waits for a lock keeps no heartbeat from the server', async (t) => {
  const queue = 'locked';
  const tx = await pool.connect();
  t.after(() => tx.release(true));
  const [first] = await oq.enqueueBulk(pool, queue, ['fails', 'lasts'], { maxRetries: 0 });
  const acked = deferred();
  const over = deferred();
  start(t, new oq.Worker({
    db: pool, queue, concurrency: 2, leaseSeconds: 6,
    handler: async (job) => {
      if (job.payload === 'lasts') return over.promise;
      await tx.query('begin');
      await job.ack(tx);
      acked.resolve();
      throw new Error('and the transaction stays open');
    },
  }));
  await acked.promise;
  const lease = () => ask(`select lease_expires_at from oq_jobs where queue_name = $1 and job_id <> $2`, [queue, first]);
  await until('the report waits', async () =>
    (await ask(`select count(*)::int from pg_stat_activity where query like '%oq_nack%' and wait_event_type = 'Lock'`)) === 1);
  const at = await lease();
  await until('a heartbeat goes through', async () => (await lease()) > at);
  await tx.query('rollback');
  over.resolve();
  await until('all ended', async () => (await counts(queue)) === '1 1');
  assert.equal(await ask('select sum(lost_leases)::int from oq_jobs where queue_name = $1', [queue]), 0);
});

test('a call that was given up leases nothing for nobody when it gets its lock', async (t) => {
  const queue = 'given-up';
  const tx = await pool.connect();
  t.after(() => tx.release(true));
  let failures = 0;
  const warn = (line) => void (/a call failed/.test(line) && failures++);
  // Nobody waits behind it for transactions of other tests.
  await until('it is locked', () => tx.query('begin; lock table oq.leased in exclusive mode nowait').then(
    () => true,
    () => tx.query('rollback').then(() => false),
  ));
  await oq.enqueue(pool, queue, 'first');
  start(t, new oq.Worker({
    queue, concurrency: 2, leaseSeconds: 600, timeoutMs: 1000, logger: { warn }, handler: () => {},
    db: async () => {
      await sleep(400); // As where the server is busy, or far away.
      return new pg.Client(named(queue));
    },
  }));
  await until('it fails', () => failures >= 3);
  assert.ok((await ask("select count(*)::int from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'", [queue])) <= 2);
  await oq.enqueueBulk(pool, queue, [1, 2, 3, 4, 5]);
  await tx.query('commit');
  await until('all done', async () => (await counts(queue)) === '6 0');
});

for (const pooler of [false, true]) test(`the open transaction of many cancels holds no heartbeat of the others up, pooler ${pooler}`, async (t) => {
  const queue = `cancelling.${pooler}`;
  const tx = await pool.connect();
  t.after(() => tx.release(true));
  const all = await oq.enqueueBulk(pool, queue, Array(27).fill(1));
  const [cancelled, others] = [all.slice(0, 25), all.slice(25)];
  const over = deferred();
  const told = [];
  let begun = 0;
  start(t, new oq.Worker({
    db: pool, queue, pooler, concurrency: 27, leaseSeconds: 4,
    handler: async (job) => {
      begun++;
      if (cancelled.includes(job.id)) job.signal.addEventListener('abort', () => told.push(job.why));
      for (let done = false; !done && !job.signal.aborted;) {
        await job.progress(1);
        done = await Promise.race([over.promise.then(() => true), sleep(500)]);
      }
    },
  }));
  await until('all run', () => begun === 27);
  await tx.query('begin');
  for (const id of cancelled) await oq.cancel(tx, id);
  const at = performance.now();
  // Whose lease ended would be taken from him at once.
  await until('a lease and a half', async () => (await pool.query('select oq_reap()')) && performance.now() > at + 6000);
  await tx.query('commit');
  await until('they are told', () => told.length === 25);
  over.resolve();
  for (const id of others) {
    await until('it is done', async () => (await ask("select concat_ws(' ', state, attempt, lost_leases) from oq_get($1)", [id])) === 'completed 1 0');
  }
});

const ends = {
  done: { told: 'acked', state: 'completed' },
  fails: { told: 'scheduled', state: 'scheduled' },
};

/** A handler that runs until over, and then ends as the payload says. */
const waits = (begun, over) => async (job) => {
  begun.push(job.id);
  await over.promise;
  if (job.payload === 'fails') throw new oq.Failed('no luck');
};

for (const [end, pooler] of [['done', false], ['done', true], ['fails', false], ['fails', true]]) {
  test(`a job that is held and ${end} keeps no other waiting, pooler ${pooler}`, async (t) => {
    const queue = `held.${end}.${pooler}`;
    const tx = await pool.connect();
    t.after(() => tx.release(true));
    const over = deferred();
    const begun = [];
    const told = new Map();
    start(t, new oq.Worker({
      db: pool, queue, pooler, concurrency: 3, leaseSeconds: 9, handler: waits(begun, over),
      observe: (e) => told.set(e.job.id, [...(told.get(e.job.id) ?? []), e.state]),
    }));
    const [held, ...others] = await oq.enqueueBulk(pool, queue, [end, 'done', 'fails']);
    await until('all run', () => begun.length === 3);
    await tx.query('begin');
    await oq.cancel(tx, held);
    const at = performance.now();
    over.resolve();
    others.push(...(await oq.enqueueBulk(pool, queue, ['done', 'fails'])));
    await until('the others have ended', () => told.size === 4);
    assert.ok(performance.now() - at < 10_000);
    // A lease with acks would not say which of them were lost.
    await until('its end is tried by itself', () => ask(`select count(*)::int from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock' and query ~ 'oq_ack_many|oq_nack'`));
    assert.ok(!told.has(held));
    await tx.query(pooler ? 'commit' : 'rollback');
    await until('it is told', () => told.size === 5);
    assert.deepEqual(told.get(held), [pooler ? 'lost' : ends[end].told]);
    assert.deepEqual(others.map((id) => told.get(id)), [['acked'], ['scheduled'], ['acked'], ['scheduled']]);
    assert.equal((await oq.get(pool, held)).state, pooler ? 'cancelled' : ends[end].state);
    assert.equal(await ask('select max(attempt + lost_leases)::int from oq_jobs where queue_name = $1', [queue]), 1);
  });
}

test('a job that has ended stays leased while the connection for its ack is mute', async (t) => {
  const queue = 'ended';
  const over = deferred();
  const begun = [];
  const made = [];
  start(t, new oq.Worker({
    queue, leaseSeconds: 2, timeoutMs: 6000, handler: waits(begun, over),
    db: () => made[made.push(new pg.Client(url)) - 1],
  }));
  const id = await oq.enqueue(pool, queue, 'done');
  await until('it runs', () => begun.length === 1);
  await until('it sleeps', () => made.length > 1);
  made[0].query = () => deferred().promise;
  over.resolve();
  // Whose lease ended would be taken from him at once.
  await until('it is acked', async () => (await pool.query('select oq_reap()')) && (await oq.get(pool, id)).state !== 'leased');
  assert.equal(await ask("select concat_ws(' ', state, attempt, lost_leases) from oq_get($1)", [id]), 'completed 1 0');
});

for (const drainMs of [500, 30_000]) {
  test(`all calls of the end together take no longer than one may, though the server is mute, drain ${drainMs}`, async (t) => {
    const queue = `mute.${drainMs}`;
    const to = new URL(url);
    const sockets = [];
    let mute = false;
    const proxy = net.createServer((socket) => {
      const server = net.connect(Number(to.port), to.hostname);
      sockets.push(socket, server);
      for (const [a, b] of [[socket, server], [server, socket]]) {
        a.on('data', (data) => mute || b.write(data));
        a.on('error', () => {});
      }
    });
    await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const through = new URL(url);
    through.hostname = '127.0.0.1';
    through.port = proxy.address().port;
    const over = deferred();
    const begun = [];
    const told = [];
    const stop = start(t, new oq.Worker({
      db: through.href, queue, concurrency: 2, batch: 10, drainMs, timeoutMs: 1000, handler: waits(begun, over),
      observe: (e) => told.push(e.state),
    }));
    await oq.enqueueBulk(pool, queue, ['done', 'fails', ...Array(8).fill('waits')]);
    await until('two run', () => begun.length === 2);
    await sleep(100); // Its calls have come back.
    mute = true;
    const at = performance.now();
    setTimeout(over.resolve, drainMs > 1000 ? 0 : 1000);
    await stop();
    assert.ok(performance.now() - at < 10_000);
    assert.deepEqual(told, Array(10).fill('lost'));
    proxy.close();
    for (const socket of sockets) socket.destroy();
  });
}

test('many jobs that are held take no time from the other ends of a drain', async (t) => {
  const queue = 'drained.held';
  const tx = await pool.connect();
  t.after(() => tx.release(true));
  const over = deferred();
  const begun = [];
  const told = new Map();
  const stop = start(t, new oq.Worker({
    db: pool, queue, concurrency: 27, timeoutMs: 4000, handler: waits(begun, over), observe: (e) => told.set(e.job.id, e.state),
  }));
  const held = await oq.enqueueBulk(pool, queue, [...Array(25).fill('done'), 'done', 'fails']);
  const others = held.splice(25);
  await until('all run', () => begun.length === 27);
  await tx.query('begin');
  for (const id of held) await oq.cancel(tx, id);
  over.resolve();
  await stop();
  assert.deepEqual(others.map((id) => told.get(id)), ['acked', 'scheduled']);
  assert.deepEqual(held.map((id) => told.get(id)), Array(25).fill('lost'));
});

test('progress waits for nobody, and nobody for it', async (t) => {
  const queue = 'progressing';
  const tx = await pool.connect();
  t.after(() => tx.release(true));
  await tx.query('begin');
  const events = [];
  const took = {};
  const over = deferred();
  const locked = deferred();
  const timed = async (what, call) => {
    const began = performance.now();
    await call();
    took[what] = performance.now() - began;
  };
  const [held] = await oq.enqueueBulk(pool, queue, ['held', 'fails', 'acks'], { maxRetries: 0 });
  const stop = start(t, new oq.Worker({
    db: pool, queue, concurrency: 3, observe: (e) => events.push(`${e.job.payload} ${e.state}`),
    handler: async (job) => {
      if (job.payload === 'held') {
        await oq.cancel(tx, job.id);
        locked.resolve();
        await Promise.all([timed('held', () => job.progress('1 %')), over.promise]);
        return;
      }
      if (job.payload === 'fails') {
        await locked.promise;
        await sleep(50);
        throw new oq.Failed('as it goes');
      }
      await job.transact(pool, async (client) => {
        await job.progress('50 %');
        await job.ack(client);
        await timed('acked', () => job.progress('100 %'));
        throw new oq.Discard('all the same');
      });
    },
  }));
  await until('two failed', () => events.length === 2);
  assert.deepEqual(events.sort(), ['acks dead', 'fails dead']);
  await until('both went on', () => 'held' in took && 'acked' in took);
  assert.ok(took.held < 5000 && took.acked < 100, JSON.stringify(took));
  await tx.query('rollback');
  over.resolve();
  await until('the first is done', async () => (await oq.get(pool, held)).state === 'completed');
  await stop();
});

test('sessions that end in a transaction of a handler end no process', async (t) => {
  const queue = 'ended';
  const mine = new pg.Pool({ connectionString: named('ended') });
  mine.on('error', () => {});
  t.after(() => mine.end());
  await oq.enqueue(pool, queue, 1, { retry: { kind: 'fixed', base: 0 } });
  start(t, new oq.Worker({
    db: pool, queue, pollMs: 100,
    handler: (job) => job.transact(mine, async (client) => {
      if (job.attempt > 1) return;
      const { rows: [{ pid }] } = await client.query('select pg_backend_pid() pid');
      const end = new Promise((resolve) => client.once('end', resolve));
      await pool.query('select pg_terminate_backend($1)', [pid]);
      await end;
    }),
  }));
  await until('it is done', async () => (await counts(queue)) === '1 0');
});

test('a pool that loses an idle client ends no process while a worker runs on it', async (t) => {
  const mine = new pg.Pool({ connectionString: named('idle') });
  t.after(() => mine.end());
  const lines = [];
  const logged = { queue: 'idle', handler: () => {}, logger: { warn: (line) => lines.push(line) } };
  const ends = Array.from({ length: 12 }, (_, i) => start(t, new oq.Worker({ db: mine, ...(i === 0 ? logged : { queue: 'idle', handler: () => {} }) })));
  assert.equal(mine.listenerCount('error'), 1);
  const pid = await ask('select pg_backend_pid()', [], mine);
  await pool.query('select pg_terminate_backend($1)', [pid]);
  await until('it is logged', () => lines.some((line) => /^worker .*: the pool lost a client: terminating/.test(line)));
  await Promise.all(ends.map((end) => end()));
  assert.equal(mine.listenerCount('error'), 0);
});

for (const pooler of [false, true]) {
  test(`a lock_timeout of the role’s is no judgment on a job${pooler ? ', behind a pooler either' : ''}`, async (t) => {
    const queue = `lock-timeout-${pooler}`;
    const db = { connectionString: url, options: '-c lock_timeout=200ms' };
    const begun = {};
    const events = [];
    const [acks, fails] = await oq.enqueueBulk(pool, queue, ['acks', 'fails', 'beside'], { maxRetries: 0 });
    const stop = start(t, new oq.Worker({
      db, queue, pooler, concurrency: 3, observe: (e) => events.push(`${e.job.payload} ${e.state}`),
      handler: async (job) => {
        begun[job.payload] = (begun[job.payload] ?? 0) + 1;
        if (job.payload === 'beside') return;
        const tx = await pool.connect();
        t.after(() => tx.release(true));
        await tx.query('begin');
        await oq.cancel(tx, job.id);
        sleep(1500).then(() => tx.query('rollback'));
        if (job.payload === 'fails') throw new oq.Failed('as it goes');
      },
    }));
    await until('all ended', async () => (await counts(queue)) === '2 1');
    await stop();
    assert.deepEqual(events.sort(), ['acks acked', 'beside acked', 'fails dead']);
    assert.deepEqual(begun, { acks: 1, fails: 1, beside: 1 });
    assert.equal((await oq.get(pool, acks)).attempt, 1);
    assert.equal((await oq.get(pool, fails)).error, 'as it goes');
  });
}

test('a connection that leads to a standby is given up for another', async (t) => {
  const queue = 'standby';
  let made = 0;
  const db = () => new pg.Client({ connectionString: url, options: made++ < 3 ? '-c default_transaction_read_only=on' : '' });
  await oq.enqueue(pool, queue);
  start(t, new oq.Worker({ db, queue, handler: () => {} }));
  await until('it is done', async () => (await counts(queue)) === '1 0');
  assert.ok(made > 3, `${made} connections`);
});

test('where the default isolation is SERIALIZABLE, one lost lease takes no other with it', async (t) => {
  const queue = 'strict';
  const db = () => new pg.Client({ connectionString: url, options: '-c default_transaction_isolation=serializable' });
  const [lost, kept] = await oq.enqueueBulk(pool, queue, ['lost', 'kept']);
  const leased = deferred();
  const told = deferred();
  start(t, new oq.Worker({
    db, queue, leaseSeconds: 2,
    handler: async (job) => {
      if (job.payload === 'kept') return sleep(4000, undefined, { signal: job.signal });
      job.signal.addEventListener('abort', () => told.resolve(job.why));
      leased.resolve(job.token);
      return sleep(60_000, undefined, { signal: job.signal });
    },
  }));
  await pool.query('select oq_release($1, $2, $3)', [lost, await leased.promise, '1 hour']);
  assert.equal(await told.promise, 'lost');
  // Whose lease ended would be taken from him at once.
  await until('the other is done', async () => (await pool.query('select oq_reap()')) &&
    (await ask("select concat_ws(' ', state, attempt, lost_leases) from oq_get($1)", [kept])) === 'completed 1 0');
});

test('leases of another length: each job is kept by what its own lasts', async (t) => {
  const queue = 'lengths';
  const begun = [];
  const over = deferred();
  start(t, new oq.Worker({
    db: pool, queue, concurrency: 2,
    handler: (job) => {
      begun.push(job.id);
      return Promise.race([over.promise, sleep(60_000, undefined, { signal: job.signal, ref: false })]);
    },
  }));
  for (const seconds of [60, 1]) {
    await pool.query('select oq_create_queue($1, $2)', [queue, { lease_seconds: seconds }]);
    const id = await oq.enqueue(pool, queue);
    await until('it is begun', () => begun.includes(id));
    await sleep(1500); // Longer than the second lease.
  }
  const at = performance.now();
  // Whose lease ended would be taken from him at once.
  await until('a while', async () => (await pool.query('select oq_reap()')) && performance.now() > at + 2000);
  over.resolve();
  await until('both are done', async () => (await counts(queue)) === '2 0');
  assert.equal(await ask('select sum(lost_leases)::int from oq_jobs where queue_name = $1', [queue]), 0);
});

test('a job whose lease ended in the worker is not begun', async (t) => {
  const queue = 'over';
  const jobs = [];
  const events = [];
  await oq.enqueueBulk(pool, queue, ['first', 'late', 'last']);
  start(t, new oq.Worker({
    db: pool, queue, concurrency: 1, batch: 3, observe: (e) => events.push(`${e.job.payload} ${e.state}`),
    handler: async (job) => {
      jobs.push(job.payload);
      if (job.payload !== 'first') return;
      const began = performance.now;
      performance.now = () => began.call(performance) + 100_000; // As if the process had stood still.
      t.after(() => Object.assign(performance, { now: began }));
    },
  }));
  await until('all are observed', () => events.length === 3);
  assert.deepEqual(jobs, ['first']);
});

test('an ack after the end of its lease, or of the drain, is what the server says', async (t) => {
  const queue = 'overdue';
  const events = [];
  const begun = { lost: 0, kept: 0, last: 0, drained: 0 };
  const stands = deferred();
  const release = (job) => pool.query("select oq_release($1, $2, '1 hour')", [job.id, job.token]);
  const worker = new oq.Worker({
    db: pool, queue, concurrency: 3, observe: (e) => events.push(`${e.job.payload} ${e.state}`),
    handler: async (job) => {
      begun[job.payload]++;
      await until('all began', () => begun.lost && begun.kept && begun.last);
      if (job.payload === 'lost') await release(job);
      if (job.payload === 'drained') {
        worker.stop();
        await release(job);
      }
      if (job.payload !== 'last') return stands.promise;
      await sleep(200);
      const began = performance.now;
      performance.now = () => began.call(performance) + 100_000; // As if the process had stood still.
      t.after(() => Object.assign(performance, { now: began }));
      return stands.resolve();
    },
  });
  await oq.enqueueBulk(pool, queue, ['lost', 'kept', 'last']);
  const stop = start(t, worker);
  await until('all are observed', () => events.length === 3);
  assert.deepEqual(events.sort(), ['kept acked', 'last acked', 'lost lost']);
  await oq.enqueue(pool, queue, 'drained');
  await until('it is observed', () => events.length === 4);
  assert.equal(events[3], 'drained lost');
  await stop();
});

test('an ack over another connection: a server that crashed, or took over, may not know the lease', async (t) => {
  const queue = 'forgotten';
  const db = () => new pg.Client({ connectionString: url, application_name: queue });
  const [tokens, told, over] = [{}, {}, deferred()];
  const ids = await oq.enqueueBulk(pool, queue, ['forgotten', 'kept']);
  const stop = start(t, new oq.Worker({
    db, queue, concurrency: 3, leaseSeconds: 600, observe: (e) => { told[e.job.payload] = e.state; },
    handler: async (job) => {
      tokens[job.payload] = job.token;
      await over.promise;
    },
  }));
  await until('both run', () => tokens.forgotten && tokens.kept);
  await pool.query("select oq_release($1, $2, '1 hour')", [ids[0], tokens.forgotten]);
  await pool.query('select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = $1', [queue]);
  over.resolve();
  await until('both are observed', () => told.forgotten && told.kept);
  await stop();
  assert.deepEqual(told, { forgotten: 'lost', kept: 'acked' });
});

test('the signal of a job: lost, cancelled, timeout', async (t) => {
  const queue = 'signals';
  const got = {};
  const started = {};
  for (const what of ['cancelled', 'lost', 'timeout', 'late']) started[what] = deferred();
  const events = [];
  start(t, new oq.Worker({
    db: pool, queue, leaseSeconds: 6, observe: (e) => events.push(`${e.job.payload} ${e.state}`),
    middleware: [(next) => (job) => (job.payload === 'timeout' ? oq.timeout(20)(next)(job) : next(job))],
    handler: async (job) => {
      started[job.payload].resolve(job);
      try {
        await sleep(60_000, undefined, { signal: job.signal });
      } catch (error) {
        got[job.payload] = [job.why, job.signal.reason.why, job.signal.reason.name, error.name];
        throw error;
      }
    },
  }));
  const [cancelled, lost, timeout] = await oq.enqueueBulk(pool, queue, ['cancelled', 'lost', 'timeout'], { maxRetries: 0 });
  await started.cancelled.promise;
  await oq.cancel(pool, cancelled);
  const { token } = await started.lost.promise;
  await pool.query('select oq_release($1, $2, $3)', [lost, token, '1 hour']);
  await until('all told', () => Object.keys(got).length === 3 && events.length === 3);
  for (const why of ['cancelled', 'lost', 'timeout']) assert.deepEqual(got[why], [why, why, 'AbortError', 'AbortError']);
  assert.deepEqual(events.sort(), ['cancelled cancelled', 'lost lost', 'timeout dead']);
  assert.match((await oq.get(pool, timeout)).error, /caused by AbortError: the time for the job is over/);
  const late = await oq.enqueue(pool, queue, 'late');
  const job = await started.late.promise;
  await job.progress({ done: 1 });
  assert.deepEqual((await oq.get(pool, late)).progress, { done: 1 });
  await oq.cancel(pool, late);
  await assert.rejects(job.progress({ done: 2 }), (e) => e instanceof oq.Stopped && e.why === 'cancelled');
});

test('a job that is cancelled or lost after its time is over says so', async (t) => {
  const queue = 'overtime';
  const events = [];
  const reasons = [];
  start(t, new oq.Worker({
    db: pool, queue, leaseSeconds: 2, middleware: [oq.timeout(10)],
    observe: ({ job, state }) => events.push(`${job.payload} ${state} ${job.why}`),
    handler: async (job) => {
      await until('it is over', () => job.signal.aborted);
      if (job.payload === 'cancelled') await oq.cancel(pool, job.id);
      else await pool.query("select oq_release($1, $2, '1 hour')", [job.id, job.token]);
      await until('a heartbeat is told', () => job.why !== 'timeout');
      reasons.push(job.signal.reason.why);
      if (job.payload === 'lost') throw new Error('and fails');
    },
  }));
  await oq.enqueueBulk(pool, queue, ['cancelled', 'lost']);
  await until('both are observed', () => events.length === 2);
  assert.deepEqual(events.sort(), ['cancelled cancelled cancelled', 'lost lost lost']);
  assert.deepEqual(reasons, ['timeout', 'timeout']);
});

test('what is acked in a transaction of its own is acked, whatever is thrown after it', async (t) => {
  const queue = 'afterwards';
  const events = [];
  const does = {
    transact: (job) => job.transact(pool, () => {}),
    ack: async (job) => {
      const client = await pool.connect();
      await client.query('begin');
      await job.ack(client);
      await client.query('commit');
      client.release();
    },
    rollback: async (job) => {
      const client = await pool.connect();
      await client.query('begin');
      await job.ack(client);
      await client.query('rollback');
      client.release();
    },
    snooze: async (job) => {
      await does.ack(job);
      throw new oq.Snooze();
    },
  };
  start(t, new oq.Worker({
    db: pool, queue, observe: ({ job, state, error }) => events.push(`${job.payload} ${state} ${error?.message}`),
    handler: async (job) => {
      await does[job.payload](job);
      throw new Error('afterwards');
    },
  }));
  await oq.enqueueBulk(pool, queue, Object.keys(does), { maxRetries: 0 });
  await until('all are observed', () => events.length === 4);
  assert.deepEqual(events.sort(), [
    'ack acked afterwards', 'rollback dead afterwards', 'snooze acked snoozed for 0 ms', 'transact acked afterwards',
  ]);
  assert.equal(await counts(queue), '3 1');
});

test('draining: what runs is finished, or aborted and released', async (t) => {
  const queue = 'drained';
  const begun = deferred();
  const events = [];
  const control = new AbortController();
  await oq.enqueueBulk(pool, queue, [1, 2, 3, 4]);
  const run = new oq.Worker({
    db: pool, queue, concurrency: 2, batch: 4, drainMs: 200, observe: (e) => events.push(`${e.job.payload} ${e.state}`),
    handler: async (job) => {
      if (job.payload === 1) return sleep(50);
      begun.resolve();
      return sleep(60_000, undefined, { signal: job.signal });
    },
  }).run({ signal: control.signal });
  await begun.promise;
  control.abort();
  await run;
  assert.deepEqual(events.sort(), ['1 acked', '2 released', '3 released', '4 released']);
  assert.equal(await ask(`select string_agg(concat_ws(':', state, attempt, lost_leases), ' ' order by job_id) from oq_jobs
    where queue_name = $1`, [queue]), 'completed:1:0 ready:0:0 ready:0:0 ready:0:0');
});

test('many workers in a process share what they listen to', async (t) => {
  const warnings = [];
  const warned = (warning) => warnings.push(warning.message);
  process.on('warning', warned);
  t.after(() => process.removeListener('warning', warned));
  const workers = (n) => Array.from({ length: n }, () => new oq.Worker({ db: pool, queue: 'many', handler: () => {} }));
  const control = new AbortController();
  const aborted = workers(12).map((worker) => worker.run({ signal: control.signal }));
  const all = workers(12);
  const runs = all.map((worker) => worker.run({ signals: ['SIGUSR2', 'SIGHUP'] }));
  assert.deepEqual([process.listenerCount('SIGUSR2'), process.listenerCount('SIGHUP')], [1, 1]);
  await all[0].stop();
  assert.equal(process.listenerCount('SIGUSR2'), 1);
  control.abort();
  await Promise.all(aborted);
  process.kill(process.pid, 'SIGUSR2');
  await until('the signal is there', () => all.every((worker) => worker.stopping));
  assert.equal(process.listenerCount('SIGUSR2'), 0); // A second one does what it does without a worker.
  await Promise.all(runs);
  assert.equal(process.listenerCount('SIGHUP'), 0);
  assert.deepEqual(warnings, []);
});

test('handlers that never return are abandoned', async (t) => {
  const { grace } = pace;
  pace.grace = 50;
  t.after(() => Object.assign(pace, { grace }));
  await oq.enqueue(pool, 'stubborn');
  const begun = deferred();
  const never = deferred();
  const worker = new oq.Worker({ db: pool, queue: 'stubborn', drainMs: 0, handler: () => (begun.resolve(), never.promise) });
  const run = worker.run({ signals: [] });
  run.catch(() => {});
  await begun.promise;
  assert.equal(worker.stopping, false);
  await assert.rejects(worker.stop(), oq.Abandoned);
  await assert.rejects(run, oq.Abandoned);
  assert.equal(worker.stopping, true);
  never.resolve();
});

test('a worker that is stopped at once ends at once, whatever its connections are about', async () => {
  for (let ms = 0; ms < 30; ms++) {
    const began = performance.now();
    const worker = new oq.Worker({ db: pool, queue: 'brief', handler: () => {} });
    const run = worker.run({ signals: [] });
    await sleep(ms);
    await worker.stop();
    await run;
    const took = performance.now() - began;
    assert.ok(took < 15_000, `the worker stopped after ${ms} ms took ${took} ms`); // timeoutMs is 30 s
  }
});

test('a worker that holds nothing stops while it connects to a server that says nothing', async (t) => {
  const sockets = new Set();
  const silent = net.createServer((socket) => sockets.add(socket.resume().on('error', () => {}).on('close', () => sockets.delete(socket))));
  await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve));
  t.after(() => silent.close());
  const never = deferred();
  for (const db of [`postgres://x@127.0.0.1:${silent.address().port}/x`, () => never.promise]) {
    const worker = new oq.Worker({ db, queue: 'brief', handler: () => {} });
    const run = worker.run({ signals: [] });
    if (typeof db === 'string') await until('it connects', () => sockets.size > 0);
    await sleep(50);
    const began = performance.now();
    await worker.stop();
    await run;
    assert.ok(performance.now() - began < 10_000, `it took ${performance.now() - began} ms`);
  }
  const late = new pg.Client(url); // Made for a worker that has ended: nobody would end it.
  late.connect = () => assert.fail('it connects');
  never.resolve(late);
  await until('the sockets are closed', () => sockets.size === 0);
});

test('the time to connect is what the pool or config says', async (t) => {
  const silent = net.createServer((socket) => socket.resume().on('error', () => {}));
  await new Promise((resolve) => silent.listen(0, '127.0.0.1', resolve));
  t.after(() => silent.close());
  const warned = deferred();
  const db = { host: '127.0.0.1', port: silent.address().port, user: 'x', database: 'x', connectionTimeoutMillis: 100 };
  start(t, new oq.Worker({ db, queue: 'brief', handler: () => {}, logger: { warn: warned.resolve } }));
  assert.match(await Promise.race([warned.promise, sleep(10_000, 'nothing', { ref: false })]), /timeout/);
});

test('a prepared statement’s name stands for one text; who shares connections is told of pooler', async (t) => {
  const queue = 'names';
  const texts = new Map();
  class Spy extends pg.Client {
    query(config, ...rest) {
      if (typeof config?.name === 'string') {
        if (!texts.has(config.name)) texts.set(config.name, new Set());
        texts.get(config.name).add(config.text);
      }
      return super.query(config, ...rest);
    }
  }
  await oq.enqueueBulk(pool, queue, [1, 2], { maxRetries: 0 });
  const stop = start(t, new oq.Worker({
    db: () => new Spy(url), queue,
    handler: async (job) => {
      await job.progress(1);
      if (job.payload === 2) throw new oq.Failed('as it goes');
    },
  }));
  await until('all ended', async () => (await counts(queue)) === '1 1');
  await stop();
  assert.ok(texts.size >= 5, String(texts.size));
  for (const [name, given] of texts) assert.ok(given.size === 1 && name.length < 64, [name, ...given].join('\n'));
  for (const code of ['42P05', '26000']) {
    class Shared extends Spy {
      query(config, ...rest) {
        if (config?.name === undefined) return super.query(config, ...rest);
        return Promise.reject(Object.assign(new Error(`prepared statement "${config.name}"`), { code }));
      }
    }
    await assert.rejects(new oq.Worker({ db: () => new Shared(url), queue, handler: () => {} }).run(), (error) =>
      error.code === code && /^prepared statement .* \(behind a transaction pooler\? set pooler: true\)$/.test(error.message));
  }
});

test('what a worker refuses', async () => {
  const handler = () => {};
  for (const options of [
    { queue: 'q', handler }, { db: 5, queue: 'q', handler }, { db: null, queue: 'q', handler }, { db: pool, handler },
    { db: pool, queue: 'q' }, { db: pool, queue: 'q', handler, leaseSeconds: 1.5 }, { db: pool, queue: 'q', handler, leaseSeconds: 0 },
    { db: pool, queue: 'q', handler, batch: 10_001 }, { db: pool, queue: 'q', handler, concurrency: 0 },
    { db: pool, queue: 'q', handler, concurrency: '5' }, { db: pool, queue: 'q', handler, pollMs: -1 },
    { db: pool, queue: 'q', handler, concurency: 5 },
  ]) {
    assert.throws(() => new oq.Worker(options), (error) => failed(error, 'OQ001', oq.ArgumentError));
  }
  for (const ms of [Infinity, 2 ** 31, 0, NaN, undefined]) {
    assert.throws(() => oq.timeout(ms), (error) => failed(error, 'OQ001', oq.ArgumentError));
  }
  const bad = new oq.Worker({ db: pool, queue: 'no queue', handler }); // The server's word.
  await assert.rejects(bad.run(), (error) => failed(error, 'OQ001', oq.ArgumentError));
  await assert.rejects(bad.run(), /runs once/);
  const nowhere = new URL(url);
  nowhere.pathname = '/nowhere';
  await assert.rejects(new oq.Worker({ db: nowhere.href, queue: 'q', handler }).run(), { code: '3D000' });
});

test('connections as the user’s are made', async (t) => {
  const client = new pg.Client({ connectionString: named('as-client'), ssl: false });
  const own = new pg.Pool({ connectionString: named('as-pool') });
  const u = new URL(url);
  const config = { host: u.hostname, port: Number(u.port), user: u.username, database: u.pathname.slice(1), application_name: 'as-config' };
  t.after(() => own.end());
  for (const [name, db] of Object.entries({
    'as-client': client, 'as-pool': own, 'as-text': named('as-text'), 'as-config': config,
    'as-function': async () => new pg.Client(named('as-function')),
  })) {
    const stop = start(t, new oq.Worker({ db, queue: name, handler: () => {} }));
    await oq.enqueue(pool, name);
    await until(`${name} works`, async () => (await counts(name)) === '1 0');
    assert.ok((await ask('select count(*)::int from pg_stat_activity where application_name = $1', [name])) >= 1, name);
    await stop();
    await until(`${name} leaves`, async () =>
      (await ask('select count(*)::int from pg_stat_activity where application_name = $1', [name])) === 0);
  }
});

test('a lease alone is committed without waiting for the disk, and nothing else is', async (t) => {
  const queue = 'commits';
  const seen = [];
  class Spy extends pg.Client {
    query(config, ...rest) {
      if (typeof config?.text !== 'string' || /show/.test(config.text)) return super.query(config, ...rest);
      const answer = super.query(config, ...rest);
      const shown = super.query('show synchronous_commit');
      return Promise.all([answer, shown]).then(([rows, { rows: [after] }]) => {
        seen.push([/'synchronous_commit', 'off', true/.test(config.text), /oq_ack|oq_next/.test(config.text), after.synchronous_commit]);
        return rows;
      });
    }
  }
  start(t, new oq.Worker({ db: () => new Spy(url), queue, handler: () => {} }));
  await oq.enqueueBulk(pool, queue, [1, 2, 3]);
  await until('all done', async () => (await counts(queue)) === '3 0');
  await until('both were seen', () => seen.some(([off]) => off) && seen.some(([, acks]) => acks));
  for (const [off, acks, after] of seen) assert.ok(!(off && acks) && after === 'on', `${off} ${acks} ${after}`);
});

test('a listener that died without a word is found out', async (t) => {
  pace.probe = 200;
  const queue = 'mute';
  const to = new URL(url);
  const made = [];
  const proxy = net.createServer((socket) => {
    const server = net.connect(Number(to.port), to.hostname);
    const silent = { yes: false, end: () => [socket, server].forEach((s) => s.destroy()) };
    made.push(silent);
    for (const [a, b] of [[socket, server], [server, socket]]) {
      a.on('data', (data) => silent.yes || b.write(data));
      a.on('error', () => {});
      a.on('close', () => silent.yes || b.destroy());
    }
  });
  await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const through = new URL(named(queue));
  through.hostname = '127.0.0.1';
  through.port = proxy.address().port;
  const lines = [];
  const acked = deferred();
  const stop = start(t, new oq.Worker({
    db: through.href, queue, pollMs: 3_600_000, timeoutMs: 2000, handler: () => {}, observe: acked.resolve,
    logger: { warn: (line) => lines.push(line) },
  }));
  await until('it listens', () => ask(`select exists (select from pg_locks join pg_stat_activity using (pid)
    where locktype = 'advisory' and mode = 'ShareLock' and application_name = $1)`, [queue]));
  await oq.enqueue(pool, queue);
  await acked.promise; // By a call that found nothing more: now it goes to sleep.
  await until('it sleeps', () => ask(`select bool_or(query like '%oq_listen(%' and exists (select from pg_locks l
    where l.pid = a.pid and locktype = 'advisory' and mode = 'ShareLock'))
    and bool_and(query like '%oq_listen(%' or state = 'idle' and state_change < clock_timestamp() - interval '1500 ms')
    from pg_stat_activity a where application_name = $1`, [queue]));
  for (const silent of made) silent.yes = true;
  await oq.enqueue(pool, queue);
  await until('the second is done', async () => (await counts(queue)) === '2 0');
  assert.ok(lines.some((line) => /listens no more, and polls: listening: no answer/.test(line)), lines.join('\n'));
  await stop();
  proxy.close();
  for (const { end } of made) end();
});
