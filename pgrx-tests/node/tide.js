// The database under test and the unmodified client, as the environment names them.

import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { promisify } from 'node:util'
import { RealtimeClient } from '@supabase/realtime-js'
import { WebSocket } from 'ws'
import { Inbox } from './inbox.js'

export { Inbox }

export const url = process.env.TIDE_URL
const psql = process.env.TIDE_PSQL
const run = promisify(execFile)

/** Every test ends by itself; this only ends one that hangs. */
export const limits = { timeout: 90_000 }

/** Runs SQL as a superuser; the rows as lines of text. */
export async function sql(statements) {
  const options = ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-c', statements]
  const { stdout } = await run(psql, options)
  return stdout.trim()
}

export function token(role = 'authenticated', claims = {}, lifetime = '1 hour') {
  return sql(`select tide.token('${role}', '${JSON.stringify(claims)}', interval '${lifetime}')`)
}

/** Makes and publishes a table that the given roles may read. */
export async function table(columns, roles = 'authenticated') {
  const name = `t_${randomUUID().slice(0, 8)}`
  await sql(`create table ${name} (${columns}); grant select on ${name} to ${roles};
    select tide.publish('${name}')`)
  return name
}

/** A client of the newest 2.x; closed when the test ends. */
export async function connect(t, { vsn, apikey, ...options } = {}) {
  const client = new RealtimeClient(url, {
    params: { apikey: apikey ?? (await token()) },
    transport: globalThis.WebSocket ?? WebSocket,
    ...(vsn && { vsn }),
    ...options,
  })
  t.after(() => client.disconnect())
  return client
}

/** Subscribes and waits for SUBSCRIBED; later states go to the returned inbox. */
export async function subscribe(channel) {
  const states = new Inbox()
  channel.subscribe((state, error) => states.put({ state, error }))
  const first = await states.take()
  if (first.state !== 'SUBSCRIBED') throw new Error(`${first.state}: ${first.error?.message}`)
  return states
}

/** Terminates the process that decodes, as an operator would. */
export function terminateWorker() {
  return sql(`select pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'pg_tide worker' and datname = current_database()`)
}
