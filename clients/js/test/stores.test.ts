import { MemoryStore } from '@pg-tide/client'
import type { Store } from '@pg-tide/client'
import { FileStore } from '@pg-tide/client/node'
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { appendFileSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import { newFolder } from './client.js'

const stores: [string, () => Store][] = [
  ['MemoryStore', () => new MemoryStore()],
  ['FileStore', () => new FileStore(newFolder())],
]

for (const [name, make] of stores) {
  test(`${name} has what was written, by space`, async () => {
    const store = make()
    await store.write('a/1', { put: [['x', { n: 1 }], ['y', null]] })
    await store.write('a/2', { put: [['x', 'other']] })
    await store.write('a/1', { delete: ['y'], put: [['z', [1, 2]]] })

    assert.deepEqual(await store.read('a/1'), new Map<string, unknown>([['x', { n: 1 }], ['z', [1, 2]]]))
    assert.deepEqual((await store.spaces('a/')).sort(), ['a/1', 'a/2'])
    await store.write('a/1', { clear: true, put: [['w', 0]] })
    assert.deepEqual(await store.read('a/1'), new Map([['w', 0]]))
    assert.deepEqual(await store.read('none'), new Map())
    await store.close()
  })

  test(`${name} gives a lock to one`, async () => {
    const store = make()
    const unlock = await store.lock('one')
    assert.ok(unlock)
    assert.equal(await store.lock('one'), null)
    unlock()
    assert.ok(await store.lock('one'))
  })
}

test('a file that was cut off in the middle of a line has what was before, and goes on', async () => {
  const folder = newFolder()
  const first = new FileStore(folder)
  await first.write('space', { put: [['a', 1]] })
  await first.close()
  appendFileSync(join(folder, 'space.jsonl'), '{"put":[["b"')

  const second = new FileStore(folder)
  assert.deepEqual(await second.read('space'), new Map([['a', 1]]))
  await second.write('space', { put: [['c', 3]] })
  await second.close()

  assert.deepEqual(await new FileStore(folder).read('space'), new Map([['a', 1], ['c', 3]]))
})

test('a file does not grow with what is written over', async () => {
  const folder = newFolder()
  const store = new FileStore(folder)
  for (let n = 0; n < 5000; n += 1) await store.write('space', { put: [['a', n]] })
  await store.close()

  assert.ok(statSync(join(folder, 'space.jsonl')).size < 50_000)
  assert.deepEqual(await new FileStore(folder).read('space'), new Map([['a', 4999]]))
})

test('the lock of a process that is gone is free', async () => {
  const folder = newFolder()
  const program = `import { FileStore } from '@pg-tide/client/node'
    if (!(await new FileStore(process.argv[1]).lock('one'))) process.exit(1)`
  const run = () => spawnSync(process.execPath, ['--input-type=module', '-e', program, folder], { cwd: import.meta.dirname })
  assert.equal(run().status, 0)
  assert.deepEqual(readdirSync(folder), ['one.lock'])
  assert.equal(run().status, 0)

  const unlock = await new FileStore(folder).lock('one')
  assert.ok(unlock)
  assert.equal(run().status, 1)
  unlock()
})
