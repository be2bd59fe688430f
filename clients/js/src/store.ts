/**
 * Where a {@link Tide} keeps what survives a reload: the rows of collections with the place to go on from,
 * and the mutations that have not been answered. Names and values in named spaces; values are JSON.
 */
export interface Store {
  /** All that a space holds, as of one moment. */
  read(space: string): Promise<Map<string, unknown>>
  /** Changes a space, whole or not at all, and resolves once it would survive the end of the program. */
  write(space: string, batch: Batch): Promise<void>
  /** The names of the spaces that hold something and begin with this. */
  spaces(prefix: string): Promise<string[]>
  /** Takes a lock that one holder at a time has, until it lets go or is gone; `null`: another has it. */
  lock(name: string): Promise<Unlock | null>
  /** Lets go of what the store itself holds. Nothing is asked of it afterwards. */
  close(): Promise<void>
}

/** One change of a space, in the order: cleared, deleted, put. */
export interface Batch {
  clear?: boolean
  delete?: string[]
  put?: [name: string, value: unknown][]
}

/** Lets go of a lock. */
export type Unlock = () => void

/** A store that lasts as long as the object: what is not to survive, and for tests. */
export class MemoryStore implements Store {
  readonly #spaces = new Map<string, Map<string, unknown>>()
  readonly #locks = new Set<string>()

  async read(space: string): Promise<Map<string, unknown>> {
    return structuredClone(this.#spaces.get(space) ?? new Map())
  }

  async write(space: string, batch: Batch): Promise<void> {
    const entries = this.#spaces.get(space) ?? new Map<string, unknown>()
    apply(entries, structuredClone(batch))
    if (entries.size > 0) this.#spaces.set(space, entries)
    else this.#spaces.delete(space)
  }

  async spaces(prefix: string): Promise<string[]> {
    return [...this.#spaces.keys()].filter((name) => name.startsWith(prefix))
  }

  async lock(name: string): Promise<Unlock | null> {
    if (this.#locks.has(name)) return null
    this.#locks.add(name)
    return () => this.#locks.delete(name)
  }

  async close(): Promise<void> {}
}

/** Does to a map what a batch says. */
export function apply(entries: Map<string, unknown>, batch: Batch): void {
  if (batch.clear) entries.clear()
  for (const name of batch.delete ?? []) entries.delete(name)
  for (const [name, value] of batch.put ?? []) entries.set(name, value)
}
