import type { Store } from './store.js'

/** Keeps a space of a store current: what changes is written together, one batch after the other. */
export class Keeper {
  readonly #store: Store
  readonly #space: string
  #changes = new Map<string, unknown>()
  #writing: Promise<void> | undefined
  #isBroken = false

  constructor(store: Store, space: string) {
    this.#store = store
    this.#space = space
  }

  put(name: string, value: unknown): void {
    if (this.#isBroken) return
    this.#changes.set(name, value)
    this.#start()
  }

  delete(name: string): void {
    this.put(name, undefined)
  }

  /** Writes no more: another one does. */
  stop(): void {
    this.#isBroken = true
    this.#changes.clear()
  }

  /** Resolves once all is written that there is to write. */
  async settled(): Promise<void> {
    while (this.#writing) await this.#writing
  }

  #start(): void {
    this.#writing ??= this.#writeAll().finally(() => {
      this.#writing = undefined
    })
  }

  async #writeAll(): Promise<void> {
    // All that is done in this turn of the event loop belongs together.
    await Promise.resolve()
    while (this.#changes.size > 0 && !this.#isBroken) {
      const changes = [...this.#changes]
      this.#changes = new Map()
      const put = changes.filter(([, value]) => value !== undefined)
      const gone = changes.filter(([, value]) => value === undefined).map(([name]) => name)
      await this.#store.write(this.#space, { delete: gone, put }).catch(() => this.#giveUp())
    }
  }

  /** The store has no room, or is gone. Rows with a hole in them would be worse than none: begin anew next time. */
  async #giveUp(): Promise<void> {
    this.#isBroken = true
    await this.#store.write(this.#space, { clear: true }).catch(() => {})
  }
}
