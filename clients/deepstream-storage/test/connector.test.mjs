// Every method and option of @deepstream/storage-postgres 3.0, as that has them.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import test from 'node:test'
import pg from 'pg'
import { Inbox } from '../../../pgrx-tests/node/inbox.js'
import support from './support.js'

const { Connector, ROLE, ask, connect, freshSchema, get, limits, makeGate, options, prepared } = support
const { quietServices, remove, rowsOf, set, sql, unready } = support

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

/** What the callbacks of a connector's method get, once they have been called. */
function outcomes(connector, method) {
  const inbox = new Inbox()
  const original = connector[method].bind(connector)
  const spied = (callback) => (error, ...values) => {
    callback(error, ...values)
    inbox.put([error, ...values])
  }
  // The callback of all the snippet's calls is their last argument.
  connector[method] = (...args) => original(...args.slice(0, -1), spied(args.at(-1)))
  return inbox
}

test("the snippet of deepstream's documentation runs as it is", limits, async (t) => {
  await prepared
  const snippet = readFileSync(new URL('snippet.js', import.meta.url), 'utf8')
  const env = { PG_USER: ROLE, PG_DB: options.database, PG_HOST: options.host, PG_PORT: process.env.PGPORT }
  const run = new Function('require', 'process', `${snippet}; return connector`)
  const connector = run(() => createRequire(import.meta.url)('..'), { env })
  t.after(() => connector.close())
  const calls = ['subscribe', 'unsubscribe', 'getSchemaOverview'].map((method) => outcomes(connector, method))
  const [subscribed, unsubscribed, overview] = await Promise.all(calls.map((call) => call.take()))
  assert.equal(subscribed[0], null)
  assert.equal(unsubscribed[0], null)
  assert.deepEqual(overview, [null, {}])
  assert.equal(connector.options.schema, 'ds')
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

test('whenReady waits for a Postgres that is not there yet', limits, async (t) => {
  const gate = await makeGate(t)
  gate.shut()
  const connector = await unready(t, gate.options)
  const heard = new Inbox()
  connector.on('ready', () => heard.put('ready'))
  connector.init()
  const ready = connector.whenReady().then(() => heard.put('whenReady'))
  await once(gate, 'refusal')
  await once(gate, 'refusal')
  heard.put('refused')
  gate.open()
  await ready
  assert.deepEqual(await heard.takeMany(3), ['refused', 'ready', 'whenReady'])
  await set(connector, 'cars/bmw', {})
})

test('a connector that cannot become ready says why, once each way', limits, async (t) => {
  const connector = await unready(t, { schema: 's'.repeat(64) })
  connector.init()
  await assert.rejects(connector.whenReady(), { code: '42622' })
  assert.match(connector.services.lines.join('\n'), /longer than 63 bytes/)

  const listening = await unready(t, { schema: 's'.repeat(64) })
  listening.init()
  assert.equal((await once(listening, 'error'))[0].code, '42622')
  assert.deepEqual(listening.services.lines, [])
})

test('a connector is closed while it waits for Postgres', limits, async (t) => {
  const gate = await makeGate(t)
  gate.shut()
  const connector = await unready(t, gate.options)
  connector.init()
  await once(gate, 'refusal')
  await connector.close()
  await assert.rejects(connector.whenReady(), /closed/)
})

test('the user, the host and the database may come from a connection string', limits, async (t) => {
  // The system's user is not who connects.
  const { user } = pg.defaults
  pg.defaults.user = 'nobody'
  t.after(() => (pg.defaults.user = user))
  const { PGHOST, PGPORT = '5432', PGDATABASE } = process.env
  const connectionString = `postgres://${ROLE}@${encodeURIComponent(PGHOST)}:${PGPORT}/${PGDATABASE}`
  const none = { user: undefined, host: undefined, database: undefined }
  const connector = await connect(t, { connectionString, ...none })
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'cars/bmw', {})
  assert.equal((await events.take(({ key }) => key === 'bmw')).event, 'INSERT')
})

test("pg's options are pg's: max, idleTimeoutMillis", limits, async (t) => {
  const name = `n_${freshSchema()}`
  const connector = await connect(t, { max: 1, idleTimeoutMillis: 1, application_name: name })
  const pids = await Promise.all(Array.from({ length: 5 }, async () => {
    const [{ rows: [{ pid }] }] = await ask(connector, 'query', 'select pg_backend_pid() as pid')
    return pid
  }))
  assert.equal(new Set(pids).size, 1)
  const connected = () => sql('select from pg_stat_activity where application_name = $1', [name])
  while ((await connected()).length > 0) await new Promise(setImmediate)
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
  assert.deepEqual(await get(connector, 'cars/none'), [-1, null])
  await set(connector, 'cars/bmw', { doors: 5 }, 3)
  assert.deepEqual(await get(connector, 'cars/bmw'), [3, { doors: 5 }], 'an older version is stored')
  await remove(connector, 'cars/bmw')
  assert.deepEqual(await get(connector, 'cars/bmw'), [-1, null])
  await remove(connector, 'cars/bmw')
})

test('a record that is not there is deleted without error, whether its table is there or not', limits, async (t) => {
  const connector = await connect(t)
  await set(connector, 'cars/bmw', {})
  await remove(connector, 'cars/none')
  await remove(connector, 'none/none')
  assert.deepEqual(await connector.getSchemaOverview(), { cars: 1 })
})

test('a table is made as it is needed', limits, async (t) => {
  const connector = await connect(t)
  await set(connector, 'cars/bmw', {})
  const columns = await sql(
    `select attname, atttypid::regtype::text as type, attnotnull as needed from pg_attribute
     where attrelid = $1::regclass and attnum > 0 order by attnum`, [`${connector.options.schema}.cars`])
  assert.deepEqual(columns.map((column) => ({ ...column })), [
    { attname: 'id', type: 'text', needed: true },
    { attname: 'version', type: 'bigint', needed: true },
    { attname: 'val', type: 'jsonb', needed: true },
  ])
})

test('errors of writes are texts, and those of reads are errors', limits, async (t) => {
  const connector = await connect(t)
  await sql(`create table ${connector.options.schema}.secret (id text primary key, version int, val jsonb)`)
  const written = await new Promise((resolve) => connector.set('secret/a', 1, {}, resolve))
  assert.equal(written, 'error: permission denied for table secret')
  const read = await new Promise((resolve) => connector.get('secret/a', resolve))
  assert.equal(read.code, '42501')
})

test('splitChar changes nothing: the slash splits', limits, async (t) => {
  const connector = await connect(t, { splitChar: ':' })
  await set(connector, 'a:b/c:d', {})
  assert.deepEqual(await connector.getSchemaOverview(), { 'a:b': 1 })
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

/** A set in each of so many turns of the event loop. */
async function setInTurns(connector, count) {
  const stored = []
  for (let n = 1; n <= count; n += 1) {
    stored.push(set(connector, 'cars/bmw', { n }, n))
    await new Promise(setImmediate)
  }
  return stored
}

test('sets of later turns of the event loop are one write, and an INSERT alone', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 3_600_000 })
  const events = []
  await connector.subscribe((event) => events.push(event))
  const stored = await setInTurns(connector, 4)
  await connector.close()
  // They call back after their events.
  await Promise.all(stored)
  assert.deepEqual(events, [
    { event: 'CREATE_TABLE', table: 'cars' },
    { event: 'INSERT', table: 'cars', key: 'bmw' },
  ])
})

test('writeInterval begins with the first set, and begins again with the next', limits, async (t) => {
  t.after(() => t.mock.timers.reset())
  const connector = await connect(t, { idleTimeoutMillis: 0, writeInterval: 5 })
  const events = []
  await connector.subscribe(({ event }) => events.push(event))
  t.mock.timers.enable({ apis: ['setTimeout'] })
  for (const expected of [['CREATE_TABLE', 'INSERT'], ['UPDATE']]) {
    const stored = await setInTurns(connector, 1)
    t.mock.timers.tick(4)
    stored.push(...(await setInTurns(connector, 2)))
    t.mock.timers.tick(1)
    await Promise.all(stored)
    assert.deepEqual(events.splice(0), expected)
    assert.deepEqual(await rowsOf(connector, 'cars'), [{ id: 'bmw', version: 2, val: { n: 2 } }])
  }
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

test('TRUNCATE is told to those who are told of deletes, or only to those who ask', limits, async (t) => {
  const schema = freshSchema()
  const told = []
  const choices = [{}, { DELETE: true }, { DELETE: true, TRUNCATE: false }, { TRUNCATE: true }]
  for (const [n, notifications] of choices.entries()) {
    const connector = await connect(t, n === 0 ? { schema } : { schema, notifications })
    const events = new Inbox()
    await connector.subscribe(events.put)
    told.push(events)
  }
  await sql(`create table ${schema}.cars (id text primary key, version int, val jsonb);
    alter table ${schema}.cars owner to ${ROLE};
    insert into ${schema}.cars values ('bmw', 1, '{}'), ('vw', 1, '{}');
    truncate ${schema}.cars;
    insert into ${schema}.cars values ('end', 1, '{}');
    delete from ${schema}.cars`)
  const truncate = { event: 'TRUNCATE', table: 'cars' }
  const gone = { event: 'DELETE', table: 'cars', key: 'end' }
  const [all, deletes, rows, truncates] = told
  assert.deepEqual((await all.takeMany(6)).slice(3), [truncate, { ...gone, event: 'INSERT' }, gone])
  assert.deepEqual(await deletes.takeMany(2), [truncate, gone])
  assert.deepEqual(await rows.take(), gone)
  assert.deepEqual(await truncates.take(), truncate)
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

test('unsubscribe takes a callback, or what to call when all are removed', limits, async (t) => {
  const connector = await connect(t)
  const [one, two] = [new Inbox(), new Inbox()]
  await connector.subscribe(one.put)
  await connector.subscribe(two.put)
  await connector.unsubscribe(two.put)
  await connector.unsubscribe(two.put)
  await set(connector, 'cars/bmw', {})
  assert.equal((await one.takeMany(2))[1].key, 'bmw', 'a callback that was removed before is not "all"')
  assert.equal(await new Promise((resolve) => connector.unsubscribe(resolve)), null)
  await set(connector, 'cars/vw', {})
  await connector.subscribe(one.put)
  await set(connector, 'cars/seat', {})
  assert.equal((await one.take()).key, 'seat')
})

test('a subscription that is given up before it is established is no failure', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  const given = [connector.subscribe(events.put), ask(connector, 'subscribe', events.put)]
  await connector.unsubscribe()
  const kept = connector.subscribe(events.put)
  await Promise.all([...given, kept])
  await set(connector, 'cars/bmw', {})
  assert.equal((await events.takeMany(2))[1].key, 'bmw')
  await set(connector, 'cars/vw', {})
  assert.equal((await events.take()).key, 'vw', 'and comes once')
})

test('the overview counts, by promise and by callback, and knows no unknown schema', limits, async (t) => {
  const connector = await connect(t)
  await Promise.all(['a/1', 'a/2', 'b/1'].map((name) => set(connector, name, {})))
  const { schema } = connector.options
  await sql(`create view ${schema}.v as select * from ${schema}.a; grant select on ${schema}.v to ${ROLE}`)
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
  assert.deepEqual(connector.services.lines, [], 'silent')
  assert.equal((await run('select broken')).error.code, '42703')
  assert.match(connector.services.lines.join(), /"broken" does not exist/)
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
