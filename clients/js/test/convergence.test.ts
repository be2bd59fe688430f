// Whatever happens to clients that write, and to the server: in the end each has what SELECT shows it, and each
// mutation was done once. TIDE_SEED repeats a run.

import { Rejected } from '@pg-tide/client'
import type { Collection, Op, Tide } from '@pg-tide/client'
import { FileStore } from '@pg-tide/client/node'
import assert from 'node:assert/strict'
import test from 'node:test'
import type { TestContext } from 'node:test'
import { client, has, newFolder } from './client.js'
import { Cluster, Proxy } from './cluster.js'

const STEPS = 150

/** Numbers that are the same for the same seed. */
function dice(seed: number): (below: number) => number {
  let state = BigInt(seed) * 0x9e3779b97f4a7c15n | 1n
  return (below) => {
    for (const [left, by] of [[true, 13n], [false, 7n], [true, 17n]] as const) {
      state ^= left ? state << by : state >> by
      state &= (1n << 64n) - 1n
    }
    return Number(state % BigInt(below))
  }
}

/** A client that comes and goes. */
class Actor {
  readonly #folder = newFolder()
  readonly asked: string[] = []
  readonly endings = new Map<string, string>()
  tide!: Tide
  rows: Collection[] = []

  constructor(
    readonly t: TestContext,
    readonly name: string,
    readonly token: string,
    readonly proxy: Proxy,
  ) {}

  open(): void {
    this.tide = client(this.t, this.proxy.url, { token: this.token, store: new FileStore(this.#folder) })
    this.tide.onSettled((settlement) => {
      assert.ok(!this.endings.has(settlement.mutationId), 'settled twice')
      if (settlement.status === 'rejected') assert.ok(settlement.error instanceof Rejected, String(settlement.error))
      this.endings.set(settlement.mutationId, settlement.status)
    })
    this.rows = ['public.v_all', 'public.v_own', 'public.v_log'].map((table) => this.tide.sync({ table }))
    this.rows.push(this.tide.sync({ table: 'public.v_all', filter: 'n=lt.50' }))
  }

  mutate(ops: Op[]): void {
    const mutationId = `${this.name}-${this.asked.length}`
    this.asked.push(mutationId)
    const log: Op = { op: 'insert', table: 'public.v_log', values: { mutation: mutationId } }
    // Told by onSettled, which also hears of those from before a reload.
    this.tide.mutate([...ops, log], { mutationId }).catch(() => {})
  }

  async reload(): Promise<void> {
    await this.tide.close()
    this.open()
  }
}

test('clients converge, and mutations are done once', { timeout: 300_000 }, async (t) => {
  const seed = Number(process.env['TIDE_SEED'] ?? Math.floor(Math.random() * 1e9))
  t.diagnostic(`TIDE_SEED=${seed}`)
  const random = dice(seed)
  const cluster = await Cluster.start()
  await cluster.table('v_all', 'id int primary key, n int check (n < 95), note text')
  await cluster.table('v_own', 'id int primary key, owner text, n int')
  await cluster.table('v_log', 'id int generated always as identity primary key, mutation text')
  await cluster.sql(`alter table v_own enable row level security;
    create policy own on v_own using (owner = current_setting('request.jwt.claims', true)::jsonb ->> 'sub');
    insert into v_all select i, i, repeat('x', 100) from generate_series(1, 50) as i;
    insert into v_own select i, case i % 2 when 0 then 'even' else 'odd' end, i from generate_series(1, 50) as i`)
  const actors: Actor[] = []
  for (const [name, sub] of [['a', 'odd'], ['b', 'even'], ['c', 'odd']] as const) {
    actors.push(new Actor(t, name, await cluster.token(sub), await Proxy.start(cluster.port)))
  }
  for (const actor of actors) actor.open()

  const id = () => 1 + random(60)
  const op = (): Op => {
    const [table, n] = [random(3) === 0 ? 'public.v_own' : 'public.v_all', random(100)]
    const key = { id: id() }
    switch (random(4)) {
      case 0:
        return { op: 'delete', table, key }
      case 1:
        return { op: 'upsert', table, key, values: { n } }
      default:
        return { op: 'set', table, key, values: { n } }
    }
  }
  for (let step = 0; step < STEPS; step += 1) {
    const actor = actors[random(actors.length)]!
    switch (random(12)) {
      case 0:
        actor.proxy.cut(random(2) === 0)
        break
      case 1:
        actor.proxy.mend()
        break
      case 2:
        await actor.reload()
        break
      case 3:
        await cluster.sql(`update v_all set n = ${random(90)}, note = repeat('y', ${random(50)}) where id % 7 = ${random(7)};
          update v_own set owner = case owner when 'odd' then 'even' else 'odd' end where id = ${id()}`)
        break
      case 4:
        if (random(8) === 0) await cluster.sql(`select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_tide worker'`)
        else if (random(8) === 0) await cluster.sql('truncate v_all')
        break
      default:
        actor.mutate(Array.from({ length: 1 + random(3) }, op))
    }
  }
  for (const { proxy } of actors) proxy.mend()

  for (const { tide, name, asked, endings } of actors) {
    await new Promise<void>((resolve) => {
      const look = () => endings.size === asked.length && resolve()
      tide.onSettled(look)
      look()
    })
    // In order, each once, and none that was rejected.
    const done = asked.filter((mutationId) => endings.get(mutationId) === 'confirmed')
    const logged = await cluster.sql(`select coalesce(string_agg(mutation, ',' order by id), '') from v_log where mutation like '${name}-%'`)
    assert.equal(logged, done.join())
  }
  for (const [index, { rows }] of actors.entries()) {
    const sub = index === 1 ? 'even' : 'odd'
    await has(rows[0]!, await cluster.rows('v_all'))
    await has(rows[1]!, await cluster.rows('v_own', `owner = '${sub}'`))
    await has(rows[2]!, await cluster.rows('v_log'))
    await has(rows[3]!, await cluster.rows('v_all', 'n < 50'))
  }
})
