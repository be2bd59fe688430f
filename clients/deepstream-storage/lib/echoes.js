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

  /** Begins to count the events of a transaction, on one table, that is about to be sent. */
  begin(table) {
    const id = this.#own + this.#next++
    const [written, done] = [deferred(), deferred()]
    this.#awaited.set(id, { table, seen: 0, expected: Infinity, written, done })
    return id
  }

  /** Waits until so many of the transaction's events have been seen, of the table with this oid. */
  delivered(id, expected, oid) {
    const echo = this.#awaited.get(id)
    if (!echo) return Promise.resolve()
    echo.expected = expected
    echo.written.resolve(oid)
    this.#settle(id, echo)
    return echo.done.promise
  }

  /**
   * A table was dropped: what has not been seen of its rows by now will not be.
   * @param oidNow finds the oid of the table that has its name now; null if none has
   */
  dropped(table, oidNow) {
    for (const [id, echo] of this.#awaited) {
      if (echo.table === table) this.#forgetDropped(id, echo, oidNow)
    }
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
    echo.written.resolve(null)
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

  /** It may be the table made anew that was written to, whose events are still to come. */
  async #forgetDropped(id, echo, oidNow) {
    const oid = await echo.written.promise
    if (!this.#awaited.has(id)) return
    try {
      if ((await oidNow()) !== oid) this.forget(id)
    } catch {
      // Not known, so its events are waited for like any others.
    }
  }

  #settle(id, echo) {
    if (echo.seen >= echo.expected) this.forget(id)
  }
}

module.exports = { Echoes }
