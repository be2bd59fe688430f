// The unmodified deepstream server over the connector, and two clients of it.

import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'
import test from 'node:test'
import { DeepstreamClient } from '@deepstream/client'
import { Inbox } from '../../../pgrx-tests/node/inbox.js'
import support from './support.js'

const { freshSchema, limits, makeGate, options, prepared, sql, terminateWorker } = support

async function freePort() {
  const listener = createServer().listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const { port } = listener.address()
  listener.close()
  return port
}

/** A server, as a process of its own, and two clients of it. */
async function start(t, { schema = freshSchema(), ...more } = {}) {
  await prepared
  const script = fileURLToPath(new URL('deepstream-server.js', import.meta.url))
  const port = await freePort()
  const server = fork(script, [port, JSON.stringify({ ...options, schema, ...more })])
  const exited = once(server, 'exit')
  const stop = async () => {
    if (server.connected) server.send('stop')
    return exited
  }
  t.after(stop)
  const [started] = await Promise.race([once(server, 'message'), exited])
  assert.equal(started, 'started')
  const clients = await Promise.all([0, 1].map(async () => {
    const client = new DeepstreamClient(`ws://127.0.0.1:${port}/deepstream`)
    t.after(() => client.close())
    await client.login()
    return client
  }))
  return { schema, stop, clients }
}

/** A client's record that is loaded. */
const load = (client, name) => client.record.getRecord(name).whenReady()

/** What a record becomes, from now on. */
function changesOf(record) {
  const inbox = new Inbox()
  record.subscribe((data) => inbox.put(structuredClone(data)))
  return inbox
}

test('records: what one client sets the other gets, and Postgres has', limits, async (t) => {
  const { schema, clients: [one, two] } = await start(t)
  const [ours, theirs] = await Promise.all([load(one, 'cars/bmw'), load(two, 'cars/bmw')])
  const seen = changesOf(theirs)
  await ours.setWithAck({ doors: 4, owner: { name: "O'Hara" } })
  assert.deepEqual(await seen.take(({ doors }) => doors === 4), { doors: 4, owner: { name: "O'Hara" } })
  await ours.setWithAck('owner.name', 'Ann')
  await seen.take(({ owner }) => owner.name === 'Ann')
  const [row] = await sql(`select version, val from ${schema}.cars where id = 'bmw'`)
  assert.deepEqual(row.val, { doors: 4, owner: { name: 'Ann' } })
  assert.equal(Number(row.version), 2)
  assert.deepEqual(await two.record.snapshot('cars/bmw'), row.val)
  assert.equal(await two.record.has('cars/none'), false)

  const gone = once(theirs, 'delete')
  ours.delete()
  await gone
  assert.equal(await one.record.has('cars/bmw'), false)
})

test('records are there again after the server has stopped', limits, async (t) => {
  const first = await start(t)
  const record = await load(first.clients[0], 'cars/bmw')
  // Not acknowledged: still in the buffer when the server stops.
  record.set({ doors: 3 })
  await first.clients[0].record.setDataWithAck('cars/vw', { doors: 5 })
  await first.stop()
  const second = await start(t, { schema: first.schema })
  assert.deepEqual((await load(second.clients[0], 'cars/bmw')).get(), { doors: 3 })
  assert.deepEqual(await second.clients[1].record.snapshot('cars/vw'), { doors: 5 })
})

test('what clients set while Postgres is away is stored when it is back', limits, async (t) => {
  const gate = await makeGate(t)
  const { schema, clients: [one, two] } = await start(t, gate.options)
  const [ours, theirs] = await Promise.all([load(one, 'cars/bmw'), load(two, 'cars/bmw')])
  await ours.setWithAck({ doors: 4 })
  gate.shut()
  const seen = changesOf(theirs)
  const stored = ours.setWithAck({ doors: 5 })
  await seen.take(({ doors }) => doors === 5)
  await once(gate, 'refusal')
  await once(gate, 'refusal')
  gate.open()
  await stored
  const [{ val }] = await sql(`select val from ${schema}.cars where id = 'bmw'`)
  assert.deepEqual(val, { doors: 5 })
})

test('what clients set and could not be stored is taken back', limits, async (t) => {
  const gate = await makeGate(t)
  const { schema, clients: [one, two] } = await start(t, { ...gate.options, retryTimeoutMillis: 1 })
  const [ours, theirs] = await Promise.all([load(one, 'cars/bmw'), load(two, 'cars/bmw')])
  await ours.setWithAck({ doors: 4 })
  const seen = [changesOf(ours), changesOf(theirs)]
  gate.shut()
  ours.set({ doors: 5 })
  await Promise.all(seen.map((changes) => changes.take(({ doors }) => doors === 5)))
  // Not of the write alone: what is stored is read when Postgres is back.
  for (let n = 0; n < 3; n += 1) await once(gate, 'refusal')
  gate.open()
  await Promise.all(seen.map((changes) => changes.take(({ doors }) => doors === 4)))
  // Clients go on from there.
  await theirs.setWithAck({ doors: 6 })
  assert.deepEqual(await seen[0].take(({ doors }) => doors === 6), { doors: 6 })
  const [{ val }] = await sql(`select val from ${schema}.cars where id = 'bmw'`)
  assert.deepEqual(val, { doors: 6 })
})

test('lists', limits, async (t) => {
  const { schema, clients: [one, two] } = await start(t)
  const ours = await one.record.getList('garage/mine').whenReady()
  const theirs = await two.record.getList('garage/mine').whenReady()
  const seen = new Inbox()
  theirs.subscribe((entries) => seen.put([...entries]))
  ours.addEntry('cars/bmw')
  assert.deepEqual(await seen.take((entries) => entries.length === 1), ['cars/bmw'])
  await ours.setEntriesWithAck(['cars/bmw', 'cars/vw'])
  assert.deepEqual(await seen.take((entries) => entries.length === 2), ['cars/bmw', 'cars/vw'])
  const [{ val }] = await sql(`select val from ${schema}.garage where id = 'mine'`)
  assert.deepEqual(val, ['cars/bmw', 'cars/vw'])
})

test('events and rpc', limits, async (t) => {
  const { clients: [one, two] } = await start(t)
  one.rpc.provide('add', ({ a, b }, response) => response.send(a + b))
  assert.equal(await untilProvided(() => two.rpc.make('add', { a: 2, b: 40 })), 42)

  const heard = new Inbox()
  two.event.subscribe('news', heard.put)
  // Clients subscribe when they see fit; said again until it is heard.
  const said = setInterval(() => one.event.emit('news', { text: 'hello' }), 10)
  assert.deepEqual(await heard.take(), { text: 'hello' })
  clearInterval(said)
})

/** Asks again while nobody is there to answer. */
async function untilProvided(ask) {
  for (;;) {
    try {
      return await ask()
    } catch (error) {
      if (error !== 'NO_RPC_PROVIDER') throw error
    }
  }
}

test('a SQL UPDATE, INSERT and DELETE reach subscribed clients', limits, async (t) => {
  const { schema, clients: [one, two] } = await start(t)
  const [ours, theirs] = await Promise.all([load(one, 'cars/bmw'), load(two, 'cars/bmw')])
  const [first, second] = [changesOf(ours), changesOf(theirs)]
  await ours.setWithAck({ doors: 4 })
  await second.take(({ doors }) => doors === 4)

  await sql(`update ${schema}.cars set val = '{"doors": 5}' where id = 'bmw'`)
  assert.deepEqual(await first.take(({ doors }) => doors === 5), { doors: 5 })
  assert.deepEqual(await second.take(({ doors }) => doors === 5), { doors: 5 })

  await sql(`select tide.record_set('cars/bmw', '{"doors": 6}', schema => $1)`, [schema])
  await first.take(({ doors }) => doors === 6)
  await second.take(({ doors }) => doors === 6)

  // Clients go on from there.
  await theirs.setWithAck('doors', 7)
  await first.take(({ doors }) => doors === 7)

  const gone = [once(ours, 'delete'), once(theirs, 'delete')]
  await sql(`delete from ${schema}.cars where id = 'bmw'`)
  await Promise.all(gone)
  assert.equal(await one.record.has('cars/bmw'), false)
  await sql(`select tide.record_set('cars/bmw', '{"doors": 8}', schema => $1)`, [schema])
  const again = await load(two, 'cars/bmw')
  assert.deepEqual(again.get(), { doors: 8 })
})

test('TRUNCATE, DROP TABLE and a change of a key reach subscribed clients', limits, async (t) => {
  const { schema, clients: [one, two] } = await start(t)
  const names = ['cars/bmw', 'boats/ann', 'bikes/red']
  const records = await Promise.all(names.map((name) => load(one, name)))
  await Promise.all(records.map((record) => record.setWithAck({ n: 1 })))
  const gone = records.map((record) => once(record, 'delete'))
  await sql(`truncate ${schema}.cars`)
  await sql(`drop table ${schema}.boats`)
  await sql(`update ${schema}.bikes set id = 'blue'`)
  await Promise.all(gone)
  assert.deepEqual(await two.record.snapshot('bikes/blue'), { n: 1 })
})

test('a SQL UPDATE of a record without a table in its name arrives', limits, async (t) => {
  const { schema, clients: [one] } = await start(t)
  // Two names of one row.
  const records = [await load(one, 'lonely'), await load(one, 'default/lonely')]
  const seen = records.map(changesOf)
  await Promise.all(records.map((record) => record.setWithAck({ n: 1 })))
  await sql(`update ${schema}.default set val = '{"n": 2}'`)
  await Promise.all(seen.map((changes) => changes.take(({ n }) => n === 2)))
})

test('a SQL UPDATE arrives although the connection for events was cut at that moment', limits, async (t) => {
  const { schema, clients: [one] } = await start(t)
  const record = await load(one, 'cars/bmw')
  const seen = changesOf(record)
  await record.setWithAck({ doors: 4 })
  await terminateWorker()
  await sql(`update ${schema}.cars set val = '{"doors": 5}'`)
  await seen.take(({ doors }) => doors === 5)
})

test('what a SQL UPDATE changes while nobody is subscribed is read afterwards', limits, async (t) => {
  const { schema, clients: [one, two] } = await start(t)
  const watched = await load(two, 'cars/vw')
  await one.record.setDataWithAck('cars/bmw', { doors: 4 })
  await watched.setWithAck({ doors: 4 })
  const seen = changesOf(watched)
  await sql(`update ${schema}.cars set val = '{"doors": 5}'`)
  // Records are looked at in the order of their events.
  await seen.take(({ doors }) => doors === 5)
  assert.deepEqual(await one.record.snapshot('cars/bmw'), { doors: 5 })
})

test('the server and its clients are not told of their own writes', limits, async (t) => {
  const { schema, clients: [one, two] } = await start(t)
  const [ours, theirs] = await Promise.all([load(one, 'cars/bmw'), load(two, 'cars/bmw')])
  const [mine, seen] = [new Inbox(), new Inbox()]
  ours.subscribe(({ n }) => mine.put(n))
  theirs.subscribe(({ n }) => seen.put(n))
  for (let n = 1; n <= 200; n += 1) ours.set('n', n)
  await ours.setWithAck('n', 201)
  // Comes after all events of those writes.
  await sql(`update ${schema}.cars set version = version + 1, val = '{"n": 202}'`)
  const counted = Array.from({ length: 202 }, (_, n) => n + 1)
  assert.deepEqual(await mine.takeMany(202), counted)
  assert.deepEqual(await seen.takeMany(202), counted)
})
