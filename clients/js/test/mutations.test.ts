import { Refused, Rejected } from '@pg-tide/client'
import type { Op } from '@pg-tide/client'
import assert from 'node:assert/strict'
import test, { before } from 'node:test'
import { client, has, limits, rejection, until } from './client.js'
import { Cluster, Proxy } from './cluster.js'

let cluster: Cluster
before(async () => {
  cluster = await Cluster.start()
  await cluster.table('orders', `id bigint generated always as identity primary key, item text not null,
    state text not null default 'new', version int not null default 1`)
  await cluster.sql(`select tide.version_column('orders', 'version')`)
})

const insert = (item: string, table = 'public.orders'): Op => ({ op: 'insert', table, values: { item } })

test('what is asked for is there at once, and what is stored once it is done', limits, async (t) => {
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const orders = await tide.sync({ table: 'public.orders' }).ready
  const before = orders.rows.size

  const done = tide.mutate([insert('a boat')])
  await until(orders, () => orders.rows.size > before)
  const foretold = [...orders.rows.entries()].at(-1)!
  const counts = new Set<number>()
  orders.subscribe(() => counts.add(orders.rows.size))
  const { returning, position } = await done

  assert.deepEqual(foretold[1], { item: 'a boat' })
  assert.match(foretold[0], /^new:/)
  const { id } = returning[0] as { id: number }
  assert.deepEqual(orders.get(id), { id, item: 'a boat', state: 'new', version: 1 })
  assert.match(position, /\./)
  // Neither gone nor twice at any time.
  assert.deepEqual([...counts], [before + 1])
  await has(orders, await cluster.rows('orders'))
})

test('a mutation is visible before mutate has been awaited', limits, async (t) => {
  const proxy = await Proxy.start(cluster.port)
  await cluster.sql(`insert into orders (item) values ('to be changed'), ('to be deleted')`)
  const tide = client(t, proxy.url, { token: await cluster.token() })
  const orders = await tide.sync({ table: 'public.orders' }).ready
  const id = (item: string) => [...orders.rows.values()].find((row) => row['item'] === item)!['id'] as number
  const [changed, deleted] = [id('to be changed'), id('to be deleted')]
  proxy.cut(true)

  const done = tide.mutate([
    { op: 'set', table: 'public.orders', key: { id: changed }, values: { state: 'paid' } },
    { op: 'delete', table: 'public.orders', key: { id: deleted } },
  ])
  assert.equal(orders.get(changed)?.['state'], 'paid')
  assert.equal(orders.get(deleted), undefined)
  assert.equal(tide.pending.length, 1)

  proxy.mend()
  await done
  assert.equal(tide.pending.length, 0)
  await has(orders, await cluster.rows('orders'))
})

test('what is rejected goes again, and the reason is told', limits, async (t) => {
  await cluster.table('m_checked', `id int primary key, n int check (n < 10)`)
  await cluster.sql('insert into m_checked values (1, 1)')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.m_checked' }).ready
  const set = (n: number) => tide.mutate([{ op: 'set', table: 'public.m_checked', key: { id: 1 }, values: { n } }])

  const rejected = rejection<Rejected>(set(99))
  assert.equal(rows.get(1)?.['n'], 99)
  const error = await rejected

  assert.ok(error instanceof Rejected)
  assert.equal(error.sqlstate, '23514')
  assert.match(error.reason, /m_checked_n_check/)
  assert.equal(error.op, 0)
  assert.deepEqual(error.current, { id: 1, n: 1 })
  assert.equal(rows.get(1)?.['n'], 1)
  await set(5)
  await has(rows, new Map([['1', { id: 1, n: 5 }]]))
})

test('what others change shows through what is asked for', limits, async (t) => {
  await cluster.table('m_based', 'id int primary key, a int, b int')
  await cluster.sql('insert into m_based values (1, 0, 0)')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.m_based' }).ready
  // What holds the writer up, but not the stream.
  await cluster.sql('create table gate (id int); create function pass() returns trigger language plpgsql as $$ begin perform pg_advisory_xact_lock(1); return new; end $$')
  await cluster.sql(`create trigger pass before update on m_based for each row when (new.a = 7) execute function pass()`)
  const held = cluster.sql(`begin; select pg_advisory_lock(1); commit; select 'held'; select pg_sleep(1); select pg_advisory_unlock(1)`)
  await cluster.sql(`do $$ begin while not exists (select from pg_locks where locktype = 'advisory' and granted) loop perform pg_sleep(0.01); end loop; end $$`)

  const done = tide.mutate([{ op: 'set', table: 'public.m_based', key: { id: 1 }, values: { a: 7 } }])
  assert.deepEqual(rows.get(1), { id: 1, a: 7, b: 0 })
  await cluster.sql(`insert into m_based values (2, 0, 0)`)
  await until(rows, () => rows.rows.size === 2)
  assert.deepEqual(rows.get(1), { id: 1, a: 7, b: 0 })

  await Promise.all([done, held])
  await has(rows, await cluster.rows('m_based'))
})

test('two clients that write at once come to have the same', limits, async (t) => {
  await cluster.table('m_two', 'id int primary key, n int, by text')
  await cluster.sql('insert into m_two select i, 0 from generate_series(1, 20) as i')
  const proxy = await Proxy.start(cluster.port)
  const [one, other] = [
    client(t, proxy.url, { token: await cluster.token('one') }),
    client(t, cluster.url, { token: await cluster.token('other') }),
  ]
  const [left, right] = await Promise.all([one, other].map((tide) => tide.sync({ table: 'public.m_two' }).ready))

  const all: Promise<unknown>[] = []
  for (let i = 0; i < 150; i += 1) {
    for (const [by, tide] of [['one', one], ['other', other]] as const) {
      const key = { id: 1 + ((i * 7) % 20) }
      all.push(tide.mutate([{ op: 'upsert', table: 'public.m_two', key, values: { n: i, by } }]))
    }
    if (i === 75) proxy.cut()
  }
  await Promise.all(all)

  const rows = await cluster.rows('m_two')
  await Promise.all([has(left!, rows), has(right!, rows)])
  const done = await cluster.sql(`select count(*), max(n) from tide.mutation where subject in ('one', 'other') and status = 'confirmed'`)
  assert.equal(done, '300|150')
})

test('a write of another version is rejected with the row as it is', limits, async (t) => {
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const orders = await tide.sync({ table: 'public.orders' }).ready
  const { returning } = await tide.mutate([insert('versioned')])
  const key = returning[0] as { id: number }
  const pay = (version: number, state: string): Op[] => [
    { op: 'set', table: 'public.orders', key, values: { state }, if_version: version },
  ]
  await tide.mutate(pay(1, 'paid'))

  const error = await rejection<Rejected>(tide.mutate(pay(1, 'cancelled')))

  assert.equal(error.sqlstate, 'TD004')
  assert.deepEqual(error.current, { id: key.id, item: 'versioned', state: 'paid', version: 2 })
  assert.equal(orders.get(key.id)?.['state'], 'paid')
})

test('what the server does not take gives its number to the next one', limits, async (t) => {
  await cluster.table('m_refused', 'id int primary key, note text')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.m_refused' }).ready
  const add = (id: number, note = '') => tide.mutate([{ op: 'insert', table: 'public.m_refused', values: { id, note } }])

  // All are sent before the first is answered.
  const first = add(1)
  const malformed = rejection<Refused>(tide.mutate([{ op: 'nonsense' } as unknown as Op]))
  const second = add(2)
  const tooLarge = rejection<Refused>(add(3, 'x'.repeat(300_000)))
  const third = add(4)
  const wayTooLarge = rejection<Refused>(add(5, 'x'.repeat(2_000_000)))
  const fourth = add(6)
  await Promise.all([first, second, third, fourth])

  assert.equal((await malformed).code, 'malformed')
  assert.equal((await tooLarge).code, 'size')
  assert.equal((await wayTooLarge).code, 'size')
  assert.ok((await malformed) instanceof Refused)
  await has(rows, await cluster.rows('m_refused'))
  assert.deepEqual([...rows.rows.keys()].sort(), ['1', '2', '4', '6'])
})

test('more than a connection may ask for at once are all done, in order', limits, async (t) => {
  await cluster.table('m_many', 'id int primary key, at bigint generated always as identity')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.m_many' }).ready

  // More than tide.mutation_rate lets through in a second.
  const ids = Array.from({ length: 400 }, (_, id) => id)
  await Promise.all(ids.map((id) => tide.mutate([{ op: 'insert', table: 'public.m_many', values: { id } }])))

  await has(rows, await cluster.rows('m_many'))
  assert.equal(await cluster.sql(`select count(*) from m_many where id <> at - 1`), '0')
})

test('rows that refer to each other, and what a call will do, are shown', limits, async (t) => {
  await cluster.table('m_lists', 'id int generated always as identity primary key, name text')
  await cluster.table('m_items', 'id int generated always as identity primary key, list int references m_lists, name text')
  await cluster.sql(`create function rename(list int, name text) returns void language sql as
    'update m_lists set name = $2 where id = $1'; select tide.allow_call('rename(int, text)')`)
  const proxy = await Proxy.start(cluster.port)
  const tide = client(t, proxy.url, { token: await cluster.token() })
  const lists = await tide.sync({ table: 'public.m_lists' }).ready
  const items = await tide.sync({ table: 'public.m_items' }).ready
  proxy.cut(true)

  const made = tide.mutate([
    { op: 'insert', table: 'public.m_lists', values: { name: 'groceries' } },
    { op: 'insert', table: 'public.m_items', values: { list: { $new: 0 }, name: 'bread' } },
  ])
  assert.equal([...items.rows.values()][0]?.['list'], [...lists.rows.keys()][0])
  proxy.mend()
  const { returning } = await made
  const key = returning[0] as { id: number }
  assert.deepEqual([...items.rows.values()], [{ id: 1, list: key.id, name: 'bread' }])

  const called = tide.mutate([{ op: 'call', function: 'public.rename', args: { list: key.id, name: 'shop' } }], {
    optimistic: [{ op: 'set', table: 'public.m_lists', key, values: { name: 'shop' } }],
  })
  assert.equal(lists.get(key.id)?.['name'], 'shop')
  await called
  await has(lists, await cluster.rows('m_lists'))
})

test('what a filter leaves out is not shown for being asked for', limits, async (t) => {
  await cluster.table('m_filter', 'id int primary key, state text')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const all = await tide.sync({ table: 'public.m_filter' }).ready
  // On another connection, which says nothing of when the answer comes.
  const open = await tide.sync({ table: 'public.m_filter', filter: 'state=eq.open' }).ready
  let most = 0
  open.subscribe(() => (most = Math.max(most, open.rows.size)))
  const add = (id: number, state: string) => tide.mutate([{ op: 'insert', table: 'public.m_filter', values: { id, state } }])

  await Promise.all([add(1, 'open'), add(2, 'done')])

  await has(open, await cluster.rows('m_filter', `state = 'open'`))
  await has(all, await cluster.rows('m_filter'))
  assert.equal(most, 1)
  await cluster.sql(`update m_filter set state = case id when 1 then 'done' else 'open' end`)
  await has(open, await cluster.rows('m_filter', `state = 'open'`))
})
