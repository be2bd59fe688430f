'use strict'

const { randomBytes } = require('node:crypto')
const { deferred } = require('./later')

/** What the mutation ids of all connectors begin with. */
const PREFIX = 'deepstream:'

/**
 * The events of our own transactions. Each transaction gets a mutation id, which its events carry;
 * so a write can wait until its events have been delivered, and they can be told from others'.
 */
class Echoes {
  #own = `${PREFIX}${randomBytes(6).toString('hex')}:`
  #next = 0
  #awaited = new Map()

  /** Begins to count the events of a transaction that is about to be sent. */
  begin() {
    const id = this.#own + this.#next++
    this.#awaited.set(id, { seen: 0, expected: Infinity, done: deferred() })
    return id
  }

  /** Waits until so many of the transaction's events have been seen. */
  delivered(id, expected) {
    const echo = this.#awaited.get(id)
    if (!echo) return Promise.resolve()
    echo.expected = expected
    this.#settle(id, echo)
    return echo.done.promise
  }

  /** Counts an event that was just delivered. */
  see(id) {
    const echo = this.#awaited.get(id)
    if (!echo) return
    echo.seen += 1
    this.#settle(id, echo)
  }

  /** Waits no longer: the transaction failed, or its events will not come. */
  forget(id) {
    const echo = this.#awaited.get(id)
    if (!echo) return
    this.#awaited.delete(id)
    echo.done.resolve()
  }

  forgetAll() {
    for (const id of this.#awaited.keys()) this.forget(id)
  }

  /** Whether an event is of a transaction of this connector's. */
  areOwn(id) {
    return id !== undefined && id.startsWith(this.#own)
  }

  /** Whether an event is of a transaction of any connector's. */
  static areAny(id) {
    return id !== undefined && id.startsWith(PREFIX)
  }

  #settle(id, echo) {
    if (echo.seen >= echo.expected) this.forget(id)
  }
}

module.exports = { Echoes }
