// The last client of the first generation, whose topics are its subscriptions.

import assert from 'node:assert/strict'
import test from 'node:test'
import old from 'realtime-js-1'
import { Inbox, limits, sql, table, terminateWorker, token, url } from './tide.js'

async function connect(t) {
  const apikey = await token()
  const client = new old.RealtimeClient(url, { params: { apikey }, reconnectAfterMs: () => 200 })
  client.connect()
  t.after(() => client.disconnect())
  return client
}

function subscribe(channel) {
  return new Promise((resolve, reject) => {
    channel.subscribe().receive('ok', resolve).receive('error', reject).receive('timeout', reject)
  })
}

test('insert, update and delete arrive on a table topic', limits, async (t) => {
  const orders = await table('id int primary key, item text')
  const changes = new Inbox()
  const client = await connect(t)
  const channel = client.channel(`realtime:public:${orders}`)
  for (const event of ['INSERT', 'UPDATE', 'DELETE']) channel.on(event, (change) => changes.put(change))
  await subscribe(channel)

  await sql(`insert into ${orders} values (1, 'x'); update ${orders} set item = 'y'; delete from ${orders}`)

  const [insert, update, remove] = await changes.takeMany(3)
  assert.deepEqual([insert.type, insert.record], ['INSERT', { id: 1, item: 'x' }])
  assert.deepEqual([update.type, update.record, update.old_record], ['UPDATE', { id: 1, item: 'y' }, { id: 1 }])
  assert.deepEqual([remove.type, remove.old_record], ['DELETE', { id: 1 }])
})

test('a filter in the topic and the star event work', limits, async (t) => {
  const orders = await table('id int primary key, n int')
  const changes = new Inbox()
  const client = await connect(t)
  const channel = client.channel(`realtime:public:${orders}:n=eq.2`)
  channel.on('*', (change) => changes.put(change))
  await subscribe(channel)

  await sql(`insert into ${orders} values (1, 1), (2, 2)`)

  assert.equal((await changes.take()).record.id, 2)
})

test('a restarted worker is joined again by itself and delivers', limits, async (t) => {
  const orders = await table('id int primary key')
  const changes = new Inbox()
  const joins = new Inbox()
  const client = await connect(t)
  const channel = client.channel(`realtime:public:${orders}`)
  channel.on('INSERT', (change) => changes.put(change))
  channel.subscribe().receive('ok', (reply) => joins.put(reply))
  await joins.take()

  await terminateWorker()
  await joins.take()

  await sql(`insert into ${orders} values (2)`)
  assert.equal((await changes.take()).record.id, 2)
})
