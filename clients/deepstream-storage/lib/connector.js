'use strict'

const { EventEmitter } = require('node:events')
const pg = require('pg')
const { version: ownVersion } = require('../package.json')
const key = require('./key')
const { call, settle } = require('./later')
const { Feed } = require('./feed')
const { loggerOf } = require('./logger')
const { outlast } = require('./outage')
const { Records } = require('./records')
const { SchemaListener } = require('./schema-listener')
const { ServerCache } = require('./server-cache')
const { WriteBuffer } = require('./write-buffer')
const { Writer } = require('./writer')

/** The version of a record that there is not. */
const DELETED = -1

const DEFAULTS = {
  schema: 'ds',
  splitChar: '/',
  idleTimeoutMillis: 30_000,
  writeInterval: 200,
  retryTimeoutMillis: 60_000,
  defaultTable: 'default',
  notifications: {
    CREATE_TABLE: true,
    DESTROY_TABLE: true,
    INSERT: true,
    UPDATE: true,
    DELETE: true,
  },
}

/** Stores deepstream's records in a Postgres with pg_tide. */
class Connector extends EventEmitter {
  #logger
  #pool = null
  #records = null
  #feed = null
  #serverCache = null
  #writer = null
  #ready = null
  #buffers = new Map()
  #listeners = new Map()
  /** Runs while something is buffered. */
  #flushing = null
  #closed = null

  constructor(options, services) {
    super()
    this.options = { ...DEFAULTS, ...options }
    this.description = `pg_tide connection to ${this.options.host} and database ${this.options.database} ${ownVersion}`
    this.services = services
    this.#logger = loggerOf(services)
  }

  init() {
    this.#pool = new pg.Pool(this.options)
    this.#pool.on('error', (error) => this.#logger.info('ERROR', error.message))
    this.#records = new Records(this.#pool)
    const { url, token } = this.options.realtime ?? {}
    this.#feed = new Feed({
      address: async () => url ?? this.#records.address(this.#host()),
      token: typeof token === 'function' ? token : async () => token ?? this.#records.token(this.#role()),
      logger: this.#logger,
    })
    if (this.services?.cache) this.#serverCache = this.#makeServerCache()
    const { schema, retryTimeoutMillis } = this.options
    this.#writer = new Writer(schema, {
      records: this.#records,
      listener: () => this.#listeners.get(schema),
      longestOutage: retryTimeoutMillis,
      failed: (table, id) => this.#serverCache?.failed(table, id),
      logger: this.#logger,
    })
    this.#ready = this.#prepare()
    this.#ready.then(() => this.emit('ready'), (error) => this.#notReady(error))
  }

  /** Resolves when the schema is there and, inside a server, changes of others are watched for. */
  async whenReady() {
    await this.#ready
  }

  async #prepare() {
    const { schema, role } = this.options
    await outlast(() => {
      this.#assertOpen()
      return this.#records.createSchema(schema, role)
    })
    if (this.#serverCache) await this.#listener(schema).start()
  }

  /** Who has not called whenReady() hears of it, too. */
  #notReady(error) {
    if (this.#closed) return
    if (this.listenerCount('error') > 0) this.emit('error', error)
    else this.#logger.error('ERROR', error.message)
  }

  close() {
    this.#closed ??= this.#end()
    return this.#closed
  }

  /** Writes what is buffered, then closes everything. */
  destroy(callback) {
    this.close().then(() => callback?.())
  }

  createSchema(name, callback) {
    return settle(this.#records.createSchema(name, this.options.role), callback)
  }

  destroySchema(name, callback) {
    return settle(this.#records.destroySchema(name), callback)
  }

  getSchemaOverview(callbackOrSchema, schema) {
    const callback = typeof callbackOrSchema === 'function' ? callbackOrSchema : undefined
    const name = (callback ? schema : callbackOrSchema) ?? this.options.schema
    return settle(this.#records.overview(name), callback)
  }

  subscribe(callback, done, schema = this.options.schema) {
    return settle(this.#listener(schema).subscribe(callback), done)
  }

  unsubscribe(callback, done, schema = this.options.schema) {
    const listener = this.#listeners.get(schema)
    // As `unsubscribe(done)`: a function that never was subscribed.
    if (callback && !done && !listener?.knows(callback)) [callback, done] = [undefined, callback]
    listener?.unsubscribe(callback)
    return settle(Promise.resolve(), done)
  }

  set(name, version, value, callback) {
    let text
    try {
      text = JSON.stringify(value)
      if (text === undefined) throw new TypeError(`${typeof value} is not a JSON value`)
    } catch (error) {
      process.nextTick(() => call(callback, error.toString()))
      return
    }
    this.#put(name, version, text, callback)
  }

  get(name, callback) {
    this.#serverCache?.asked(name)
    const { table, id } = this.#parse(name)
    const newest = this.#buffers.get(table)?.newest(id)
    const found = newest
      ? Promise.resolve(recordOf(newest))
      : this.#records.get(this.options.schema, table, id)
    found.then(
      (record) => call(callback, null, record?.version ?? DELETED, record?.value ?? null),
      (error) => call(callback, error),
    )
  }

  delete(name, callback) {
    this.#put(name, DELETED, undefined, callback)?.flush()
  }

  deleteBulk(names, callback) {
    if (names.length === 0) process.nextTick(() => call(callback, null))
    let left = names.length
    let failure = null
    const done = (error) => {
      failure ??= error
      left -= 1
      if (left === 0) callback(failure)
    }
    const buffers = names.map((name) => this.#put(name, DELETED, undefined, done))
    for (const buffer of new Set(buffers)) buffer?.flush()
  }

  /** Runs any SQL. `silent` errors are not logged. */
  query(statement, callback, args = [], silent = false) {
    this.#pool.query(statement, args, (error, result) => {
      if (error && !silent) this.#logger.info('ERROR', error.message)
      call(callback, error, result)
    })
  }

  #parse(name) {
    return key.parse(name, this.options.defaultTable)
  }

  /** Puts a change into its table's buffer, which is returned. */
  #put(name, version, text, callback) {
    if (this.#closed) {
      process.nextTick(() => call(callback, 'Error: the connector is closed'))
      return null
    }
    this.#serverCache?.written(name)
    const { table, id } = this.#parse(name)
    let buffer = this.#buffers.get(table)
    if (!buffer) {
      buffer = new WriteBuffer((batch) => this.#writer.write(table, batch))
      this.#buffers.set(table, buffer)
    }
    buffer.put(id, version, text, callback)
    this.#flushInTime()
    return buffer
  }

  /**
   * Has what is buffered written an interval after the first of it came, so that sets of later turns
   * of the event loop go with it.
   */
  #flushInTime() {
    this.#flushing ??= setTimeout(() => this.#flush(), this.options.writeInterval)
  }

  /** Resolves when everything that was buffered has been written. */
  async #flush() {
    clearTimeout(this.#flushing)
    this.#flushing = null
    const flushes = []
    for (const [table, buffer] of this.#buffers) {
      if (buffer.isIdle) this.#buffers.delete(table)
      else flushes.push(buffer.flush())
    }
    await Promise.all(flushes)
  }

  #listener(schema) {
    let listener = this.#listeners.get(schema)
    if (!listener) {
      listener = new SchemaListener(schema, {
        feed: this.#feed,
        records: this.#records,
        notifications: this.options.notifications,
        watcher: schema === this.options.schema ? this.#serverCache : null,
        logger: this.#logger,
      })
      this.#listeners.set(schema, listener)
    }
    return listener
  }

  #makeServerCache() {
    const { schema, defaultTable } = this.options
    return new ServerCache(this.services, {
      defaultTable,
      read: async (names) => {
        const places = new Map(names.map((name) => [name, this.#parse(name)]))
        return outlast(() => this.#records.getMany(schema, places))
      },
      isBeingWritten: (name) => {
        const { table, id } = this.#parse(name)
        return this.#buffers.get(table)?.newest(id) !== undefined
      },
      logger: this.#logger,
    })
  }

  async #end() {
    await this.#flush()
    await this.#writer?.finish()
    this.#feed?.close()
    await this.#pool?.end()
  }

  #assertOpen() {
    if (this.#closed) throw new Error('the connector is closed')
  }

  /** Where the database is, for those who are not told where the websocket is. */
  #host() {
    const { host } = new pg.Client(this.options)
    return host.startsWith('/') ? 'localhost' : host
  }

  /** Whose token the websocket is opened with; undefined: the user's. */
  #role() {
    return this.options.realtime?.role ?? this.options.role
  }
}

/** The record that a change that is still to be written makes; null for a deletion. */
function recordOf({ version, value }) {
  return value === undefined ? null : { version, value: JSON.parse(value) }
}

module.exports = { Connector }
