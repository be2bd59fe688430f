'use strict'

const { Echoes } = require('./echoes')
const { call } = require('./later')
const { outlast } = require('./outage')

/** Milliseconds for which a write waits for its events while they could come. */
const PATIENCE = 5_000

/** Events of pg_tide's that deepstream's connector knows, and what it calls them. */
const NAMES = new Map([
  ['INSERT', 'INSERT'],
  ['UPDATE', 'UPDATE'],
  ['DELETE', 'DELETE'],
  ['CREATE_TABLE', 'CREATE_TABLE'],
  ['DROP_TABLE', 'DESTROY_TABLE'],
  ['TRUNCATE', 'TRUNCATE'],
])

/** Events after which a table has no rows. */
const EMPTYING = new Set(['TRUNCATE', 'DROP_TABLE'])

/**
 * The events of one schema, passed on to those who have subscribed to it.
 *
 * Where events were missed for good, the rows are read again and each is told as an UPDATE; of rows
 * that are gone nobody knows, so there is an event of its own before, RESYNC, for those who care.
 */
class SchemaListener {
  #schema
  #feed
  #records
  #echoes = new Echoes()
  #notifications
  #watcher
  #logger
  #callbacks = []
  #known = new WeakSet()
  #joined = null
  /** Counts how often the topic was left. */
  #generation = 0
  #hurried = false
  /** The keys that had an event while all are being read again. */
  #fresh = null

  /**
   * @param notifications which events go to subscribers
   * @param watcher `{ changed(table, id, mutationId), emptied(table), resync() }`, told of what
   *   others do, or null
   */
  constructor(schema, { feed, records, notifications, watcher, logger }) {
    this.#schema = schema
    this.#feed = feed
    this.#records = records
    // Who hears of records that are deleted wants to hear that all are.
    this.#notifications = { TRUNCATE: notifications.DELETE, ...notifications }
    this.#watcher = watcher
    this.#logger = logger
  }

  get #topic() {
    return `tide:records:${this.#schema}`
  }

  get #hasSubscribers() {
    return this.#callbacks.length > 0
  }

  /** Resolves when events arrive: all from the moment of the first call on. */
  start() {
    if (this.#joined) return this.#joined
    const joined = this.#join()
    this.#joined = joined
    joined.catch(() => {
      if (this.#joined === joined) this.#joined = null
    })
    return joined
  }

  async subscribe(callback) {
    this.#callbacks.push(callback)
    this.#known.add(callback)
    const generation = this.#generation
    try {
      await this.start()
    } catch (error) {
      // Unsubscribed before it was established, which is no failure.
      if (generation !== this.#generation) return
      this.unsubscribe(callback)
      throw error
    }
  }

  /** Whether a function has ever been subscribed. */
  knows(callback) {
    return this.#known.has(callback)
  }

  /** Removes one subscription of the callback's, or all there are. */
  unsubscribe(callback) {
    if (callback) {
      const index = this.#callbacks.lastIndexOf(callback)
      if (index >= 0) this.#callbacks.splice(index, 1)
    } else {
      this.#callbacks = []
    }
    if (this.#hasSubscribers) return
    this.#echoes.forgetAll()
    if (this.#watcher || !this.#joined) return
    this.#joined = null
    this.#generation += 1
    this.#feed.leave(this.#topic)
  }

  /** A mutation id for a transaction of ours on a table, if its events will be received; else null. */
  begin(table) {
    return this.#joined ? this.#echoes.begin(table) : null
  }

  /** The transaction failed. */
  forget(mutationId) {
    if (mutationId !== null) this.#echoes.forget(mutationId)
  }

  /**
   * Resolves when so many events of the transaction have been passed on to subscribers.
   * @param oid of the table
   */
  async delivered(mutationId, events, oid) {
    if (mutationId === null) return
    if (!this.#hasSubscribers) return this.forget(mutationId)
    // A connection that is lost is waited for; events that do not come although they could, as
    // of tables that the token's role may not read, are not.
    const timer = setInterval(() => {
      if (!this.#hurried && !this.#feed.isLive(this.#topic)) return
      this.#logger.error('ERROR', `a write to ${this.#schema} made events that did not arrive`)
      this.forget(mutationId)
    }, PATIENCE)
    await this.#echoes.delivered(mutationId, events, oid)
    clearInterval(timer)
  }

  /** A lost connection is waited for no longer. */
  hurry() {
    this.#hurried = true
    if (!this.#feed.isLive(this.#topic)) this.#echoes.forgetAll()
  }

  async #join() {
    const generation = this.#generation
    const since = await outlast(() => this.#records.position())
    if (generation !== this.#generation) throw new Error('unsubscribed')
    await this.#feed.join(this.#topic, since, {
      event: (name, payload, meta) => this.#receive(name, payload, meta.mutation_id),
      resync: (reason) => this.#resync(reason),
    })
  }

  #receive(name, { table, key, old_key: oldKey }, mutationId) {
    const isRow = key !== undefined
    if (this.#fresh && isRow) this.#fresh.add(nameOf(table, key))
    const event = NAMES.get(name)
    if (event && this.#notifications[event]) this.#tell(isRow ? { event, table, key } : { event, table })
    if (this.#watcher && !this.#echoes.areOwn(mutationId)) {
      if (isRow) this.#watcher.changed(table, key, mutationId)
      if (oldKey !== undefined) this.#watcher.changed(table, oldKey, mutationId)
      if (EMPTYING.has(name)) this.#watcher.emptied(table)
    }
    if (isRow) this.#echoes.see(mutationId)
    if (name === 'DROP_TABLE') this.#echoes.dropped(table, () => this.#records.oid(this.#schema, table))
  }

  #tell(event) {
    for (const callback of [...this.#callbacks]) call(callback, event)
  }

  async #resync(reason) {
    this.#logger.warn?.('WARN', `events of ${this.#schema} were missed: ${reason}`)
    this.#echoes.forgetAll()
    this.#watcher?.resync()
    if (!this.#hasSubscribers) return
    this.#tell({ event: 'RESYNC' })
    const fresh = (this.#fresh = new Set())
    try {
      for await (const { table, id } of this.#records.all(this.#schema)) {
        if (this.#fresh !== fresh) return
        const isNews = !fresh.has(nameOf(table, id))
        if (isNews && this.#notifications.UPDATE) this.#tell({ event: 'UPDATE', table, key: id })
      }
    } catch (error) {
      this.#logger.error('ERROR', `${this.#schema} could not be read again: ${error.message}`)
    } finally {
      if (this.#fresh === fresh) this.#fresh = null
    }
  }
}

const nameOf = (table, id) => `${table}/${id}`

module.exports = { SchemaListener }
