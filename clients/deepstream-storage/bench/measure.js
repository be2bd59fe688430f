'use strict'

// Measures one connector: node measure.js <module> <case>, the database in the environment. Prints
// JSON: the 50th and 99th percentile of a latency in microseconds, and a rate per second; null for
// what the case has none of.

const { once } = require('node:events')
const { createInterface } = require('node:readline')

const [, , moduleName, caseName] = process.argv
const { Connector } = require(moduleName)

const RECORDS = 20_000
const CALLS = 3_000

const micros = () => (performance.timeOrigin + performance.now()) * 1_000

const ask = (connector, method, ...args) =>
  new Promise((resolve, reject) => {
    connector[method](...args, (error, ...values) => (error ? reject(error) : resolve(values)))
  })

const record = (n) => ({ n, name: `record number ${n}`, tags: ['a', 'b', 'c'], pad: 'x'.repeat(100) })

async function open(options) {
  const services = { logger: { getNameSpace: () => ({ info() {}, warn() {}, error: console.error }) } }
  const connector = new Connector(
    { user: process.env.PGUSER, host: process.env.PGHOST, database: process.env.PGDATABASE,
      schema: 'ds', idleTimeoutMillis: 60_000, ...options },
    services,
  )
  connector.init()
  await connector.whenReady()
  return connector
}

const fill = (connector, count) =>
  Promise.all(Array.from({ length: count }, (_, n) => ask(connector, 'set', `filled/${n}`, 1, record(n))))

/** Calls one after the other. */
async function inTurn(count, call) {
  const latencies = []
  const start = micros()
  for (let n = 0; n < count; n += 1) {
    const before = micros()
    await call(n)
    latencies.push(micros() - before)
  }
  return summary(latencies, count, micros() - start)
}

/** So many calls at any time. */
async function atOnce(count, width, call) {
  let next = 0
  const start = micros()
  await Promise.all(Array.from({ length: width }, async () => {
    while (next < count) await call(next++)
  }))
  return summary([], count, micros() - start)
}

function summary(latencies, count, elapsed) {
  latencies.sort((a, b) => a - b)
  const percentile = (share) => latencies[Math.floor(latencies.length * share)] ?? null
  return [percentile(0.5), percentile(0.99), count / (elapsed / 1e6)]
}

const CASES = {
  async get() {
    const connector = await open({ writeInterval: 1 })
    await fill(connector, 1_000)
    const get = (n) => ask(connector, 'get', `filled/${n % 1_000}`)
    await inTurn(500, get)
    return [connector, await inTurn(CALLS, get)]
  },

  async gets() {
    const connector = await open({ writeInterval: 1 })
    await fill(connector, 1_000)
    const get = (n) => ask(connector, 'get', `filled/${n % 1_000}`)
    await atOnce(2_000, 32, get)
    return [connector, await atOnce(10 * CALLS, 32, get)]
  },

  async set() {
    const connector = await open({ writeInterval: 1 })
    await fill(connector, 1)
    const set = (n) => ask(connector, 'set', `filled/${n % 100}`, n, record(n))
    await inTurn(100, set)
    return [connector, await inTurn(CALLS / 3, set)]
  },

  /** A set is called back when its event has been delivered, or comes before it, or neither. */
  async 'set with subscriber'() {
    const connector = await open({ writeInterval: 1 })
    await connector.subscribe(() => {})
    await fill(connector, 1)
    const set = (n) => ask(connector, 'set', `filled/${n % 100}`, n, record(n))
    await inTurn(100, set)
    return [connector, await inTurn(CALLS / 3, set)]
  },

  async sets() {
    const connector = await open({ writeInterval: 1 })
    await fill(connector, 1_000)
    const start = micros()
    await fill(connector, RECORDS)
    return [connector, summary([], RECORDS, micros() - start)]
  },

  /**
   * Rows that others insert: their ids are the time of the INSERT, in microseconds, and a number.
   * Says "ready", then reads how many there will be.
   */
  async events() {
    const connector = await open({ writeInterval: 1 })
    await ask(connector, 'set', 'inserted/first', 1, {})
    const latencies = []
    let [expected, finish] = [Infinity, null]
    const finished = new Promise((resolve) => (finish = resolve))
    await connector.subscribe(({ event, table, key }) => {
      if (event !== 'INSERT' || table !== 'inserted') return
      latencies.push(micros() - Number(key.slice(0, key.indexOf('-'))))
      if (latencies.length >= expected) finish()
    })
    console.log('ready')
    const [line] = await once(createInterface(process.stdin), 'line')
    expected = Number(line)
    if (latencies.length >= expected) finish()
    await finished
    if (latencies.length > expected) throw new Error('more events than rows')
    return [connector, summary(latencies, 0, 1)]
  },
}

async function main() {
  const [connector, result] = await CASES[caseName]()
  console.log(JSON.stringify(result))
  await connector.close()
  process.exit(0)
}

main()
