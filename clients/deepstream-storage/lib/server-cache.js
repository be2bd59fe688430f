'use strict'

const { isDeepStrictEqual, promisify } = require('node:util')
const { Echoes } = require('./echoes')
const { namesOf, parse } = require('./key')

/** How many records are read at once. */
const BATCH = 500

/** Numbers of deepstream's protocol: TOPIC.RECORD and RECORD_ACTION.NOTIFY. */
const RECORD = 5
const NOTIFY = 2

/**
 * Has a deepstream server learn of records that others have changed.
 *
 * The server keeps records in a cache and reads storage only for what is not there. After a change
 * that it did not make, the record is read and put into its cache, and the server told as another
 * node of its cluster would tell it; then it tells its clients.
 */
class ServerCache {
  #services
  #defaultTable
  #read
  #isBeingWritten
  #logger
  /** Names to look at, and whether other connectors' writes are the only reason to. */
  #waiting = new Map()
  #working = false
  /** Names that the server has written since they were read. */
  #overwritten = new Set()
  /** Everything that the server may have cached through this connector. */
  #known = new Set()

  /**
   * @param read reads records: a map from those names that there are to `{ version, value }`
   * @param isBeingWritten whether the server's own write of a record is not stored yet
   */
  constructor(services, { defaultTable, read, isBeingWritten, logger }) {
    this.#services = services
    this.#defaultTable = defaultTable
    this.#read = read
    this.#isBeingWritten = isBeingWritten
    this.#logger = logger
  }

  /** The server reads a record. */
  asked(name) {
    this.#known.add(name)
  }

  /** The server writes or deletes a record. */
  written(name) {
    this.#known.add(name)
    if (this.#working) this.#overwritten.add(name)
  }

  /** A row was changed by somebody else. */
  changed(table, id, mutationId) {
    const byConnector = Echoes.areAny(mutationId)
    for (const name of namesOf(table, id, this.#defaultTable)) this.#enqueue(name, byConnector)
  }

  /** A write of the server's failed, so that it and its clients have what is not stored. */
  failed(table, id) {
    for (const name of namesOf(table, id, this.#defaultTable)) this.#enqueue(name, false)
  }

  /** A table has lost all its rows. */
  emptied(table) {
    for (const name of this.#known) {
      if (parse(name, this.#defaultTable).table === table) this.#enqueue(name, false)
    }
  }

  /** Any row may have changed. */
  resync() {
    for (const name of this.#known) this.#enqueue(name, false)
  }

  #enqueue(name, byConnector) {
    this.#waiting.set(name, byConnector && (this.#waiting.get(name) ?? true))
    if (!this.#working) this.#work()
  }

  async #work() {
    this.#working = true
    // What comes in the same moment is looked at together.
    await null
    while (this.#waiting.size > 0) {
      const batch = new Map([...this.#waiting].slice(0, BATCH))
      for (const name of batch.keys()) this.#waiting.delete(name)
      await this.#tryRefresh(batch)
    }
    this.#working = false
  }

  async #tryRefresh(batch) {
    try {
      await this.#refresh(batch)
    } catch (error) {
      if (batch.size > 1) return this.#refreshEach(batch)
      const [name] = batch.keys()
      this.#logger.error('ERROR', `record ${name} could not be read again: ${error.message ?? error}`)
    }
  }

  /** One name may be at fault, that of a record that there cannot be. */
  async #refreshEach(batch) {
    for (const entry of batch) await this.#tryRefresh(new Map([entry]))
  }

  async #refresh(batch) {
    this.#overwritten.clear()
    const names = [...batch.keys()]
    const cached = await Promise.all(names.map((name) => this.#cached(name)))
    const stored = await this.#read(names.filter((_, index) => cached[index] !== null))
    const changes = names.map((name, index) =>
      this.#replace(name, batch.get(name), cached[index], stored.get(name) ?? null),
    )
    const changed = (await Promise.all(changes)).flatMap((isNew, index) => (isNew ? names[index] : []))
    if (changed.length === 0) return
    const message = { topic: RECORD, action: NOTIFY, names: changed }
    this.#services.messageDistributor?.distribute(null, message)
  }

  /** Makes the cache say what storage says; whether that was news. */
  async #replace(name, byConnector, cached, stored) {
    // Somebody may be subscribed to what is not cached; the server reads it itself if so.
    if (cached === null) return true
    // What the server writes is newer than what was read.
    if (this.#overwritten.has(name) || this.#isBeingWritten(name)) return false
    const { cache } = this.#services
    if (stored === null) {
      this.#known.delete(name)
      await promisify(cache.delete.bind(cache))(name)
      return true
    }
    const { version, value } = stored
    if (version === cached.version && isDeepStrictEqual(value, cached.value)) return false
    // Of another node of this server's cluster, whose next write is on its way.
    if (byConnector && version < cached.version) return false
    await promisify(cache.set.bind(cache))(name, version, value)
    return true
  }

  #cached(name) {
    return new Promise((resolve, reject) => {
      this.#services.cache.get(name, (error, version, value) => {
        if (error) reject(error)
        else resolve(value ? { version, value } : null)
      })
    })
  }
}

module.exports = { ServerCache }
