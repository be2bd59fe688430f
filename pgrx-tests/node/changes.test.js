// postgres_changes with the newest unmodified client, in both versions of the protocol.

import assert from 'node:assert/strict'
import test from 'node:test'
import { Inbox, connect, limits, sql, subscribe, table, terminateWorker, token } from './tide.js'

for (const vsn of ['1.0.0', '2.0.0']) {
  const name = (text) => `vsn ${vsn}: ${text}`

  test(name('insert, update and delete arrive'), limits, async (t) => {
    const orders = await table('id int primary key, item text, price numeric, at timestamptz')
    const changes = new Inbox()
    const client = await connect(t, { vsn })
    const channel = client
      .channel('room')
      .on('postgres_changes', { event: '*', schema: 'public', table: orders }, changes.put)
    await subscribe(channel)

    await sql(`insert into ${orders} values (1, 'a boat', 1.50, '2024-02-29 12:00+00')`)
    await sql(`update ${orders} set item = 'a ship'`)
    await sql(`delete from ${orders}`)

    const [insert, update, remove] = await changes.takeMany(3)
    assert.equal(insert.eventType, 'INSERT')
    assert.equal(insert.schema, 'public')
    assert.equal(insert.table, orders)
    assert.deepEqual(insert.new, {
      id: 1, item: 'a boat', price: 1.5, at: '2024-02-29T12:00:00+00:00',
    })
    assert.deepEqual(insert.old, {})
    assert.equal(insert.errors, null)
    assert.ok(!Number.isNaN(Date.parse(insert.commit_timestamp)))
    assert.equal(update.eventType, 'UPDATE')
    assert.equal(update.new.item, 'a ship')
    assert.deepEqual(update.old, { id: 1 })
    assert.equal(remove.eventType, 'DELETE')
    assert.deepEqual(remove.new, {})
    assert.deepEqual(remove.old, { id: 1 })
  })

  test(name('each binding gets what it asked for'), limits, async (t) => {
    const [a, b] = [await table('id int primary key, n int, pad text'), await table('id int primary key')]
    const inserts = new Inbox()
    const big = new Inbox()
    const narrow = new Inbox()
    const other = new Inbox()
    const client = await connect(t, { vsn })
    const channel = client
      .channel('room')
      .on('postgres_changes', { event: 'INSERT', schema: 'public', table: a }, inserts.put)
      .on('postgres_changes', { event: '*', schema: 'public', table: a, filter: 'n=gt.10' }, big.put)
      .on('postgres_changes', { event: '*', schema: 'public', table: a, select: ['n'] }, narrow.put)
      .on('postgres_changes', { event: '*', schema: 'public', table: b }, other.put)
    await subscribe(channel)

    await sql(`insert into ${a} values (1, 1, 'x'); insert into ${a} values (2, 20, 'y');
      update ${a} set n = 30 where id = 1; insert into ${b} values (7)`)

    assert.deepEqual((await inserts.takeMany(2)).map((change) => change.new.id), [1, 2])
    assert.deepEqual((await big.takeMany(2)).map((change) => change.new.n), [20, 30])
    assert.deepEqual((await narrow.takeMany(3)).map((change) => change.new), [
      { id: 1, n: 1 }, { id: 2, n: 20 }, { id: 1, n: 30 },
    ])
    assert.equal((await other.take()).new.id, 7)
  })

  test(name('filters of every kind are understood'), limits, async (t) => {
    const orders = await table('id int primary key, s text, n int')
    const client = await connect(t, { vsn })
    const filters = {
      's=in.("a,b",c)': [1, 3], 'n=gte.2,n=lt.4': [2, 3], 's=not.is.null': [1, 2, 3],
      's=like.a%': [1], 'n=in.(1,3)': [1, 3], 'n=is.null': [4],
    }
    const inboxes = new Map()
    const channel = client.channel('room')
    for (const filter of Object.keys(filters)) {
      inboxes.set(filter, new Inbox())
      channel.on(
        'postgres_changes',
        { event: 'INSERT', schema: 'public', table: orders, filter },
        inboxes.get(filter).put,
      )
    }
    await subscribe(channel)

    await sql(`insert into ${orders} values (1, 'a,b', 1), (2, 'b', 2), (3, 'c', 3), (4, null, null)`)

    for (const [filter, ids] of Object.entries(filters)) {
      const got = await inboxes.get(filter).takeMany(ids.length)
      assert.deepEqual(got.map((change) => change.new.id), ids, filter)
    }
  })

  test(name('a restarted worker is joined again by itself and delivers'), limits, async (t) => {
    const orders = await table('id int primary key')
    const changes = new Inbox()
    const client = await connect(t, { vsn, reconnectAfterMs: () => 200 })
    const channel = client
      .channel('room')
      .on('postgres_changes', { event: '*', schema: 'public', table: orders }, changes.put)
    const states = await subscribe(channel)
    await sql(`insert into ${orders} values (1)`)
    assert.equal((await changes.take()).new.id, 1)

    await terminateWorker()
    await states.take(({ state }) => state === 'SUBSCRIBED')

    await sql(`insert into ${orders} values (2)`)
    assert.equal((await changes.take()).new.id, 2)
  })

  test(name('a refreshed token keeps the channel, a bad one ends it'), limits, async (t) => {
    const orders = await table('id int primary key')
    const changes = new Inbox()
    const system = new Inbox()
    const client = await connect(t, { vsn, apikey: await token('authenticated', {}, '20 seconds') })
    const channel = client
      .channel('room')
      .on('postgres_changes', { event: '*', schema: 'public', table: orders }, changes.put)
      .on('system', {}, system.put)
    const states = await subscribe(channel)

    await client.setAuth(await token('authenticated', { renewed: true }))
    await sql(`insert into ${orders} values (1)`)
    assert.equal((await changes.take()).new.id, 1)

    await client.setAuth('eyJhbGciOiJub25lIn0.e30.')
    const { message } = await system.take(({ status }) => status === 'error')
    assert.ok(message.length > 0)
    await states.take(({ state }) => state === 'CLOSED')
  })

  test(name('an expired token is told and closes the channel'), limits, async (t) => {
    const orders = await table('id int primary key')
    const system = new Inbox()
    const client = await connect(t, { vsn, apikey: await token('authenticated', {}, '4 seconds') })
    const channel = client
      .channel('room')
      .on('postgres_changes', { event: '*', schema: 'public', table: orders }, () => {})
      .on('system', {}, system.put)
    const states = await subscribe(channel)

    const { message } = await system.take(({ status }) => status === 'error')
    assert.match(message, /expired/)
    await states.take(({ state }) => state === 'CLOSED')
  })

  test(name('what cannot be subscribed is told by a system message'), limits, async (t) => {
    const system = new Inbox()
    const client = await connect(t, { vsn })
    const channel = client
      .channel('room')
      .on('postgres_changes', { event: '*', schema: 'public', table: 'no_such_table' }, () => {})
      .on('system', {}, system.put)
    await subscribe(channel)

    const { message } = await system.take(({ status }) => status === 'error')
    assert.match(message, /Unable to subscribe to changes with given parameters/)
  })

  test(name('a channel left is silent and can be joined again'), limits, async (t) => {
    const orders = await table('id int primary key')
    const client = await connect(t, { vsn })
    const first = new Inbox()
    const binding = { event: '*', schema: 'public', table: orders }
    const left = client.channel('room').on('postgres_changes', binding, first.put)
    await subscribe(left)
    assert.equal(await client.removeChannel(left), 'ok')

    const second = new Inbox()
    await subscribe(client.channel('room').on('postgres_changes', binding, second.put))
    await sql(`insert into ${orders} values (1)`)

    assert.equal((await second.take()).new.id, 1)
    first.put('nothing else')
    assert.equal(await first.take(), 'nothing else')
  })

  test(name('positions arrive on a table topic and resume it'), limits, async (t) => {
    const orders = await table('id int primary key')
    const events = new Inbox()
    const client = await connect(t, { vsn, reconnectAfterMs: () => 200 })
    const channel = client.channel(`tide:table:public.${orders}`, { config: { broadcast: {} } })
    channel.on('broadcast', { event: '*' }, (event) => {
      channel.params.config.broadcast.since = event.meta.id
      events.put(event)
    })
    const states = await subscribe(channel)
    await sql(`insert into ${orders} values (1)`)
    const event = await events.take()
    assert.equal(event.event, 'INSERT')
    assert.deepEqual(event.payload.record, { id: 1 })

    await terminateWorker()
    await sql(`insert into ${orders} select generate_series(2, 100)`)
    await states.take(({ state }) => state === 'SUBSCRIBED')

    const rest = await events.takeMany(99)
    assert.deepEqual(rest.map(({ payload }) => payload.record.id), Array.from({ length: 99 }, (_, i) => i + 2))
  })

  test(name('a channel cut off before its first message resumes from where it was joined'), limits, async (t) => {
    const orders = await table('id int primary key')
    const events = new Inbox()
    const client = await connect(t, { vsn, reconnectAfterMs: () => 200 })
    const channel = client.channel(`tide:table:public.${orders}`, { config: { broadcast: {} } })
    channel.on('broadcast', { event: '*' }, events.put)
    const states = await subscribe(channel)
    channel.joinPush.receive('ok', ({ position }) => {
      channel.params.config.broadcast.since ??= position
    })

    await terminateWorker()
    await sql(`insert into ${orders} select generate_series(1, 100)`)
    await states.take(({ state }) => state === 'SUBSCRIBED')

    const rows = await events.takeMany(100)
    assert.deepEqual(rows.map(({ payload }) => payload.record.id), Array.from({ length: 100 }, (_, i) => i + 1))
  })
}

test('a key that is no token is refused and the client keeps trying', limits, async (t) => {
  const states = new Inbox()
  const client = await connect(t, { apikey: 'eyJhbGciOiJub25lIn0.e30.' })
  client.channel('room').subscribe((state) => states.put(state))

  assert.equal(await states.take(), 'CHANNEL_ERROR')
})

test('heartbeats are answered', limits, async (t) => {
  const beats = new Inbox()
  const client = await connect(t, { heartbeatIntervalMs: 200, heartbeatCallback: (state) => beats.put(state) })
  const orders = await table('id int primary key')
  const binding = { event: '*', schema: 'public', table: orders }
  await subscribe(client.channel('room').on('postgres_changes', binding, () => {}))

  await beats.take((state) => state === 'ok')
  await beats.take((state) => state === 'ok')
})
