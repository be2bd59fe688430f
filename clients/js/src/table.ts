import type { Filter } from './filter.js'
import type { Keeper } from './keeper.js'
import type { Mutation } from './mutation.js'
import { Overlay } from './overlay.js'
import type { Position } from './position.js'
import { isEqual, keyOf } from './row.js'
import type { Row } from './row.js'

/** Where to go on from, as it is kept beside the rows. */
export interface Place {
  resume?: string
  since?: Position
}

interface Kept extends Place {
  /** The rows of which beginning are whole; and of which are being read. */
  whole?: number
  reading?: number
}

/** What a change did to a row: as it is now, or undefined. */
export type Changed = Map<string, Row | undefined>

/** The name of the entry beside the rows. */
const PLACE = 'place'

/**
 * The rows of a collection: as the server has confirmed them, and with what is foretold on top. Rows that are
 * begun anew are gathered beside the old ones, which are shown until the new ones are whole.
 */
export class Table {
  readonly key: readonly string[]
  /** What is shown. */
  readonly shown = new Map<string, Row>()
  readonly #overlay: Overlay
  readonly #filter: Filter
  readonly #keeper: Keeper | undefined
  #rows = new Map<string, Row>()
  /** Being read, while there are old ones. */
  #next: Map<string, Row> | undefined
  /** Rows are kept under the number of their beginning. */
  #generation = 0
  #wholeGeneration = 0
  #isWhole = false
  place: Place = {}

  constructor(name: string, key: readonly string[], filter: Filter, keeper: Keeper | undefined) {
    this.key = key
    this.#overlay = new Overlay(name, key)
    this.#filter = filter
    this.#keeper = keeper
  }

  /** Whether there are rows that were whole at some time. */
  get isWhole(): boolean {
    return this.#isWhole
  }

  /** Whether there are rows to come of a beginning. */
  get isReading(): boolean {
    return !this.#isWhole || this.#generation !== this.#wholeGeneration
  }

  /** Takes over what a store has kept. */
  restore(entries: Map<string, unknown>): Changed {
    const { whole, reading, ...place } = (entries.get(PLACE) as Kept | undefined) ?? {}
    this.place = place
    this.#isWhole = whole !== undefined
    this.#wholeGeneration = whole ?? 0
    this.#generation = reading ?? whole ?? 0
    if (whole !== undefined && reading !== undefined) this.#next = new Map()
    for (const [name, row] of entries) {
      const [, generation, key] = /^(\d+) (.*)$/s.exec(name) ?? []
      if (key === undefined) continue
      if (Number(generation) === reading) this.#arriving.set(key, row as Row)
      else if (Number(generation) === whole) this.#rows.set(key, row as Row)
      else this.#keeper?.delete(name)
    }
    return this.#refresh([...this.#rows.keys(), ...this.#overlay.keys()])
  }

  /** The rows begin anew. */
  begin(): Changed {
    const dropped = this.#isWhole ? this.#next : this.#rows
    for (const key of dropped?.keys() ?? []) this.#keeper?.delete(this.#entry(key))
    this.#generation += 1
    if (this.#isWhole) this.#next = new Map()
    else this.#rows = new Map()
    return this.#refresh(this.#next ? [] : [...(dropped?.keys() ?? [])])
  }

  /** Rows that were there already. */
  add(rows: Row[]): Changed {
    const keys = rows.map((row) => {
      const key = keyOf(row, this.key)
      this.#set(key, row)
      return key
    })
    return this.#refresh(keys)
  }

  /** All rows are there. */
  complete(): Changed {
    const before = this.#rows
    if (this.#next) {
      for (const key of before.keys()) this.#keeper?.delete(`${this.#wholeGeneration} ${key}`)
      this.#rows = this.#next
      this.#next = undefined
    }
    this.#isWhole = true
    this.#wholeGeneration = this.#generation
    return this.#refresh([...before.keys(), ...this.#rows.keys()])
  }

  /** A row is there, or is another one now; `from` is its key before, `unchanged` what is not told again. */
  put(row: Row, from: string | undefined, unchanged: string[], mutationId: string | undefined): Changed {
    const key = keyOf(row, this.key)
    const before = this.#arriving.get(from ?? key)
    const whole = { ...row }
    for (const column of unchanged) if (before && column in before) whole[column] = before[column]
    if (from !== undefined && from !== key) this.#drop(from)
    this.#set(key, whole)
    return this.#refresh([key, ...(from === undefined ? [] : [from]), ...this.#echo(mutationId, key, row)])
  }

  /** A row is gone. */
  remove(key: string, mutationId: string | undefined): Changed {
    this.#drop(key)
    return this.#refresh([key, ...this.#echo(mutationId, key, undefined)])
  }

  /** All rows are gone. */
  clear(): Changed {
    const keys = [...this.#arriving.keys()]
    for (const key of keys) this.#drop(key)
    return this.#refresh(keys)
  }

  /** Shows what a mutation will do. */
  foretell(mutation: Mutation): Changed {
    return this.#refresh(this.#overlay.add(mutation))
  }

  /** Shows no more what a mutation would do. */
  forget(mutationId: string): Changed {
    return this.#refresh(this.#overlay.remove(mutationId))
  }

  /** A mutation is done, but the rows may not have it yet. */
  await(mutationId: string, until: Position, returning: unknown[]): Changed {
    return this.#refresh(this.#overlay.keep(mutationId, until, returning))
  }

  /** The rows have all that was done up to the positions for which this holds. */
  arrive(isPast: (until: Position) => boolean): Changed {
    return this.#refresh(this.#overlay.release(isPast))
  }

  /** Keeps the place, with the rows that it is the place of. */
  keepPlace(): void {
    const whole = this.#isWhole ? { whole: this.#wholeGeneration } : {}
    const reading = this.isReading ? { reading: this.#generation } : {}
    this.#keeper?.put(PLACE, { ...this.place, ...whole, ...reading } satisfies Kept)
  }

  /** Where what comes belongs. */
  get #arriving(): Map<string, Row> {
    return this.#next ?? this.#rows
  }

  #entry(key: string): string {
    return `${this.#generation} ${key}`
  }

  #set(key: string, row: Row): void {
    this.#arriving.set(key, row)
    this.#keeper?.put(this.#entry(key), row)
  }

  #drop(key: string): void {
    this.#arriving.delete(key)
    this.#keeper?.delete(this.#entry(key))
  }

  #echo(mutationId: string | undefined, key: string, record: Row | undefined): string[] {
    return mutationId === undefined ? [] : this.#overlay.echo(mutationId, key, record)
  }

  /** Shows the rows with these keys as they are now; what is another than before. */
  #refresh(keys: string[]): Changed {
    const changed: Changed = new Map()
    for (const key of new Set(keys)) {
      const before = this.shown.get(key)
      const now = this.#visible(key)
      if (now === before || isEqual(now, before)) continue
      if (now) this.shown.set(key, now)
      else this.shown.delete(key)
      changed.set(key, now)
    }
    return changed
  }

  #visible(key: string): Row | undefined {
    const confirmed = this.#rows.get(key)
    if (!this.#overlay.touches(key)) return confirmed
    const row = this.#overlay.over(key, confirmed)
    return row && this.#filter(row) ? row : undefined
  }
}
