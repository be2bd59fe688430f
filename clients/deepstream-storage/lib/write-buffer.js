'use strict'

/** Characters of values in one batch. A larger value is a batch of its own. */
const BATCH_SIZE = 8 * 1024 * 1024

/**
 * What is still to be written to one table: the newest change of each id. One batch is written at
 * a time, so that no change overtakes an older one.
 *
 * A change is `{ version, value, callbacks, at, failed }`: the value as JSON text, or undefined to
 * delete; when it came, in milliseconds since 1970; and whether it will not be stored after all.
 */
class WriteBuffer {
  #write
  #waiting = new Map()
  #writing = new Map()
  #queued = false
  #tail = Promise.resolve()

  /** @param write writes a batch, a map from ids to changes, and calls back; it never rejects */
  constructor(write) {
    this.#write = write
  }

  put(id, version, value, callback) {
    const older = this.#waiting.get(id)
    const callbacks = older ? older.callbacks : []
    callbacks.push(callback)
    this.#waiting.set(id, { version, value, callbacks, at: Date.now(), failed: false })
  }

  /** The newest change of an id that is not known to be written. */
  newest(id) {
    const change = this.#waiting.get(id) ?? this.#writing.get(id)
    return change?.failed ? undefined : change
  }

  get isIdle() {
    return this.#waiting.size === 0 && this.#writing.size === 0
  }

  /** Writes what is waiting, after what is being written. Resolves when both are. */
  flush() {
    if (!this.#queued && this.#waiting.size > 0) {
      this.#queued = true
      this.#tail = this.#tail.then(() => this.#writeAll())
    }
    return this.#tail
  }

  async #writeAll() {
    this.#queued = false
    const all = this.#waiting
    this.#waiting = new Map()
    this.#writing = all
    for (const batch of split(all)) await this.#write(batch)
    this.#writing = new Map()
  }
}

/** Cuts a batch where it grows too large for one statement. */
function split(all) {
  const batches = []
  let size = Infinity
  for (const [id, change] of all) {
    size += change.value?.length ?? 0
    if (size > BATCH_SIZE) {
      batches.push(new Map())
      size = change.value?.length ?? 0
    }
    batches.at(-1).set(id, change)
  }
  return batches
}

module.exports = { WriteBuffer }
