// The page at GET / in headless Chromium: what it shows of what SQL does, and of what stands in the way.

import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import test from 'node:test'
import { promisify } from 'node:util'
import { chromium } from 'playwright-core'

const { TIDE_HTTP: http, TIDE_PSQL: psql } = process.env
const run = promisify(execFile)

async function sql(statements) {
  const { stdout } = await run(psql, ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-c', statements])
  return stdout.trim()
}

/** What the page tells one to type into psql, typed into psql. */
async function type(commands) {
  const child = spawn(psql, ['-X', '-q', '-v', 'ON_ERROR_STOP=1'], { stdio: ['pipe', 'ignore', 'inherit'] })
  child.stdin.end(commands)
  const [code] = await once(child, 'exit')
  assert.equal(code, 0, commands)
}

const table = (name) => sql(`create table ${name} (id int primary key, item text);
  grant select on ${name} to authenticated; select tide.publish('${name}')`)

const token = (role = 'authenticated', claims = '{}', lifetime = '1 hour') =>
  sql(`select tide.token('${role}', '${claims}', interval '${lifetime}')`)

/** Has a setting of the database hold until the end of the test. */
async function set(t, name, value) {
  const alter = (change) => sql(`do $$ begin
    execute format('alter database %I ${change}', current_database()); end $$; select pg_reload_conf()`)
  t.after(() => alter(`reset tide.${name}`))
  await alter(`set tide.${name} = ''${value}''`)
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

/** Waits until the element of this name has a text. */
const shows = (page, id, text) => page.locator(`#${id}`).filter({ hasText: text }).waitFor()

test('a row inserted by SQL appears', { timeout: 120_000 }, async (t) => {
  await table('page_orders')
  const { page, foreign, errors } = await open(t, `/#token=${await token()}`)
  await live(page)

  await sql(`insert into page_orders values (1, 'a boat from SQL')`)

  const row = page.locator('#events').getByText('a boat from SQL').first()
  await row.waitFor()
  await page.locator('#filter').fill('no such text')
  await row.waitFor({ state: 'hidden' })
  await page.locator('#filter').fill('page_orders')
  await row.waitFor()
  await shows(page, 'snippet', '@supabase/realtime-js')
  assert.deepEqual(foreign.filter((url) => !url.startsWith('ws')), [], 'it loads from elsewhere')
  assert.deepEqual(errors, [])
})

test('an event has the time of its commit, not that of its arrival', { timeout: 120_000 }, async (t) => {
  await table('page_times')
  await sql(`insert into page_times values (1, 'before the page was opened')`)
  const { page } = await open(t, `/#token=${await token()}`)

  const time = page.locator('#events li', { hasText: 'before the page was opened' }).locator('time')

  const committed = await sql(`select to_char(date_trunc('milliseconds', commit_time) at time zone 'UTC',
    'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') from tide.recent() where operation = 'INSERT' and "table" = 'page_times'`)
  assert.equal(await time.getAttribute('datetime'), committed)
  assert.doesNotMatch(await time.textContent(), /arrived/)
})

test('numbers are shown as Postgres has them', { timeout: 120_000 }, async (t) => {
  await sql(`create table page_numbers (id bigint primary key, price numeric);
    grant select on page_numbers to authenticated; select tide.publish('page_numbers')`)
  const { page } = await open(t, `/#token=${await token()}`)
  await live(page)

  await sql(`insert into page_numbers values (9007199254740993, 1.10)`)

  const row = page.locator('#events li', { hasText: 'page_numbers' })
  await row.getByText('9007199254740993', { exact: true }).waitFor()
  await row.getByText('1.10', { exact: true }).waitFor()
})

test('columns may be called like what every object of JavaScript has', { timeout: 120_000 }, async (t) => {
  await sql(`create table page_names (id int primary key, constructor text, "toString" text, __proto__ text);
    grant select on page_names to authenticated; select tide.publish('page_names')`)
  const { page, errors } = await open(t, `/#token=${await token()}`)
  await live(page)

  await sql(`insert into page_names values (1, 'a', 'b', 'c'); update page_names set constructor = 'd'`)

  const row = page.locator('#events li', { hasText: 'page_names' })
  for (const value of ['b', 'c', 'd']) await row.getByText(value, { exact: true }).first().waitFor()
  assert.deepEqual(errors, [])
})

test('twenty thousand rows are counted, and drawn a frame at a time', { timeout: 120_000 }, async (t) => {
  await table('page_flood')
  const { page, errors } = await open(t, `/#token=${await token()}`)
  await live(page)
  await page.evaluate(() => {
    const list = document.getElementById('events')
    window.seen = { draws: 0, most: 0 }
    new MutationObserver((records) => {
      window.seen.draws += records.filter((record) => record.addedNodes.length > 0).length
      window.seen.most = Math.max(window.seen.most, list.childElementCount)
    }).observe(list, { childList: true })
  })
  await sql(`insert into page_flood values (0, 'the first')`)
  await shows(page, 'events', 'the first')
  await page.locator('#clear').click()

  for (let burst = 0; burst < 4; burst += 1) {
    await sql(`insert into page_flood select n, 'flood ' || n from generate_series(${burst * 5000 + 1}, ${burst * 5000 + 5000}) as n`)
  }

  await shows(page, 'events', 'flood 20000')
  assert.equal(await page.locator('#count').textContent(), '20000 events')
  const { draws, most } = await page.evaluate(() => window.seen)
  t.diagnostic(`${draws} draws`)
  assert.ok(draws < 2000, `${draws} draws`)
  assert.equal(most, 500)
  assert.deepEqual(errors, [])
})

test('a flood pushes out nothing that was filtered for, paused at or cleared', { timeout: 120_000 }, async (t) => {
  await table('page_needle')
  const { page } = await open(t, `/#token=${await token()}`)
  await live(page)
  const flood = (from) => sql(`insert into page_needle
    select n, 'hay ' || n from generate_series(${from}, ${from + 2999}) as n`)

  await page.locator('#filter').fill('needle one')
  await sql(`insert into page_needle values (0, 'one')`)
  await flood(1)
  await sql(`insert into page_needle values (-1, 'another one')`)
  await shows(page, 'events', 'another one')
  assert.equal(await page.locator('#events li').count(), 2)

  await page.locator('#filter').fill('')
  await shows(page, 'events', 'hay 3000')
  await page.locator('#pause').click()
  await flood(3001)
  await page.getByRole('button', { name: 'Continue (3000)' }).waitFor()
  assert.equal(await page.locator('#events').getByText('hay 6000').count(), 0)
  await page.locator('#pause').click()
  await shows(page, 'events', 'hay 6000')

  await page.locator('#clear').click()
  assert.equal(await page.locator('#events li').count(), 0)
  assert.equal(await page.locator('#count').textContent(), '0 events')
})

/** Fills the form "Also listen to". */
async function listen(page, kind, name, isPrivate) {
  await page.getByLabel('Kind').selectOption(kind)
  if (name) await page.locator('#name').fill(name)
  await page.getByLabel('as a private channel').setChecked(isPrivate)
  await page.getByRole('button', { name: 'Listen', exact: true }).click()
}

test('messages, notifications and schema changes are shown, after a reload too', { timeout: 120_000 }, async (t) => {
  await set(t, 'notify_channels', 'page_jobs')
  const { page, errors } = await open(t, `/#token=${await token()}`)
  await live(page)

  await listen(page, 'Schema changes', '', false)
  const channel = (text) => page.locator('#channels li', { hasText: text })
  for (const [kind, name] of [['Messages', 'page room'], ['Notifications', 'page_jobs']]) {
    await listen(page, kind, name, true)
    const refused = channel(name)
    await refused.getByText('You do not have permissions to read from this Channel').waitFor()
    const command = await refused.locator('pre').textContent()
    await type(command.split('\nshow')[0])
    await refused.getByRole('button', { name: 'Try again' }).click()
    await page.locator('#channels li.joined', { hasText: name }).waitFor()
  }
  const happens = async (line) => {
    await sql(`select tide.send('page room', 'edit', '{"line": ${line}}');
      create table page_new_${line} (id int primary key);
      grant select on page_new_${line} to authenticated; notify page_jobs, 'job ${line}'`)
    const event = (name) => page.locator('#events li', { hasText: name })
    await event('edit').getByText(String(line), { exact: true }).waitFor()
    await event('CREATE_TABLE').getByText(`page_new_${line}`).waitFor()
    await event('NOTIFY').getByText(`job ${line}`).waitFor()
    assert.match(await event(`job ${line}`).locator('time').textContent(), /^arrived /)
    assert.doesNotMatch(await event(`page_new_${line}`).locator('time').textContent(), /arrived/)
  }
  await happens(71)
  await page.reload()
  await page.locator('#channels li.joined').nth(3).waitFor()
  await happens(72)

  await page.getByRole('button', { name: 'Stop listening: Schema changes' }).click()
  await channel('Schema changes').waitFor({ state: 'detached' })
  assert.doesNotMatch(page.url(), /schema/)
  assert.deepEqual(errors, [])
})

test('a join that is refused says why, and what to do', { timeout: 120_000 }, async (t) => {
  const { page } = await open(t, `/#token=${await token()}`)
  await live(page)

  await listen(page, 'Messages', 'page hall', false)

  const refused = page.locator('#channels li.failed')
  await refused.getByText('PrivateOnly').waitFor()
  await refused.getByText('tide.public_channels = on').waitFor()
})

test('it says who one is, and until when', { timeout: 120_000 }, async (t) => {
  const { page } = await open(t, `/#token=${await token('authenticated', '{"sub": "ann"}', '1 hour')}`)
  await shows(page, 'role', /^authenticated$/)
  await shows(page, 'until', /^until .*, 59 minutes left$/)
  await shows(page, 'claims', '{"sub":"ann"}')

  await page.locator('#token').fill(await token('authenticated', '{}', '3 seconds'))
  await page.getByRole('button', { name: 'Use', exact: true }).click()
  await shows(page, 'until', /, \d seconds? left$/)

  await shows(page, 'until', /^expired \d+ seconds? ago$/)
  await shows(page, 'trouble', /Token has expired/)
  await shows(page, 'trouble', "select tide.token('authenticated');")
})

test('without a token it says what to do', { timeout: 120_000 }, async (t) => {
  const { page, errors } = await open(t, '/')

  await shows(page, 'trouble', /there is no role for those who come without one/i)
  await shows(page, 'trouble', /select tide.token\('a_role'\)/)
  assert.deepEqual(errors, [])
})

test('without a token one has the anonymous role', { timeout: 120_000 }, async (t) => {
  await set(t, 'anon_role', 'anon')
  const { page } = await open(t, '/')
  await live(page)

  await page.reload()

  await live(page)
  await shows(page, 'role', /^anon$/)
})

/** Has the page check again until it says this: findings are kept for a second. */
async function rechecked(page, verdict) {
  while (!verdict.test(await page.locator('#verdict').textContent())) {
    await Promise.all([
      page.waitForResponse('**/check'),
      page.locator('#recheck').evaluate((button) => button.click()),
    ])
  }
}

test('requirements are folded where all are met, and lead with what is not', { timeout: 120_000 }, async (t) => {
  await sql(`create table if not exists page_orders (id int primary key, item text);
    grant select on page_orders to authenticated; select tide.publish('page_orders')`)
  const { page } = await open(t, `/#token=${await token()}`)

  await rechecked(page, /^all \d+ met$/)
  assert.equal(await page.locator('#requirements').getAttribute('open'), null)
  await page.locator('summary').click()
  await shows(page, 'check', 'wal_level')

  await sql(`create table page_hidden (id int primary key); select tide.publish('page_hidden')`)
  t.after(() => sql(`drop table page_hidden`))
  await rechecked(page, /^1 of \d+ not met$/)
  const first = page.locator('#check li:first-child', { hasText: 'readers of public.page_hidden' })
  assert.match(await first.locator('pre').textContent(), /grant select on public.page_hidden/)

  await page.reload()
  await first.waitFor()
})

test('a role that is refused is named, with the command that lets it in', { timeout: 120_000 }, async (t) => {
  await sql(`create role page_guest; grant page_guest to tide_authenticator`)
  t.after(() => sql(`drop role page_guest`))
  const guest = await token('page_guest')
  await sql(`revoke page_guest from tide_authenticator`)
  const { page } = await open(t, `/#token=${guest}`)
  await shows(page, 'trouble', 'The role "page_guest" may not be used by clients')

  await type(await page.locator('#trouble pre').textContent())

  await live(page)
  await page.locator('#trouble').waitFor({ state: 'hidden' })
})

test('an origin that is not listed is named', { timeout: 120_000 }, async (t) => {
  await set(t, 'allowed_origins', 'https://app.example')
  const { page } = await open(t, `/#token=${await token()}`)

  await page.locator('#trouble').waitFor({ state: 'attached' })
  await shows(page, 'trouble', 'This origin is not allowed')
  await shows(page, 'trouble', http)
})

test('the worker restarts and the page goes on', { timeout: 120_000 }, async (t) => {
  await table('page_again')
  const { page } = await open(t, `/#token=${await token()}`)
  await live(page)

  await sql(`select pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'pg_tide worker' and datname = current_database()`)
  await page.locator('#state:not([data-state="live"])').waitFor()
  await live(page)
  await sql(`insert into page_again values (1, 'after the restart')`)

  await page.locator('#events').getByText('after the restart').first().waitFor()
})

test('while the stream stands still it says why', { timeout: 120_000 }, async (t) => {
  // A new slot waits for transactions that are open.
  const holder = spawn(psql, ['-X', '-q', '-A', '-t'], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.after(() => holder.kill())
  holder.stdin.write('begin; select pg_current_xact_id();\n')
  await once(holder.stdout, 'data')
  await set(t, 'slot_name', 'page_slot')
  const { page } = await open(t, `/#token=${await token()}`)

  await shows(page, 'trouble', /the stream stands still: .*transactions/i)

  holder.stdin.end('rollback;\n')
  await live(page)
  await page.locator('#trouble').waitFor({ state: 'hidden' })
})

test('how far channels are that begin with the rows that there are', async (t) => {
  await table('begun')
  await sql(`insert into begun select i, 'x' from generate_series(1, 1234) as i`)
  const { page } = await open(t, '/')
  // The reader waits while somebody else has the table.
  const holder = spawn(psql, ['-X', '-q'], { stdio: ['pipe', 'ignore', 'inherit'] })
  t.after(() => holder.kill())
  holder.stdin.write('begin; lock table begun;\n')
  while (await sql(`select count(*) from pg_locks where relation = 'begun'::regclass and mode = 'AccessExclusiveLock'`) === '0');
  const config = { broadcast: { snapshot: true } }
  const join = JSON.stringify(['1', '1', 'realtime:tide:table:public.begun', 'phx_join', { config }])
  const url = `${http.replace('http', 'ws')}/realtime/v1/websocket?vsn=2.0.0&apikey=${await token()}`
  await page.evaluate(([url, join]) => {
    window.other = new WebSocket(url)
    window.other.onopen = () => window.other.send(join)
  }, [url, join])

  await page.getByText(/A channel is being told the rows that there are; [0-9,]+ rows so far/).waitFor()
  holder.stdin.end('commit;\n')
  await page.locator('#snapshots').waitFor({ state: 'hidden' })
})
