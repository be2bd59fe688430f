'use strict'

// Connectors on the database that the environment names, whose role is no superuser, and plain SQL.

const { randomUUID } = require('node:crypto')
const { after } = require('node:test')
const pg = require('pg')
const { Connector } = require('..')
const { makeGate } = require('./gate')

/** Every test ends by itself; this only ends one that hangs. */
const limits = { timeout: 90_000 }

/** One per database, so that tests of several databases do not meet in one. */
const ROLE = process.env.PGDATABASE

const options = {
  user: ROLE,
  host: process.env.PGHOST,
  database: process.env.PGDATABASE,
  writeInterval: 5,
}

// Without timers of its own, for tests that hold time.
const admin = new pg.Pool({ idleTimeoutMillis: 0 })
after(() => admin.end())

/** Runs SQL as a superuser; the rows. */
async function sql(text, values) {
  return (await admin.query(text, values)).rows
}

/** What Postgres has in a table of a connector's, by their ids. */
async function rowsOf(connector, table) {
  const { schema } = connector.options
  const rows = await sql(`select id, version::float8, val from "${schema}"."${table}" order by id`)
  return rows.map((row) => ({ ...row }))
}

/** What the README asks for, once per database. */
const prepared = sql(`
  do $$ begin create role ${ROLE} login; exception when duplicate_object then null; end $$;
  grant ${ROLE} to tide_authenticator;
  grant execute on function tide.token to ${ROLE};
  grant create on database ${process.env.PGDATABASE} to ${ROLE};
`)

const freshSchema = () => `s_${randomUUID().slice(0, 8)}`

/** A logger that keeps what it is told. */
function quietServices() {
  const lines = []
  const log = (...line) => lines.push(line)
  const logger = { info: log, warn: log, error: log }
  return { lines, logger: { getNameSpace: () => logger } }
}

/** A connector that does nothing yet, on a schema of its own; closed when the test ends. */
async function unready(t, more = {}) {
  await prepared
  const connector = new Connector({ ...options, schema: freshSchema(), ...more }, quietServices())
  t.after(() => connector.close())
  return connector
}

/** A connector that is ready. */
async function connect(t, more = {}) {
  const connector = await unready(t, more)
  connector.init()
  await connector.whenReady()
  return connector
}

/** Calls a method of a connector's and waits for its callback; rejects if it is called twice. */
function ask(connector, method, ...args) {
  return new Promise((resolve, reject) => {
    let called = false
    connector[method](...args, (error, ...values) => {
      if (called) throw new Error(`${method} called back twice`)
      called = true
      if (error) reject(typeof error === 'string' ? new Error(error) : error)
      else resolve(values)
    })
  })
}

const set = (connector, name, value, version = 1) => ask(connector, 'set', name, version, value)
const get = (connector, name) => ask(connector, 'get', name)
const remove = (connector, name) => ask(connector, 'delete', name)

/** Keeps others out of a table until it is released. */
async function holdLock(t, table) {
  const session = new pg.Client()
  await session.connect()
  t.after(() => session.end())
  await session.query(`begin; lock table ${table}`)
  return { release: () => session.query('commit') }
}

/** Terminates the process that sends the events, as an operator would. */
function terminateWorker() {
  return sql(`select pg_terminate_backend(pid) from pg_stat_activity
    where backend_type = 'pg_tide worker' and datname = current_database()`)
}

module.exports = {
  Connector, ROLE, ask, connect, freshSchema, get, holdLock, limits, makeGate, options, prepared, quietServices,
  remove, rowsOf, set, sql, terminateWorker, unready,
}
