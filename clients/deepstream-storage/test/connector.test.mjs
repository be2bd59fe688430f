// Every method and option of @deepstream/storage-postgres 3.0, as that has them.

import assert from 'node:assert/strict'
import test from 'node:test'
import { Inbox } from '../../../pgrx-tests/node/inbox.js'
import support from './support.js'

const { Connector, ROLE, ask, connect, freshSchema, get, limits, options, prepared } = support
const { quietServices, remove, rowsOf, set, sql } = support

test('the module is the connector, by each of its names, with its methods and defaults', async () => {
  const module = await import('../index.js')
  for (const name of ['default', 'Connector']) assert.equal(module.default[name], module.default, name)
  const connector = new Connector({}, quietServices())
  const methods = `init whenReady set get delete deleteBulk query createSchema destroySchema
    getSchemaOverview subscribe unsubscribe destroy close`
  for (const method of methods.split(/\s+/)) assert.equal(typeof connector[method], 'function', method)
  assert.deepEqual(connector.options, {
    schema: 'ds',
    splitChar: '/',
    idleTimeoutMillis: 30_000,
    writeInterval: 200,
    retryTimeoutMillis: 60_000,
    defaultTable: 'default',
    notifications: {
      CREATE_TABLE: true, DESTROY_TABLE: true, INSERT: true, UPDATE: true, DELETE: true,
    },
  })
})

test('four connectors start at the same time on one schema', limits, async (t) => {
  const schema = freshSchema()
  await Promise.all(Array.from({ length: 4 }, () => connect(t, { schema })))
})

test('a connector without services logs to stdout, and closes', limits, async () => {
  await prepared
  const connector = new Connector({ ...options, schema: freshSchema() })
  connector.init()
  await connector.whenReady()
  await new Promise((resolve) => connector.destroy(resolve))
})

test('schemas are made and destroyed, by promise and by callback', limits, async (t) => {
  const connector = await connect(t)
  const exists = async (name) => (await sql('select from pg_namespace where nspname = $1', [name])).length
  const [one, two] = [freshSchema(), `${freshSchema()} With "Quotes"`]
  await connector.createSchema(one)
  await ask(connector, 'createSchema', two)
  await connector.createSchema(one)
  assert.equal(await exists(one), 1)
  assert.equal(await exists(two), 1)
  await sql(`create table ${one}.t (id int)`)
  await connector.destroySchema(one)
  await ask(connector, 'destroySchema', two)
  assert.equal(await exists(one), 0)
  assert.equal(await exists(two), 0)
  await assert.rejects(connector.destroySchema(one), { code: '3F000' })
  await assert.rejects(ask(connector, 'destroySchema', one), { code: '3F000' })
})

test('records are set, got and deleted', limits, async (t) => {
  const connector = await connect(t)
  assert.deepEqual(await get(connector, 'cars/bmw'), [-1, null])
  await set(connector, 'cars/bmw', { doors: 4 }, 10)
  assert.deepEqual(await get(connector, 'cars/bmw'), [10, { doors: 4 }])
  await set(connector, 'cars/bmw', { doors: 5 }, 3)
  assert.deepEqual(await get(connector, 'cars/bmw'), [3, { doors: 5 }], 'an older version is stored')
  await remove(connector, 'cars/bmw')
  assert.deepEqual(await get(connector, 'cars/bmw'), [-1, null])
  await remove(connector, 'cars/bmw')
})

test('deleteBulk deletes many records of many tables', limits, async (t) => {
  const connector = await connect(t)
  const names = ['a/1', 'a/2', 'b/1', 'lonely']
  await Promise.all([...names, 'b/2'].map((name) => set(connector, name, { name })))
  await ask(connector, 'deleteBulk', [...names, 'none/none'])
  assert.deepEqual(await connector.getSchemaOverview(), { b: 1 })
  await ask(connector, 'deleteBulk', [])
})

test('keys go to tables by their first slash, or to defaultTable', limits, async (t) => {
  const connector = await connect(t, { defaultTable: 'others' })
  await set(connector, 'x/y/z', { at: 'slashes' })
  await set(connector, 'plain', { at: 'default' })
  const [{ id }] = await sql(`select id from ${connector.options.schema}.x`)
  assert.equal(id, 'y/z')
  assert.deepEqual(await connector.getSchemaOverview(), { x: 1, others: 1 })
  assert.deepEqual(await get(connector, 'plain'), [1, { at: 'default' }])
  assert.deepEqual(await get(connector, 'others/plain'), [1, { at: 'default' }])
})

test('several sets in one interval are one write, and all are called back', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  await connector.subscribe(events.put)
  await Promise.all([1, 2, 3, 4, 5].map((n) => set(connector, 'cars/bmw', { n }, n)))
  await set(connector, 'cars/end', {})
  assert.deepEqual(await get(connector, 'cars/bmw'), [5, { n: 5 }])
  assert.deepEqual(await events.takeMany(3), [
    { event: 'CREATE_TABLE', table: 'cars' },
    { event: 'INSERT', table: 'cars', key: 'bmw' },
    { event: 'INSERT', table: 'cars', key: 'end' },
  ])
})

test('sets of later turns of the event loop are one write, which comes at writeInterval', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 3_600_000 })
  const events = new Inbox()
  await connector.subscribe(events.put)
  const stored = []
  for (const n of [1, 2, 3, 4]) {
    stored.push(set(connector, 'cars/bmw', { n }, n))
    await new Promise(setImmediate)
  }
  // The read is answered, so that a write that is sent before it would be seen.
  assert.deepEqual(await connector.getSchemaOverview(), {})
  await connector.close()
  await Promise.all(stored)
  assert.deepEqual(await events.takeMany(2), [
    { event: 'CREATE_TABLE', table: 'cars' },
    { event: 'INSERT', table: 'cars', key: 'bmw' },
  ])
  assert.deepEqual(await rowsOf(connector, 'cars'), [{ id: 'bmw', version: 4, val: { n: 4 } }])
})

test('writeInterval begins with the first set, and begins again with the next', limits, async (t) => {
  const connector = await connect(t, { idleTimeoutMillis: 0 })
  await set(connector, 'cars/bmw', {})
  t.mock.timers.enable({ apis: ['setTimeout'] })
  for (const round of [1, 2]) {
    const stored = [set(connector, 'cars/bmw', { round, n: 1 })]
    t.mock.timers.tick(4)
    stored.push(set(connector, 'cars/bmw', { round, n: 2 }))
    t.mock.timers.tick(1)
    await Promise.all(stored)
    assert.deepEqual(await rowsOf(connector, 'cars'), [{ id: 'bmw', version: 1, val: { round, n: 2 } }])
  }
  t.mock.timers.reset()
})

test('events have the names and members that they always had', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'cars/bmw', { n: 1 })
  await set(connector, 'cars/bmw', { n: 2 })
  await set(connector, 'cars/vw', {})
  await remove(connector, 'cars/bmw')
  await remove(connector, 'cars/vw')
  assert.deepEqual(await events.takeMany(6), [
    { event: 'CREATE_TABLE', table: 'cars' },
    { event: 'INSERT', table: 'cars', key: 'bmw' },
    { event: 'UPDATE', table: 'cars', key: 'bmw' },
    { event: 'INSERT', table: 'cars', key: 'vw' },
    { event: 'DELETE', table: 'cars', key: 'bmw' },
    { event: 'DELETE', table: 'cars', key: 'vw' },
  ])
  assert.deepEqual(await events.take(), { event: 'DESTROY_TABLE', table: 'cars' })
  assert.deepEqual(await connector.getSchemaOverview(), {})
})

test('notifications replaces the defaults as a whole', limits, async (t) => {
  const connector = await connect(t, { notifications: { UPDATE: true } })
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'cars/bmw', { n: 1 })
  await set(connector, 'cars/bmw', { n: 2 })
  await remove(connector, 'cars/bmw')
  await set(connector, 'cars/vw', { n: 1 })
  await set(connector, 'cars/vw', { n: 2 })
  assert.deepEqual((await events.takeMany(2)).map(({ key }) => key), ['bmw', 'vw'])
})

test('subscriptions are per schema, and end', limits, async (t) => {
  const connector = await connect(t)
  const other = freshSchema()
  await connector.createSchema(other)
  const [own, others] = [new Inbox(), new Inbox()]
  await ask(connector, 'subscribe', own.put)
  await new Promise((resolve) => connector.subscribe(others.put, resolve, other))
  await sql(`select tide.record_set('cars/bmw', '1', schema => $1)`, [other])
  assert.deepEqual(await others.take(({ event }) => event === 'INSERT'), {
    event: 'INSERT', table: 'cars', key: 'bmw',
  })
  await connector.unsubscribe(others.put, undefined, other)
  await sql(`select tide.record_set('cars/vw', '1', schema => $1)`, [other])
  await set(connector, 'cars/seat', {})
  assert.equal((await own.take()).event, 'CREATE_TABLE')
  assert.equal((await own.take()).key, 'seat')
  await connector.subscribe(others.put, undefined, other)
  await sql(`select tide.record_set('cars/skoda', '1', schema => $1)`, [other])
  assert.equal((await others.take(({ event }) => event === 'INSERT')).key, 'skoda')
})

test('the overview counts, by promise and by callback, and knows no unknown schema', limits, async (t) => {
  const connector = await connect(t)
  await Promise.all(['a/1', 'a/2', 'b/1'].map((name) => set(connector, name, {})))
  const { schema } = connector.options
  assert.deepEqual(await connector.getSchemaOverview(), { a: 2, b: 1 })
  assert.deepEqual(await connector.getSchemaOverview(schema), { a: 2, b: 1 })
  assert.deepEqual(await ask(connector, 'getSchemaOverview'), [{ a: 2, b: 1 }])
  const told = await new Promise((resolve) => connector.getSchemaOverview((_, tables) => resolve(tables), schema))
  assert.deepEqual(told, { a: 2, b: 1 })
  assert.deepEqual(await connector.getSchemaOverview('there is none'), {})
})

test('query passes arguments, results and errors on', limits, async (t) => {
  const connector = await connect(t)
  const run = (...args) =>
    new Promise((resolve) => connector.query(args[0], (error, result) => resolve({ error, result }), ...args.slice(1)))
  assert.deepEqual((await run('select 1 as one')).result.rows, [{ one: 1 }])
  assert.deepEqual((await run('select $1::int + 1 as n', [41])).result.rows, [{ n: 42 }])
  assert.equal((await run('select broken', [], true)).error.code, '42703')
  assert.deepEqual((await run('select 1 as a; select 2 as b')).result.map(({ rows }) => rows), [[{ a: 1 }], [{ b: 2 }]])
})

test('role owns the schema that is made, and its tables', limits, async (t) => {
  await prepared
  const role = `${ROLE}_owner`
  await sql(`create role ${role}; grant ${role} to ${ROLE}, tide_authenticator;
    grant create on database ${process.env.PGDATABASE} to ${role}`)
  const connector = await connect(t, { role })
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'cars/bmw', {})
  const [{ owner }] = await sql(
    `select tableowner as owner from pg_tables where schemaname = $1`, [connector.options.schema])
  assert.equal(owner, role)
  assert.equal((await events.take(({ event }) => event === 'INSERT')).key, 'bmw')
})

test('a table that the earlier connector made, with text values, is read and written', limits, async (t) => {
  const connector = await connect(t)
  const { schema } = connector.options
  await sql(`
    create table ${schema}.old (id text not null, version int default 0, val text not null, primary key (id));
    alter table ${schema}.old owner to ${ROLE};
    insert into ${schema}.old values ('it', 3, '{"a": [1, "b"]}')`)
  assert.deepEqual(await get(connector, 'old/it'), [3, { a: [1, 'b'] }])
  await set(connector, 'old/it', { a: 2 }, 4)
  assert.deepEqual(await get(connector, 'old/it'), [4, { a: 2 }])
})
