import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const run = async (cwd, command, ...args) => {
  try {
    return (await promisify(execFile)(command, args, { cwd })).stdout;
  } catch (error) {
    return assert.fail(`${command} ${args.join(' ')}: ${error.stdout}${error.stderr}`);
  }
};

test('the packed package, in an empty folder beside pg', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'openqueue-'));
  t.after(() => rm(dir, { recursive: true }));
  const [{ filename, files }] = JSON.parse(await run(root, 'npm', 'pack', '--silent', '--json', '--pack-destination', dir));
  assert.deepEqual(files.map((f) => f.path).filter((path) => !path.startsWith('lib/')).sort(), [
    'LICENSE', 'README.md', 'index.d.ts', 'index.js', 'package.json', 'testing.d.ts', 'testing.js',
  ]);
  const versions = JSON.parse(await readFile(join(root, 'package.json'))).devDependencies;
  await writeFile(join(dir, 'package.json'), '{"type": "module"}');
  await run(dir, 'npm', 'install', '--no-audit', '--no-fund', '--prefer-offline', `./${filename}`,
    ...['pg', '@types/pg', '@types/node'].map((name) => `${name}@${versions[name]}`));
  const source = `import { enqueue, Worker } from 'openqueue';
import { drain } from 'openqueue/testing';
console.log(enqueue.name, Worker.name, drain.name);
`;
  await writeFile(join(dir, 'main.mjs'), source);
  assert.equal(await run(dir, process.execPath, 'main.mjs'), 'enqueue Worker drain\n');
  await writeFile(join(dir, 'main.mts'), `${source}const id: Promise<bigint> = enqueue(new (await import('pg')).default.Pool(), 'q');\nvoid id;\n`);
  await run(dir, process.execPath, join(root, 'node_modules/typescript/bin/tsc'), '--strict', '--target', 'es2022',
    '--module', 'nodenext', '--noEmit', 'main.mts');
});

test('what the README of the repository says to install, from a clone', async (t) => {
  const [dir, clone] = await Promise.all(['project-', 'clone-'].map((name) => mkdtemp(join(tmpdir(), name))));
  t.after(() => Promise.all([dir, clone].map((path) => rm(path, { recursive: true }))));
  const own = (path) => !['node_modules', '.git', '.openqueue', 'LICENSE'].includes(basename(path));
  await cp(root, join(clone, 'clients/node'), { recursive: true, filter: own });
  await cp(join(root, '../../LICENSE'), join(clone, 'LICENSE'));
  const readme = await readFile(join(root, '../../README.md'), 'utf8');
  const [, words] = /^Node, with `npm ([^`]*)`/m.exec(readme);
  const args = words.split(' ').map((word) => word.replace(/^.*\/clients\/node$/, join(clone, 'clients/node')));
  await writeFile(join(dir, 'package.json'), '{"type": "module"}');
  await run(dir, 'npm', '--no-audit', '--no-fund', '--prefer-offline', ...args);
  await writeFile(join(dir, 'main.mjs'), "import { enqueue } from 'openqueue';\nconsole.log(enqueue.name);\n");
  assert.equal(await run(dir, process.execPath, 'main.mjs'), 'enqueue\n');
});
