// What went wrong once, with the connector's predecessor or with itself, each by its name.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import test from 'node:test'
import { Inbox } from '../../../pgrx-tests/node/inbox.js'
import { Echoes } from '../lib/echoes.js'
import { outlast } from '../lib/outage.js'
import { ServerCache } from '../lib/server-cache.js'
import support from './support.js'

const { ROLE, ask, connect, freshSchema, get, holdLock, limits, makeGate, remove } = support
const { rowsOf, set, sql, terminateWorker } = support

const rows = (connector, table) => `"${connector.options.schema}"."${table}"`

/** Whether a write is on its way. */
async function isWriting() {
  const active = await sql(`select from pg_stat_activity where usename = '${ROLE}'
    and datname = current_database() and state = 'active' and query like '%record_set_many%'`)
  return active.length > 0
}

test('lost update: a slow write is not overtaken by the next one', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 1 })
  const slow = { pad: 'x'.repeat(3_000_000) }
  for (let round = 1; round <= 5; round += 1) {
    let written = false
    const first = set(connector, 'cars/bmw', slow, 2 * round).then(() => (written = true))
    while (!written && !(await isWriting())) await new Promise(setImmediate)
    await Promise.all([first, set(connector, 'cars/bmw', { round }, 2 * round + 1)])
    const [{ version }] = await sql(`select version from ${rows(connector, 'cars')}`)
    assert.equal(Number(version), 2 * round + 1)
  }
})

test('listener death: it connects again, and no event is missed or comes twice', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'cars/0', {})
  for (let n = 1; n <= 30; n += 1) {
    if (n % 10 === 0) await terminateWorker()
    await sql(`insert into ${rows(connector, 'cars')} values ($1, 1, '{}')`, [String(n)])
  }
  await events.take()
  const keys = (await events.takeMany(31)).map(({ key }) => Number(key))
  assert.deepEqual(keys, Array.from({ length: 31 }, (_, n) => n))
})

test('listener death: a terminated backend of the pool is replaced', limits, async (t) => {
  const connector = await connect(t, { idleTimeoutMillis: 60_000 })
  await set(connector, 'cars/bmw', { n: 1 })
  await sql(`select pg_terminate_backend(pid) from pg_stat_activity
    where usename = '${ROLE}' and datname = current_database() and state = 'idle'`)
  // The pool hears of it when it next looks.
  await new Promise(setImmediate)
  await assert.doesNotReject(async () => {
    for (;;) {
      try {
        return await get(connector, 'cars/bmw')
      } catch (error) {
        if (error.code !== '57P01') throw error
      }
    }
  })
})

test('create race: connectors that make the same table are each called back once, without error', limits, async (t) => {
  const schema = freshSchema()
  const connectors = await Promise.all(Array.from({ length: 4 }, () => connect(t, { schema })))
  for (const table of ['a', 'b', 'c', 'd', 'e']) {
    await Promise.all(connectors.map((connector, n) => set(connector, `${table}/${n}`, { n })))
  }
  const four = { a: 4, b: 4, c: 4, d: 4, e: 4 }
  assert.deepEqual(await connectors[0].getSchemaOverview(), four)
})

test('quoting: keys and tables hold any character, byte by byte', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  await connector.subscribe(events.put)
  const names = [
    "a/it's", 'a/"double"', 'a/semi;colon', 'a/back\\slash', 'a/k:with:colons', 'a/', 'a/ü 漢 🚗',
    'a/line\nbreak', 'a/%s $1', `a/${'k'.repeat(9_000)}`, "it's \"T\"; able/x",
  ]
  await Promise.all(names.map((name) => set(connector, name, { name })))
  for (const name of names) assert.deepEqual(await get(connector, name), [1, { name }])
  const told = (await events.takeMany(names.length + 2)).filter(({ event }) => event === 'INSERT')
  assert.deepEqual(
    new Set(told.map(({ table, key }) => `${table}/${key}`)),
    new Set(names),
  )
})

test('quoting: a key is never SQL', limits, async (t) => {
  const connector = await connect(t)
  await set(connector, 'a/secret', { n: 1 })
  assert.deepEqual(await get(connector, "a/x' OR '1'='1"), [-1, null])
  assert.deepEqual(await get(connector, "a\"; drop table a; --/x"), [-1, null])
  await remove(connector, "a/x' OR '1'='1")
  assert.deepEqual(await get(connector, 'a/secret'), [1, { n: 1 }])
})

test('quoting: keys that differ by a semicolon are two records', limits, async (t) => {
  const connector = await connect(t)
  await Promise.all([set(connector, 'a/x;y', { n: 1 }), set(connector, 'a/xy', { n: 2 })])
  assert.deepEqual(await get(connector, 'a/x;y'), [1, { n: 1 }])
  assert.deepEqual(await get(connector, 'a/xy'), [1, { n: 2 }])
})

test('a record that cannot be stored fails alone', limits, async (t) => {
  const connector = await connect(t)
  const [bad, good] = await Promise.allSettled([
    set(connector, 'a/bad', { n: 1 }, 1e30),
    set(connector, 'a/good', { n: 2 }),
  ])
  assert.match(bad.reason.message, /bigint/)
  assert.equal(good.status, 'fulfilled')
  await assert.rejects(set(connector, 'a/none', undefined), /not a JSON value/)
})

test('versions past 2^31 are stored', limits, async (t) => {
  const connector = await connect(t)
  await set(connector, 'a/b', {}, 3e9)
  assert.deepEqual(await get(connector, 'a/b'), [3e9, {}])
})

test('useJsonb: a string, and every other value, comes back as it was', limits, async (t) => {
  const connector = await connect(t, { useJsonb: true })
  const values = ['text', '"quoted"', '{', 0, 1.5, true, false, [], [1, 'a', null], {}, { a: { b: [] } }, null]
  for (const [n, value] of values.entries()) {
    await set(connector, `values/${n}`, value)
    assert.deepEqual(await get(connector, `values/${n}`), [1, value])
  }
})

test('read your writes: get sees what set and delete have buffered', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 3_600_000 })
  const value = { n: 1 }
  const first = set(connector, 'cars/bmw', value)
  value.n = 2
  assert.deepEqual(await get(connector, 'cars/bmw'), [1, { n: 1 }], 'the value at the time of the call')
  const gone = remove(connector, 'cars/bmw')
  assert.deepEqual(await get(connector, 'cars/bmw'), [-1, null])
  await Promise.all([first, gone])
  assert.deepEqual(await get(connector, 'cars/bmw'), [-1, null])
})

test('a delete is not undone by a set before it', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 1 })
  await set(connector, 'cars/other', {})
  for (let round = 0; round < 20; round += 1) {
    await Promise.all([set(connector, 'cars/bmw', { round }), remove(connector, 'cars/bmw')])
    assert.deepEqual(await sql(`select id from ${rows(connector, 'cars')}`), [{ id: 'other' }])
  }
})

test('close writes what is buffered', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 3_600_000 })
  const names = Array.from({ length: 500 }, (_, n) => `t${n % 5}/${n}`)
  const stored = names.map((name) => set(connector, name, { name }))
  await connector.close()
  await Promise.all(stored)
  const [{ count }] = await sql(`select count(*) from ${rows(connector, 't3')}`)
  assert.equal(Number(count), 100)
  await assert.rejects(set(connector, 'late/late', {}), /closed/)
})

test('a mixed-case schema has events', limits, async (t) => {
  const connector = await connect(t, { schema: `${freshSchema()}_MixedCase "q"` })
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'Cars/BMW', {})
  assert.deepEqual(await events.takeMany(2), [
    { event: 'CREATE_TABLE', table: 'Cars' },
    { event: 'INSERT', table: 'Cars', key: 'BMW' },
  ])
})

test('a second subscribe resolves, and every unsubscribe', limits, async (t) => {
  const connector = await connect(t)
  const [one, two, three] = [new Inbox(), new Inbox(), new Inbox()]
  await connector.unsubscribe()
  await Promise.all([connector.subscribe(one.put), connector.subscribe(two.put)])
  await ask(connector, 'subscribe', three.put)
  await connector.unsubscribe(two.put)
  await ask(connector, 'unsubscribe', three.put)
  await set(connector, 'cars/bmw', {})
  assert.equal((await one.takeMany(2))[1].key, 'bmw')
  await connector.unsubscribe()
  await connector.unsubscribe()
})

test('a set calls back after its own events were delivered, and just once', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 1 })
  const [seen, early, calls] = [new Set(), [], new Map()]
  await connector.subscribe(({ event, key }) => event === 'INSERT' && seen.add(key))
  const done = Array.from({ length: 400 }, async (_, n) => {
    if (n % 4 === 0) await new Promise(setImmediate)
    return new Promise((resolve) => {
      connector.set(`t${n % 3}/${n}`, 1, { n }, (error) => {
        assert.equal(error, null)
        if (!seen.has(String(n))) early.push(n)
        calls.set(n, (calls.get(n) ?? 0) + 1)
        resolve()
      })
    })
  })
  await Promise.all(done)
  assert.deepEqual(early, [])
  assert.ok([...calls.values()].every((count) => count === 1))
})

test('a set whose events are cut off calls back after they have come', limits, async (t) => {
  const connector = await connect(t)
  const keys = []
  await connector.subscribe(({ key }) => key && keys.push(key))
  await set(connector, 'cars/before', {})
  await terminateWorker()
  await set(connector, 'cars/after', {})
  assert.deepEqual(keys, ['before', 'after'])
})

test('changes by plain SQL are events: rows and tables', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  await connector.subscribe(events.put)
  const cars = rows(connector, 'cars')
  await sql(`
    create table ${cars} (id text primary key, version int default 0, val jsonb not null);
    alter table ${cars} owner to ${ROLE};
    insert into ${cars} values ('bmw', 1, '{}'), ('vw', 1, '{}');
    update ${cars} set version = 2 where id = 'vw';
    delete from ${cars} where id = 'bmw'`)
  assert.deepEqual(await events.takeMany(5), [
    { event: 'CREATE_TABLE', table: 'cars' },
    { event: 'INSERT', table: 'cars', key: 'bmw' },
    { event: 'INSERT', table: 'cars', key: 'vw' },
    { event: 'UPDATE', table: 'cars', key: 'vw' },
    { event: 'DELETE', table: 'cars', key: 'bmw' },
  ])
  await sql(`drop table ${cars}`)
  assert.deepEqual(await events.take(), { event: 'DESTROY_TABLE', table: 'cars' })
})

test('a subscription that is refused says why', limits, async (t) => {
  const connector = await connect(t, { realtime: { role: 'tide_authenticator' } })
  await assert.rejects(connector.subscribe(() => {}), /may not be used by clients/)
  await set(connector, 'cars/bmw', {})
})

test('tokens are renewed while the connection lasts', limits, async (t) => {
  let made = 0
  const enough = new Inbox()
  const token = async () => {
    made += 1
    if (made === 3) enough.put(made)
    return (await sql(`select tide.token($1, lifetime => '2 seconds') as token`, [ROLE]))[0].token
  }
  const connector = await connect(t, { realtime: { token } })
  const events = new Inbox()
  await connector.subscribe(events.put)
  await enough.take()
  await set(connector, 'cars/bmw', {})
  await events.take(({ key }) => key === 'bmw')
})

test('events that were missed for good are announced, and all records told again', limits, async (t) => {
  const connector = await connect(t)
  const events = new Inbox()
  await Promise.all(['a/1', 'a/2', 'b/1'].map((name) => set(connector, name, {})))
  await connector.subscribe(events.put)
  // Another slot has none of the history.
  const database = process.env.PGDATABASE
  await sql(`alter database ${database} set tide.slot_name = 'another'`)
  await sql('select tide.restart_worker()')

  assert.deepEqual(await events.take(({ event }) => event === 'RESYNC'), { event: 'RESYNC' })
  assert.deepEqual(await events.takeMany(3), [
    { event: 'UPDATE', table: 'a', key: '1' },
    { event: 'UPDATE', table: 'a', key: '2' },
    { event: 'UPDATE', table: 'b', key: '1' },
  ])
  await set(connector, 'a/3', {})
  await events.take(({ key }) => key === '3')
})

test('stall: a set whose table others drop calls back, although its event does not come', limits, async (t) => {
  const connector = await connect(t, { writeInterval: 1 })
  await connector.subscribe(() => {})
  for (let n = 0; n < 20; n += 1) {
    const stored = set(connector, `t${n}/x`, {})
    await dropAsSoonAsItIsThere(rows(connector, `t${n}`))
    await stored
  }
  assert.deepEqual(connector.services.lines, [], 'none was given up')
})

/** Before pg_tide has looked the table up for its clients, if it can be. */
async function dropAsSoonAsItIsThere(table) {
  for (;;) {
    try {
      return await sql(`drop table ${table}`)
    } catch (error) {
      if (error.code !== '42P01') throw error
    }
  }
}

test('stall: a set of a table that was made anew still waits for its event', limits, async () => {
  const [own, told] = [new Echoes(), []]
  const id = own.begin('cars')
  // The drop is heard of before the answer to the statement.
  own.dropped('cars', async () => told.push('asked') && 2)
  const delivered = own.delivered(id, 1, 2).then(() => told.push('delivered'))
  while (told.length === 0) await new Promise(setImmediate)
  await new Promise(setImmediate)
  own.see(id)
  told.push('seen')
  await delivered
  assert.deepEqual(told, ['asked', 'seen', 'delivered'])
})

test('stall: a set waits on if nobody can say whether its table was dropped', limits, async () => {
  const own = new Echoes()
  const id = own.begin('cars')
  const delivered = own.delivered(id, 1, 2)
  const asked = new Promise((resolve) => {
    own.dropped('cars', async () => {
      resolve()
      throw new Error('no connection')
    })
  })
  await asked
  await new Promise(setImmediate)
  own.see(id)
  await delivered
})

test('long names: a table of 64 bytes is not that of its first 63', limits, async (t) => {
  const connector = await connect(t)
  for (const [short, long] of [['t'.repeat(63), 't'.repeat(64)], ['ü'.repeat(31), 'ü'.repeat(32)]]) {
    await refuses(connector, `${long}/x`, /longer than 63 bytes/)
    await set(connector, `${short}/x`, { n: 1 })
    // Also where the shorter name is that of a table.
    await refuses(connector, `${long}/x`, /longer than 63 bytes/)
    assert.deepEqual(await get(connector, `${short}/x`), [1, { n: 1 }])
  }
})

test('long names: what can be no table at all is refused in the same way', limits, async (t) => {
  const connector = await connect(t)
  await refuses(connector, '/x', /the name of the table is empty/)
  await refuses(connector, 'a\0b/x', /invalid byte sequence/)
})

test('long names: a server is told of other records beside one that cannot be read', limits, async () => {
  const told = new Inbox()
  const cache = { get: (name, done) => done(null, 1, {}), set: (name, version, value, done) => done(null) }
  const services = { cache, messageDistributor: { distribute: (_, { names }) => told.put(names) } }
  const lines = []
  const serverCache = new ServerCache(services, {
    defaultTable: 'default',
    read: async (names) => {
      if (names.includes('bad/x')) throw new Error('no such name')
      return new Map(names.map((name) => [name, { version: 2, value: {} }]))
    },
    isBeingWritten: () => false,
    logger: { error: (...line) => lines.push(line.join(' ')) },
  })
  for (const table of ['a', 'bad', 'b']) serverCache.changed(table, 'x')
  assert.deepEqual(await told.takeMany(2), [['a/x'], ['b/x']])
  assert.deepEqual(lines, ['ERROR record bad/x could not be read again: no such name'])
})

/** A record that is neither written nor read, in the same words. */
async function refuses(connector, name, problem) {
  await assert.rejects(set(connector, name, { n: 2 }), problem)
  await assert.rejects(get(connector, name), problem)
  await assert.rejects(remove(connector, name), problem)
}

test('unsaved: get in the callback of a failed set sees what is stored', limits, async (t) => {
  const connector = await connect(t)
  await set(connector, 'cars/bmw', { n: 1 })
  const seen = await new Promise((resolve) => {
    connector.set('cars/bmw', 1e30, { n: 2 }, (failure) => {
      get(connector, 'cars/bmw').then((found) => resolve({ failure, found }))
    })
    connector.set('cars/vw', 1, { n: 3 }, () => {})
  })
  assert.match(seen.failure, /bigint/)
  assert.deepEqual(seen.found, [1, { n: 1 }])
  assert.deepEqual(await get(connector, 'cars/vw'), [1, { n: 3 }])
})

test('unsaved: get in the callback of a failed set sees what was set since', limits, async (t) => {
  const connector = await connect(t)
  const found = await new Promise((resolve) => {
    connector.set('cars/bmw', 1e30, { n: 1 }, () => {
      connector.set('cars/bmw', 2, { n: 2 }, () => {})
      get(connector, 'cars/bmw').then(resolve)
    })
  })
  assert.deepEqual(found, [2, { n: 2 }])
})

test('Postgres away: sets and deletes are done when it is back', limits, async (t) => {
  const gate = await makeGate(t)
  const connector = await connect(t, gate.options)
  const events = new Inbox()
  await connector.subscribe(events.put)
  await set(connector, 'cars/bmw', { n: 1 })
  gate.shut()
  const done = [set(connector, 'cars/vw', { n: 1 }), set(connector, 'boats/ann', { n: 1 })]
  await once(gate, 'refusal')
  await once(gate, 'refusal')
  done.push(set(connector, 'cars/vw', { n: 2 }, 2), remove(connector, 'cars/bmw'))
  assert.deepEqual(await get(connector, 'cars/vw'), [2, { n: 2 }])
  gate.open()
  await Promise.all(done)
  assert.deepEqual(await rowsOf(connector, 'cars'), [{ id: 'vw', version: 2, val: { n: 2 } }])
  assert.deepEqual(await rowsOf(connector, 'boats'), [{ id: 'ann', version: 1, val: { n: 1 } }])
  const told = (await events.takeMany(7)).filter(({ table }) => table === 'cars')
  assert.deepEqual(told.map(({ event, key }) => [event, key]), [
    ['CREATE_TABLE', undefined], ['INSERT', 'bmw'], ['INSERT', 'vw'], ['UPDATE', 'vw'], ['DELETE', 'bmw'],
  ])
})

test('Postgres away: a set whose backend is ended in the middle is stored', limits, async (t) => {
  const connector = await connect(t)
  await set(connector, 'cars/bmw', { n: 1 })
  const lock = await holdLock(t, rows(connector, 'cars'))
  const stored = set(connector, 'cars/bmw', { n: 2 }, 2)
  const waiting = `usename = '${ROLE}' and datname = current_database() and wait_event_type = 'Lock'`
  const end = `select pg_terminate_backend(pid) from pg_stat_activity where ${waiting}`
  while ((await sql(end)).length === 0) await new Promise(setImmediate)
  await lock.release()
  await stored
  assert.deepEqual(await rowsOf(connector, 'cars'), [{ id: 'bmw', version: 2, val: { n: 2 } }])
})

test('Postgres away: a set is an error in the end, and the next one is tried', limits, async (t) => {
  const gate = await makeGate(t)
  const connector = await connect(t, { ...gate.options, retryTimeoutMillis: 1 })
  await set(connector, 'cars/bmw', { n: 1 })
  gate.shut()
  const found = await new Promise((resolve) => {
    connector.set('cars/bmw', 2, { n: 2 }, (failure) => {
      gate.open()
      get(connector, 'cars/bmw').then((record) => resolve({ failure, record }))
    })
  })
  assert.match(found.failure, /terminated|ECONNRESET|EPIPE/)
  assert.deepEqual(found.record, [1, { n: 1 }])
  await set(connector, 'cars/bmw', { n: 3 }, 3)
  assert.deepEqual(await rowsOf(connector, 'cars'), [{ id: 'bmw', version: 3, val: { n: 3 } }])
})

test('Postgres away: close waits until what is buffered is stored or given up', limits, async (t) => {
  const gate = await makeGate(t)
  const connector = await connect(t, { ...gate.options, retryTimeoutMillis: 500 })
  gate.close()
  const told = []
  set(connector, 'cars/bmw', {}).catch(({ message }) => told.push(message))
  await connector.close()
  assert.match(told.join(), /ECONNREFUSED/)
})

/** How often what fails once with an error is tried. */
async function triesOf(code, message = '', deadline = undefined) {
  let tries = 0
  const attempt = async () => {
    tries += 1
    if (tries === 1) throw Object.assign(new Error(message), code && { code })
  }
  await outlast(attempt, deadline).catch(() => {})
  return tries
}

test('Postgres away: what may pass is tried again, and what will not is not', limits, async () => {
  const passing = ['ECONNREFUSED', 'ECONNRESET', 'ENOENT', 'EPIPE', 'ETIMEDOUT', 'EAI_AGAIN', '57P01', '57P02',
    '57P03', '08006', '53300', '25006', '40001', '40P01']
  for (const code of passing) assert.equal(await triesOf(code), 2, code)
  const messages = ['Connection terminated unexpectedly', 'Connection terminated due to connection timeout',
    'timeout exceeded when trying to connect', 'Client has encountered a connection error and is not queryable']
  for (const message of messages) assert.equal(await triesOf(undefined, message), 2, message)

  for (const code of ['22003', '23505', '28P01', '3D000', '42501', '42P01', '57014', 'ERR_INVALID_ARG_TYPE']) {
    assert.equal(await triesOf(code, 'timeout '), 1, code)
  }
  assert.equal(await triesOf(undefined, 'the connector is closed'), 1)
  assert.equal(await triesOf('ENOTFOUND'), 1, 'a misspelt host is not waited for without an end')
  assert.equal(await triesOf('ENOTFOUND', '', Date.now() + 60_000), 2)
  assert.equal(await triesOf('ECONNREFUSED', '', Date.now()), 1, 'too late')
})
