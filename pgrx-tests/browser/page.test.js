// The page at GET / in headless Chromium: a row inserted by SQL appears.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import test from 'node:test'
import { promisify } from 'node:util'
import { chromium } from 'playwright-core'

const { TIDE_HTTP: http, TIDE_PSQL: psql } = process.env
const run = promisify(execFile)

async function sql(statements) {
  const { stdout } = await run(psql, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-c', statements])
  return stdout.trim()
}

async function open(t, path) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
      '--disable-background-networking', '--disable-component-update',
    ],
  })
  t.after(() => browser.close())
  const page = await browser.newPage()
  const foreign = []
  const errors = []
  page.on('request', (request) => {
    if (!request.url().startsWith(http)) foreign.push(request.url())
  })
  page.on('pageerror', (error) => errors.push(error.message))
  page.setDefaultTimeout(60_000)
  await page.goto(`${http}${path}`)
  return { page, foreign, errors }
}

function live(page) {
  return page.locator('#state[data-state="live"]').waitFor()
}

test('a row inserted by SQL appears', { timeout: 120_000 }, async (t) => {
  await sql(`create table page_orders (id int primary key, item text);
    grant select on page_orders to authenticated; select tide.publish('page_orders')`)
  const token = await sql(`select tide.token('authenticated', '{}', interval '1 hour')`)
  const { page, foreign, errors } = await open(t, `/#token=${token}`)
  await live(page)

  await sql(`insert into page_orders values (1, 'a boat from SQL')`)

  const row = page.locator('#events').getByText('a boat from SQL').first()
  await row.waitFor()
  await page.locator('#filter').fill('no such text')
  await row.waitFor({ state: 'hidden' })
  await page.locator('#filter').fill('page_orders')
  await row.waitFor()
  await page.locator('#snippet').getByText('@supabase/realtime-js').waitFor()
  await page.locator('#check').getByText('wal_level').first().waitFor()
  assert.deepEqual(foreign.filter((url) => !url.startsWith('ws')), [], 'it loads from elsewhere')
  assert.deepEqual(errors, [])
})

test('without a token it says what to do', { timeout: 120_000 }, async (t) => {
  const { page, errors } = await open(t, '/')

  await page.getByText('tide.token').first().waitFor()
  assert.deepEqual(errors, [])
})

test('the worker restarts and the page goes on', { timeout: 120_000 }, async (t) => {
  await sql(`create table page_again (id int primary key, item text);
    grant select on page_again to authenticated; select tide.publish('page_again')`)
  const token = await sql(`select tide.token('authenticated', '{}', interval '1 hour')`)
  const { page } = await open(t, `/#token=${token}`)
  await live(page)

  await sql(`select pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'pg_tide worker' and datname = current_database()`)
  await page.locator('#state:not([data-state="live"])').waitFor()
  await live(page)
  await sql(`insert into page_again values (1, 'after the restart')`)

  await page.locator('#events').getByText('after the restart').first().waitFor()
})
