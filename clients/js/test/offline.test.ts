import { MemoryStore } from '@pg-tide/client'
import type { Mutation, Op } from '@pg-tide/client'
import { FileStore } from '@pg-tide/client/node'
import assert from 'node:assert/strict'
import test, { before } from 'node:test'
import { client, has, limits, newFolder, rejection, until } from './client.js'
import { Cluster, Proxy } from './cluster.js'

let cluster: Cluster
before(async () => {
  cluster = await Cluster.start()
})

const insert = (table: string, n: number): Op => ({ op: 'insert', table: `public.${table}`, values: { n } })

/** Resolves when nothing waits to be answered. */
function drained(tide: { pending: readonly Mutation[]; onSettled(listener: () => void): () => void }): Promise<void> {
  return new Promise((resolve) => {
    const look = () => tide.pending.length === 0 && (stop(), resolve())
    const stop = tide.onSettled(look)
    look()
  })
}

test('what is asked for while the server is down is done once, in order, after a reload', limits, async (t) => {
  await cluster.table('o_down', 'id int generated always as identity primary key, n int')
  const folder = newFolder()
  const token = await cluster.token()
  const first = client(t, cluster.url, { token, store: new FileStore(folder) })
  const rows = await first.sync({ table: 'public.o_down' }).ready
  await first.mutate([insert('o_down', 0)])

  cluster.stop()
  await until(rows, () => rows.status === 'stale')
  const asked = Array.from({ length: 120 }, (_, n) => rejection(first.mutate([insert('o_down', n + 1)])))
  assert.equal(rows.rows.size, 121)
  await first.close()
  for (const error of await Promise.all(asked)) assert.equal(error.name, 'Closed')

  const second = client(t, cluster.url, { token, store: new FileStore(folder) })
  const again = second.sync({ table: 'public.o_down' })
  await until(again, () => again.rows.size === 121)
  assert.equal(second.pending.length, 120)
  await cluster.resume()
  await drained(second)

  assert.equal(await cluster.sql(`select string_agg(n::text, ',' order by id) from o_down`), Array.from({ length: 121 }, (_, n) => n).join())
  await has(again, await cluster.rows('o_down'))
})

test('what was done, but whose answer was lost, is not done again', limits, async (t) => {
  await cluster.table('o_lost', 'id int generated always as identity primary key, n int')
  const proxy = await Proxy.start(cluster.port)
  const folder = newFolder()
  const token = await cluster.token()
  const tide = client(t, proxy.url, { token, store: new FileStore(folder) })
  const rows = await tide.sync({ table: 'public.o_lost' }).ready

  // The connection ends again and again while they are under way.
  let cuts = 0
  const stop = rows.subscribe(() => {
    if (rows.rows.size > 10 * (cuts + 1) && rows.status === 'live' && cuts < 5 && (cuts += 1)) proxy.cut()
  })
  await Promise.all(Array.from({ length: 100 }, (_, n) => tide.mutate([insert('o_lost', n)])))
  stop()

  assert.ok(cuts > 0)
  assert.equal(await cluster.sql(`select string_agg(n::text, ',' order by id) from o_lost`), Array.from({ length: 100 }, (_, n) => n).join())
  await has(rows, await cluster.rows('o_lost'))
})

test('two clients that share a store have names of their own, and both write', limits, async (t) => {
  await cluster.table('o_shared', 'id int generated always as identity primary key, n int')
  const store = new MemoryStore()
  const token = await cluster.token('shared')
  const [one, other] = [client(t, cluster.url, { token, store }), client(t, cluster.url, { token, store })]
  const [left, right] = await Promise.all([one, other].map((tide) => tide.sync({ table: 'public.o_shared' }).ready))

  await Promise.all([1, 2, 3].flatMap((n) => [one.mutate([insert('o_shared', n)]), other.mutate([insert('o_shared', -n)])]))

  const rows = await cluster.rows('o_shared')
  assert.equal(rows.size, 6)
  await Promise.all([has(left!, rows), has(right!, rows)])
  assert.equal(await cluster.sql(`select count(distinct client_id) from tide.mutation where subject = 'shared'`), '2')
})

test('what a client left behind that is gone another one sends', limits, async (t) => {
  await cluster.table('o_left', 'id int generated always as identity primary key, n int')
  const proxy = await Proxy.start(cluster.port)
  proxy.cut(true)
  const folder = newFolder()
  const token = await cluster.token()
  const [first, second] = [0, 1].map(() => client(t, proxy.url, { token, store: new FileStore(folder) }))
  const asked = [rejection(first!.mutate([insert('o_left', 1)])), rejection(second!.mutate([insert('o_left', 2)]))]
  await until(first!.sync({ table: 'public.o_left' }), () => first!.pending.length === 1)
  await Promise.all([first!.close(), second!.close(), ...asked])
  proxy.mend()

  const third = client(t, proxy.url, { token, store: new FileStore(folder) })
  const rows = await third.sync({ table: 'public.o_left' }).ready
  assert.ok(third.pending.length <= 2)
  await drained(third)

  assert.equal(await cluster.sql('select sum(n) from o_left'), '3')
  await has(rows, await cluster.rows('o_left'))
})

test('a server that has forgotten a client goes on with it', limits, async (t) => {
  await cluster.table('o_forgot', 'id int generated always as identity primary key, n int')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  await tide.mutate([insert('o_forgot', 1)])
  await cluster.sql('truncate tide.mutation')

  await Promise.all([2, 3].map((n) => tide.mutate([insert('o_forgot', n)])))

  assert.equal(await cluster.sql(`select string_agg(n::text, ',' order by id) from o_forgot`), '1,2,3')
})
