import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import * as openqueue from '../index.js';
import { pool } from './help.js';

const here = fileURLToPath(new URL('.', import.meta.url));

test('the types say what is there, and refuse what is not', async (t) => {
  // In the package's folder, so that it finds the package by its name.
  const dir = await mkdtemp(join(here, 'types-'));
  t.after(() => rm(dir, { recursive: true }));
  await promisify(execFile)(process.execPath, [
    join(here, '../node_modules/typescript/bin/tsc'), '--strict', '--noUncheckedIndexedAccess', '--exactOptionalPropertyTypes',
    '--target', 'es2022', '--module', 'nodenext', '--types', 'node', '--rootDir', here, '--outDir', dir, join(here, 'types.ts'),
  ]).catch((error) => assert.fail(error.stdout));
  const { names, options, use } = await import(pathToFileURL(join(dir, 'types.js')));
  assert.deepEqual(Object.keys(names).sort(), Object.keys(openqueue).sort());
  const sent = [];
  assert.deepEqual(await use(pool, (...query) => sent.push(query)), [
    'g@h', 'undefined', '20', 'c@d', 'undefined', '20', 'completed', 'completed', 'x', '', 'lost', 'x', '1',
  ]);
  // Those that the types forgot: the library lists what it takes.
  const listed = (error) => /there are (.*)\)/.exec(error.message)[1].split(', ');
  const known = await openqueue.enqueueMany(pool, [{ none: 1 }]).catch(listed);
  assert.deepEqual(known.sort(), ['queue', 'payload', 'ref', 'dependsOnRefs', ...Object.keys(options)].sort());
});
