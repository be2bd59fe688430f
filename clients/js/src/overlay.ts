import type { Mutation, Op } from './mutation.js'
import type { Position } from './position.js'
import { hasKey, isEqual, keyOf } from './row.js'
import type { Row } from './row.js'

/** What an operation that has not been answered makes of the row with its key. */
interface Patch {
  op: 'insert' | 'set' | 'upsert' | 'delete'
  /** In the mutation. */
  index: number
  key: string
  /** The key is made by the database: until it is known the row has one of the overlay's own. */
  isKeyMade: boolean
  values: Row
}

interface Layer {
  mutationId: string
  patches: Patch[]
  /** Confirmed, but its events may be still to come: those up to here. */
  until?: Position
}

/** What mutations that have not been answered make of the rows of one table, in their order. */
export class Overlay {
  readonly #table: string
  readonly #key: readonly string[]
  #layers: Layer[] = []
  /** All keys that there is anything about, once somebody has asked. */
  #touched: Set<string> | undefined

  constructor(table: string, key: readonly string[]) {
    this.#table = table
    this.#key = key
  }

  /** Lays a mutation over the others. The keys of the rows that are other ones now. */
  add(mutation: Mutation): string[] {
    const patches = this.#patches(mutation)
    this.#touched = undefined
    if (patches.length > 0) this.#layers.push({ mutationId: mutation.mutation_id, patches })
    return patches.map((patch) => patch.key)
  }

  /** Takes a mutation away. The keys of the rows that are other ones now. */
  remove(mutationId: string): string[] {
    return this.#take((layer) => layer.mutationId === mutationId)
  }

  /** A mutation is confirmed, but the rows may not have it yet: it stays until they are at this position. */
  keep(mutationId: string, until: Position, returning: unknown[]): string[] {
    const layer = this.#layers.find((one) => one.mutationId === mutationId)
    if (!layer) return []
    layer.until = until
    this.#touched = undefined
    return layer.patches.flatMap((patch) => this.#nameKey(patch, returning[patch.index]))
  }

  /** Takes away the confirmed mutations for which this holds. */
  release(isPast: (until: Position) => boolean): string[] {
    return this.#take((layer) => layer.until !== undefined && isPast(layer.until))
  }

  /** The rows have a change that came of a mutation: what it foretold is not needed any more. */
  echo(mutationId: string, key: string, record: Row | undefined): string[] {
    const layer = this.#layers.find((one) => one.mutationId === mutationId)
    const patch = layer?.patches.find((one) => one.key === key) ?? (record && made(layer, record))
    if (!layer || !patch) return []
    this.#touched = undefined
    layer.patches.splice(layer.patches.indexOf(patch), 1)
    return [patch.key]
  }

  /** The row with this key as it will be, given how it is; undefined: there is none. */
  over(key: string, confirmed: Row | undefined): Row | undefined {
    let row = confirmed
    for (const layer of this.#layers) {
      for (const patch of layer.patches) if (patch.key === key) row = patched(row, patch)
    }
    return row
  }

  /** Whether there is anything about this key. */
  touches(key: string): boolean {
    // Asked for each row of a page, whatever waits.
    this.#touched ??= new Set(this.keys())
    return this.#touched.has(key)
  }

  /** All keys that there is anything about. */
  keys(): string[] {
    return this.#layers.flatMap((layer) => layer.patches.map((patch) => patch.key))
  }

  #take(isGone: (layer: Layer) => boolean): string[] {
    this.#touched = undefined
    const gone = this.#layers.filter(isGone)
    this.#layers = this.#layers.filter((layer) => !isGone(layer))
    return gone.flatMap((layer) => layer.patches.map((patch) => patch.key))
  }

  #patches(mutation: Mutation): Patch[] {
    const ops = mutation.optimistic ?? mutation.ops
    return ops.flatMap((op, index) => {
      if (op.op === 'call' || op.table !== this.#table) return []
      const named: Row = 'key' in op ? { ...op.key } : {}
      const values = { ...(op.op === 'delete' ? {} : op.values) }
      for (const row of [named, values]) resolveNew(row, ops, mutation.mutation_id)
      const keyed = hasKey(named, this.#key) ? named : { ...values, ...named }
      const isKeyMade = !hasKey(keyed, this.#key)
      const key = isKeyMade ? madeKey(mutation.mutation_id, index) : keyOf(keyed, this.#key)
      return [{ op: op.op, index, key, isKeyMade, values: { ...named, ...values } }]
    })
  }

  /** The database has made a key for the row of a patch: it has that from now on. */
  #nameKey(patch: Patch, returned: unknown): string[] {
    if (!patch.isKeyMade || typeof returned !== 'object' || !returned) return []
    if (!hasKey(returned as Row, this.#key)) return []
    const before = patch.key
    patch.key = keyOf(returned as Row, this.#key)
    patch.isKeyMade = false
    patch.values = { ...patch.values, ...(returned as Row) }
    return [before, patch.key]
  }
}

/** The key that a row is shown by until the database has made one. */
function madeKey(mutationId: string, index: number): string {
  return `new:${mutationId}:${index}`
}

/** Has values that stand for a new row's key be what that row is shown by. */
function resolveNew(row: Row, ops: Op[], mutationId: string): void {
  for (const [name, value] of Object.entries(row)) {
    if (typeof value !== 'object' || value === null || !('$new' in value)) continue
    const { $new: index, column } = value as { $new: number; column?: string }
    const op = ops[index]
    const given = op && op.op !== 'call' && op.op !== 'delete' && column ? op.values[column] : undefined
    row[name] = given ?? madeKey(mutationId, index)
  }
}

/** Of the rows whose keys are made, the one that a record most likely is. */
function made(layer: Layer | undefined, record: Row): Patch | undefined {
  const patches = layer?.patches.filter((patch) => patch.isKeyMade) ?? []
  return patches.find((patch) => agrees(patch.values, record)) ?? patches[0]
}

function agrees(values: Row, record: Row): boolean {
  return Object.entries(values).every(([name, value]) => isEqual(value, record[name]))
}

function patched(row: Row | undefined, patch: Patch): Row | undefined {
  switch (patch.op) {
    case 'delete':
      return undefined
    case 'set':
      // A row that is not there is not made by changing it.
      return row && { ...row, ...patch.values }
    case 'insert':
    case 'upsert':
      return { ...row, ...patch.values }
  }
}
