import { FileStore } from '@pg-tide/client/node'
import assert from 'node:assert/strict'
import test, { before } from 'node:test'
import { begun, client, has, limits, newFolder, until } from './client.js'
import { Cluster, Proxy } from './cluster.js'

let cluster: Cluster
before(async () => {
  cluster = await Cluster.start()
})

test('rows that are there, then changes, are what SELECT shows', limits, async (t) => {
  await cluster.table('c_plain', 'id bigint primary key, note text, n int not null default 0')
  await cluster.sql(`insert into c_plain select i, repeat('x', 50) from generate_series(1, 3000) as i`)
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const orders = tide.sync({ table: 'public.c_plain' })
  const statuses: string[] = []
  orders.subscribe(({ status }) => statuses.push(status))

  await orders.ready
  assert.equal(orders.rows.size, 3000)
  await cluster.sql(`update c_plain set n = id where id < 100; delete from c_plain where id > 2000;
    update c_plain set id = -id where id = 7; insert into c_plain values (5000, 'new')`)

  await has(orders, await cluster.rows('c_plain'))
  assert.equal(orders.get(5000)?.['note'], 'new')
  assert.equal(statuses[0], 'loading')
})

test('large values that an update leaves unchanged are kept', limits, async (t) => {
  await cluster.table('c_large', 'id int primary key, doc text, n int')
  await cluster.sql(`alter table c_large alter doc set storage external;
    insert into c_large values (1, repeat('abc', 5000), 0)`)
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.c_large' }).ready

  await cluster.sql('update c_large set n = 1')

  await until(rows, () => rows.get(1)?.['n'] === 1)
  assert.equal((rows.get(1)?.['doc'] as string).length, 15000)
})

test('a filter and columns: what comes to meet it is there, what ceases to is not', limits, async (t) => {
  await cluster.table('c_filter', 'id int primary key, state text, secret text')
  await cluster.sql(`insert into c_filter values (1, 'open', 'a'), (2, 'done', 'b')`)
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const open = await tide.sync({ table: 'public.c_filter', filter: 'state=eq.open', select: ['state'] }).ready
  // Of one topic a connection has one channel only.
  const done = await tide.sync({ table: 'public.c_filter', filter: 'state=eq.done' }).ready
  assert.deepEqual([...open.rows.values()], [{ id: 1, state: 'open' }])
  assert.equal(done.get(2)?.['secret'], 'b')

  await cluster.sql(`update c_filter set state = case state when 'open' then 'done' else 'open' end`)

  await has(open, new Map([['2', { id: 2, state: 'open' }]]))
  await has(done, await cluster.rows('c_filter', `state = 'done'`))
})

test('a key of several columns', limits, async (t) => {
  await cluster.table('c_pairs', 'a int, b text, n int, primary key (a, b)')
  await cluster.sql(`insert into c_pairs values (1, 'x', 1), (1, 'y', 2)`)
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const pairs = await tide.sync({ table: 'public.c_pairs', key: ['a', 'b'] }).ready

  await cluster.sql(`delete from c_pairs where b = 'x'; update c_pairs set n = 3`)

  await until(pairs, () => pairs.get({ a: 1, b: 'y' })?.['n'] === 3)
  assert.deepEqual([...pairs.rows.keys()], ['[1,"y"]'])
})

test('cut off in the middle, it goes on and has what SELECT shows', limits, async (t) => {
  await cluster.table('c_cut', 'id bigint primary key, note text, n int')
  await cluster.sql(`insert into c_cut select i, repeat('x', 200), 0 from generate_series(1, 40000) as i`)
  const proxy = await Proxy.start(cluster.port)
  const tide = client(t, proxy.url, { token: await cluster.token() })
  const rows = tide.sync({ table: 'public.c_cut' })

  await until(rows, () => rows.rows.size >= 10_000)
  proxy.cut()
  await cluster.sql('update c_cut set n = 1 where id % 3 = 0; delete from c_cut where id % 7 = 0')
  await rows.ready
  proxy.cut()
  await cluster.sql(`update c_cut set n = 2 where id % 5 = 0; insert into c_cut values (-1, 'new', 0)`)

  await has(rows, await cluster.rows('c_cut'))
  assert.equal(begun(tide.frames), 1)
})

test('a reload goes on where it was, with no new beginning', limits, async (t) => {
  await cluster.table('c_reload', 'id int primary key, n int')
  await cluster.sql('insert into c_reload select i, 0 from generate_series(1, 500) as i')
  const folder = newFolder()
  const token = await cluster.token()
  const first = client(t, cluster.url, { token, store: new FileStore(folder) })
  await first.sync({ table: 'public.c_reload' }).ready
  await cluster.sql('update c_reload set n = 1 where id = 1')
  await has(first.sync({ table: 'public.c_reload' }), await cluster.rows('c_reload'))
  await first.close()

  await cluster.sql('update c_reload set n = 2 where id = 2; delete from c_reload where id = 3')
  const second = client(t, cluster.url, { token, store: new FileStore(folder) })
  const rows = second.sync({ table: 'public.c_reload' })
  await until(rows, () => rows.status === 'stale')
  assert.equal(rows.rows.size, 500, 'what the store has is there before the server says anything')

  await has(rows, await cluster.rows('c_reload'))
  assert.equal(begun(second.frames), 0)
})

test('a table that is emptied begins anew', limits, async (t) => {
  await cluster.table('c_emptied', 'id int primary key')
  await cluster.sql('insert into c_emptied values (1), (2)')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.c_emptied' }).ready

  await cluster.sql('truncate c_emptied; insert into c_emptied values (3)')

  await has(rows, new Map([['3', { id: 3 }]]))
})

test('an altered table begins anew, and the old rows stay until then', limits, async (t) => {
  await cluster.table('c_altered', 'id int primary key')
  await cluster.sql('insert into c_altered values (1), (2)')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.c_altered' }).ready
  let fewest = 2
  rows.subscribe(() => (fewest = Math.min(fewest, rows.rows.size)))

  await cluster.sql(`alter table c_altered add note text default 'x'; insert into c_altered values (3)`)

  await has(rows, await cluster.rows('c_altered'))
  assert.equal(fewest, 2)
})

test('what the role may not read is refused, with the reason, until it may', limits, async (t) => {
  await cluster.sql('create table c_refused (id int primary key)')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = tide.sync({ table: 'public.c_refused' })

  await until(rows, () => rows.status === 'refused')
  assert.match(rows.reason ?? '', /There is no table public\.c_refused/)

  await cluster.sql('grant select on c_refused to authenticated')
  await cluster.sql(`select tide.publish('c_refused')`)
  await until(rows, () => rows.status === 'live')
})

test('rows that cannot be read are refused, with the reason, until they can', limits, async (t) => {
  await cluster.table('c_most', 'id int primary key')
  await cluster.sql('insert into c_most select generate_series(1, 3)')
  const set = async (value: string) => {
    await cluster.sql(`alter database app set tide.snapshot_max_rows = ${value}`)
    await cluster.sql('select pg_reload_conf()')
  }
  await set('2')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = tide.sync({ table: 'public.c_most' })

  await until(rows, () => rows.status === 'refused')
  assert.match(rows.reason ?? '', /there are more than tide.snapshot_max_rows/)

  await set('default')
  await has(rows, await cluster.rows('c_most'))
})

test('changes can be iterated over', limits, async (t) => {
  await cluster.table('c_iterated', 'id int primary key, n int')
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const rows = await tide.sync({ table: 'public.c_iterated' }).ready
  await cluster.sql('insert into c_iterated values (1, 1)')

  const seen = new Map<string, unknown>()
  for await (const change of rows) {
    for (const [key, row] of change.rows) seen.set(key, row)
    if (seen.has('1')) break
  }

  assert.deepEqual(seen.get('1'), { id: 1, n: 1 })
})

test('tokens are renewed before they expire', limits, async (t) => {
  await cluster.table('c_tokens', 'id int primary key')
  let given = 0
  const tide = client(t, cluster.url, {
    getToken: () => {
      given += 1
      // Two that are soon over.
      return cluster.token('somebody', given < 3 ? '3 seconds' : '1 hour')
    },
  })
  const rows = await tide.sync({ table: 'public.c_tokens' }).ready
  const refused: string[] = []
  rows.subscribe(({ status }) => status === 'refused' && refused.push(rows.reason!))
  const third = new Promise<void>((resolve) => {
    const look = setInterval(() => given >= 3 && (clearInterval(look), resolve()), 20)
  })
  await third

  await cluster.sql('insert into c_tokens values (1)')

  await has(rows, await cluster.rows('c_tokens'))
  assert.deepEqual(refused, [])
})

test('a token that the server does not take is replaced', limits, async (t) => {
  await cluster.table('c_back', 'id int primary key')
  const proxy = await Proxy.start(cluster.port)
  const tide = client(t, proxy.url, { getToken: () => cluster.token() })
  const rows = await tide.sync({ table: 'public.c_back' }).ready

  tide.setToken('not.a.token')
  await until(rows, () => rows.status !== 'live')
  await until(rows, () => rows.status === 'live')
  proxy.cut()
  await until(rows, () => rows.status !== 'live')
  await cluster.sql('insert into c_back values (1)')

  await has(rows, await cluster.rows('c_back'))
})
