'use strict'

const { call } = require('./later')
const { outlast } = require('./outage')

/** Classes of errors that one record alone can be the cause of: its key, its value. */
const OF_ONE_RECORD = /^(22|23|54|P0)/

/** Writes changes to the tables of a schema and calls back when their events have been delivered. */
class Writer {
  #schema
  #records
  #listener
  #longestOutage
  #failed
  #logger
  /** Writes whose callbacks wait for their events. */
  #awaited = new Set()

  /**
   * @param listener gives the schema's listener; undefined while there is none
   * @param longestOutage milliseconds for which a write is tried while Postgres is away
   * @param failed is told of the table and id of each record that could not be written
   */
  constructor(schema, { records, listener, longestOutage, failed, logger }) {
    this.#schema = schema
    this.#records = records
    this.#listener = listener
    this.#longestOutage = longestOutage
    this.#failed = failed
    this.#logger = logger
  }

  /** Writes a map from ids to changes; see WriteBuffer. Never rejects. */
  async write(table, batch) {
    const [sets, deletes] = [new Map(), new Map()]
    for (const [id, change] of batch) (change.value === undefined ? deletes : sets).set(id, change)
    await this.#transact(sets, table, (some, mutationId) =>
      this.#records.set(this.#schema, table, some, mutationId),
    )
    await this.#transact(
      deletes,
      table,
      (some, mutationId) => this.#records.delete(this.#schema, table, [...some.keys()], mutationId),
      () => this.#dropIfEmpty(table),
    )
  }

  /** Resolves when all has been called back, without waiting for a connection that is lost. */
  async finish() {
    this.#listener()?.hurry()
    await Promise.all(this.#awaited)
  }

  /**
   * Writes changes in one transaction, or each in its own if one of them is at fault. They are
   * answered when their events have been delivered and `finish` has been called.
   */
  async #transact(changes, table, write, finish) {
    if (changes.size === 0) return
    try {
      const attempt = () => this.#attempt(changes, table, write)
      const { delivered } = await outlast(attempt, newest(changes) + this.#longestOutage)
      this.#answerLater(changes, delivered, finish)
    } catch (error) {
      if (changes.size === 1 || !OF_ONE_RECORD.test(error.code)) return this.#fail(table, changes, error)
      for (const [id, change] of changes) {
        await this.#transact(new Map([[id, change]]), table, write, finish)
      }
    }
  }

  #fail(table, changes, error) {
    for (const [id, change] of changes) {
      // It is no more what the record will be.
      change.failed = true
      this.#failed(table, id)
    }
    answer(changes, error)
  }

  /** Writes once; resolves, when that is done, with a promise of the events. */
  async #attempt(changes, table, write) {
    const listener = this.#listener()
    const mutationId = listener?.begin(table) ?? null
    try {
      const { events, oid } = await write(changes, mutationId)
      return { delivered: listener?.delivered(mutationId, events, oid) }
    } catch (error) {
      listener?.forget(mutationId)
      throw error
    }
  }

  async #answerLater(changes, delivered, finish) {
    const answered = Promise.resolve(delivered)
      .then(finish)
      .then(() => answer(changes, null))
    this.#awaited.add(answered)
    await answered
    this.#awaited.delete(answered)
  }

  /**
   * In a transaction of its own, after the events of the last rows: nobody may be told of the rows
   * of a table that is not there any more.
   */
  async #dropIfEmpty(table) {
    const listener = this.#listener()
    const mutationId = listener?.begin(table) ?? null
    try {
      await this.#records.dropIfEmpty(this.#schema, table, mutationId)
    } catch (error) {
      this.#logger.error('ERROR', `${this.#schema}.${table} could not be dropped: ${error.message}`)
    }
    listener?.forget(mutationId)
  }
}

/** When the last of the changes came. */
function newest(changes) {
  let time = 0
  for (const { at } of changes.values()) time = Math.max(time, at)
  return time
}

function answer(changes, error) {
  for (const { callbacks } of changes.values()) {
    for (const callback of callbacks) call(callback, error && error.toString())
  }
}

module.exports = { Writer }
