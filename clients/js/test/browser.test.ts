import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import test, { before } from 'node:test'
import type { TestContext } from 'node:test'
import { isDeepStrictEqual } from 'node:util'
import { build } from 'esbuild'
import { chromium } from 'playwright-core'
import type { BrowserContext, Page } from 'playwright-core'
import { limits } from './client.js'
import { Cluster, Proxy } from './cluster.js'
import type { Page as Globals } from './page.js'

let cluster: Cluster
let origin: string
before(async () => {
  cluster = await Cluster.start()
  const { outputFiles } = await build({
    entryPoints: [`${import.meta.dirname}/page.js`], bundle: true, write: false, format: 'iife',
  })
  const script = outputFiles[0]!.text
  const server = createServer((_request, response) => {
    response.setHeader('Content-Type', 'text/html').end(`<!doctype html><meta charset="utf-8"><script>${script.replaceAll('</script', '<\\/script')}</script>`)
  }).listen(0)
  server.unref()
  origin = `http://localhost:${(server.address() as AddressInfo).port}`
})

async function browser(t: TestContext): Promise<BrowserContext> {
  const launched = await chromium.launch({
    executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update'],
  })
  t.after(() => launched.close())
  const context = await launched.newContext()
  context.setDefaultTimeout(60_000)
  return context
}

async function open(context: BrowserContext, table: string, url = cluster.url): Promise<Page> {
  const page = await context.newPage()
  const hash = new URLSearchParams({ url, token: await cluster.token(), table: `public.${table}` })
  await page.goto(`${origin}/#${hash}`)
  return page
}

const live = (page: Page) => page.waitForFunction(() => (globalThis as unknown as Globals).rows.status === 'live')

const rows = (page: Page) =>
  page.evaluate(() => [...(globalThis as unknown as Globals).rows.rows]).then((entries) => new Map<string, unknown>(entries))

/** Waits until a page has what SELECT shows. */
async function has(page: Page, table: string): Promise<void> {
  const expected = await cluster.rows(table)
  await page.waitForFunction(
    (text) => {
      const { rows } = globalThis as unknown as Globals
      const sorted = [...rows.rows.values()].sort((one, other) => Number(one['id']) - Number(other['id']))
      return rows.status === 'live' && sorted.length === text.length && sorted.every((row, i) => row['n'] === text[i])
    },
    [...expected.values()].map((row) => (row as { n: unknown }).n),
  )
  assert.ok(isDeepStrictEqual(await rows(page), expected))
}

test('a reload goes on where it was', limits, async (t) => {
  await cluster.table('b_reload', 'id int primary key, n int')
  await cluster.sql('insert into b_reload select i, 0 from generate_series(1, 300) as i')
  const page = await open(await browser(t), 'b_reload')
  await live(page)
  await cluster.sql('update b_reload set n = 1 where id = 1')
  await has(page, 'b_reload')
  await page.evaluate(() => (globalThis as unknown as Globals).tide.close())

  await cluster.sql('update b_reload set n = 2 where id = 2; delete from b_reload where id = 3')
  await page.reload()
  await has(page, 'b_reload')

  assert.equal(await page.evaluate(() => (globalThis as unknown as Globals).begun), 0)
})

test('what is asked for offline survives reloads, and is done once, in order', limits, async (t) => {
  await cluster.table('b_offline', 'id int generated always as identity primary key, n int')
  const proxy = await Proxy.start(cluster.port)
  const page = await open(await browser(t), 'b_offline', proxy.url)
  await live(page)
  proxy.cut(true)

  // Whether they are kept is for the page that is gone to have seen to: it is not closed.
  await page.evaluate(async () => {
    const { tide } = globalThis as unknown as Globals
    const insert = (n: number) => tide.mutate([{ op: 'insert', table: 'public.b_offline', values: { n } }])
    for (let n = 1; n <= 20; n += 1) insert(n).catch(() => {})
    const store = indexedDB.open('test')
    const database = await new Promise<IDBDatabase>((resolve) => (store.onsuccess = () => resolve(store.result)))
    for (let count = 0; count < 21; ) {
      const all = database.transaction('entries').objectStore('entries').count(IDBKeyRange.bound(['queue/0'], ['queue/0', []]))
      count = await new Promise<number>((resolve) => (all.onsuccess = () => resolve(all.result)))
    }
    database.close()
  })
  await page.reload()
  await page.waitForFunction(() => (globalThis as unknown as Globals).rows.rows.size === 20)
  assert.equal(await page.evaluate(() => (globalThis as unknown as Globals).tide.pending.length), 20)
  proxy.mend()
  await page.waitForFunction(() => (globalThis as unknown as Globals).settled === 20)

  assert.equal(await cluster.sql(`select string_agg(n::text, ',' order by id) from b_offline`), Array.from({ length: 20 }, (_, n) => n + 1).join())
  await has(page, 'b_offline')
})

test('two tabs that share a store write as two clients, and have the same', limits, async (t) => {
  await cluster.table('b_tabs', 'id int generated always as identity primary key, n int')
  const context = await browser(t)
  const tabs = [await open(context, 'b_tabs'), await open(context, 'b_tabs')]

  await Promise.all(
    tabs.map((tab, index) =>
      tab.evaluate(async (sign) => {
        const { tide } = globalThis as unknown as Globals
        const insert = (n: number) => tide.mutate([{ op: 'insert', table: 'public.b_tabs', values: { n } }])
        await Promise.all([1, 2, 3].map((n) => insert(sign * n)))
      }, 1 - 2 * index),
    ),
  )

  for (const tab of tabs) await has(tab, 'b_tabs')
  assert.equal(await cluster.sql(`select count(*) from b_tabs`), '6')
  assert.equal(await cluster.sql(`select count(distinct client_id) from tide.mutation where ops::text like '%b_tabs%'`), '2')
})
