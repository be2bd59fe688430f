import { Channel } from './channel.js'
import type { JoinOptions, Loss } from './channel.js'
import type { Connection } from './connection.js'
import { Emitter } from './emitter.js'
import { Feed } from './feed.js'
import type { News } from './feed.js'
import { parseFilter } from './filter.js'
import { Keeper } from './keeper.js'
import type { Mutation, Outcome } from './mutation.js'
import { isUpTo } from './position.js'
import { keyText } from './row.js'
import type { Key, Row } from './row.js'
import type { Store, Unlock } from './store.js'
import { Table } from './table.js'
import type { Changed } from './table.js'

/** What to keep in step with. */
export interface SyncOptions {
  /** `schema.table`; names with dots, or other than lower case, in double quotes. */
  table: string
  /** Only rows that meet it: `col=op.value`, several with commas. */
  filter?: string
  /** Only these columns. Those of the key come with them. */
  select?: string[]
  /** The columns of the key that rows are told apart by; `['id']` if it is left out. */
  key?: string | string[]
}

/**
 * - `loading`: the rows are being read for the first time; what is there is part of them
 * - `live`: the rows are what the database has
 * - `stale`: the rows were what the database had, and wait for what has changed since
 * - `refused`: the server does not let the client have them, for the {@link Collection.reason}; it is asked again
 * - `closed`: by {@link Collection.close}
 */
export type Status = 'loading' | 'live' | 'stale' | 'refused' | 'closed'

/** What has changed of a collection, at once. */
export interface Change<R extends Row = Row> {
  /** The rows that are other ones now, by key; undefined: gone. */
  rows: Map<string, R | undefined>
  status: Status
}

/** What tells a collection from others of the same store. */
export function nameOf({ table, filter, select, key }: SyncOptions): string {
  return JSON.stringify([table, filter ?? null, select ?? null, [key ?? 'id'].flat()])
}

/**
 * A table, or a part of it, kept in step with the database: through losses of the connection, and, with a store,
 * through reloads. What {@link Tide.mutate} was asked for is there at once, and goes again if it is rejected.
 *
 * When the server begins anew, the old rows stay, and are `stale`, until the new ones are whole.
 */
export class Collection<R extends Row = Row> implements AsyncIterable<Change<R>> {
  /** The table's name, as it was given. */
  readonly table: string
  /** Resolves when the collection is `live` for the first time; rejects if it is closed before. */
  readonly ready: Promise<Collection<R>>
  readonly #table: Table
  readonly #changes = new Emitter<Change<R>>()
  readonly #options: JoinOptions
  readonly #keeper: Keeper
  #status: Status = 'loading'
  #reason: string | undefined
  #version = 0
  #channel: Channel | undefined
  #connection: Connection | undefined
  #unlock: Unlock | null = null
  #isLaid = false
  readonly #store: Store
  readonly #space: string
  readonly #feed: Feed
  #settleReady!: { resolve: (collection: Collection<R>) => void; reject: (error: Error) => void }

  /** @internal Use {@link Tide.sync}. */
  constructor(options: SyncOptions, store: Store) {
    const key = [options.key ?? 'id'].flat()
    const columns = options.select && [...new Set([...key, ...options.select])]
    this.table = options.table
    this.#options = {
      snapshot: true,
      ...(options.filter && { filter: options.filter }),
      ...(columns && { select: columns }),
    }
    this.#store = store
    this.#space = `rows/${nameOf(options)}`
    this.#keeper = new Keeper(store, this.#space)
    this.#table = new Table(options.table, key, parseFilter(options.filter), this.#keeper)
    this.#feed = new Feed(this.#table, this.#options)
    this.ready = new Promise((resolve, reject) => {
      this.#settleReady = { resolve, reject }
    })
    this.ready.catch(() => {})
  }

  /**
   * The rows by key: the text of the key's only column, or a JSON array of several. Always the same map, which
   * changes; {@link version} says whether it has.
   */
  get rows(): ReadonlyMap<string, R> {
    return this.#table.shown as Map<string, R>
  }

  get status(): Status {
    return this.#status
  }

  /** Why it is `refused` or `stale`, in the server's words. */
  get reason(): string | undefined {
    return this.#reason
  }

  /** A number that grows whenever rows or status change, as React's useSyncExternalStore wants it. */
  get version(): number {
    return this.#version
  }

  /** The row with a key: the value of its only column, or an object of several. */
  get(key: Key): R | undefined {
    return this.rows.get(keyText(key, this.#table.key))
  }

  /** Calls back after each change. What is returned ends that. */
  subscribe(listener: (change: Change<R>) => void): () => void {
    return this.#changes.add(listener)
  }

  /** All rows that there are, then each change; what changes while nobody asks comes as one. Ends when it is closed. */
  async *[Symbol.asyncIterator](): AsyncIterator<Change<R>> {
    let rows = new Map<string, R | undefined>(this.rows)
    let wake = () => {}
    let hasNews = true
    const stop = this.subscribe((change) => {
      for (const [key, row] of change.rows) rows.set(key, row)
      hasNews = true
      wake()
    })
    try {
      for (;;) {
        if (!hasNews) await new Promise<void>((resolve) => (wake = resolve))
        const change = { rows, status: this.#status }
        rows = new Map()
        hasNews = false
        yield change
        if (change.status === 'closed') return
      }
    } finally {
      stop()
    }
  }

  /** Ends it. What the store has of it stays, to go on from. */
  async close(): Promise<void> {
    if (this.#status === 'closed') return
    this.#tell(new Map(), 'closed')
    this.#settleReady.reject(new Error('the collection was closed'))
    await this.#channel?.leave()
    await this.#keeper.settled()
    this.#unlock?.()
  }

  /** @internal */
  get topic(): string {
    return `tide:table:${this.table}`
  }

  /** @internal Begins: with what the store has, then with what the server says. */
  async start(connection: Connection, pending: () => readonly Mutation[]): Promise<void> {
    this.#connection = connection
    await this.#restore()
    // From here on it is told of each.
    this.#isLaid = true
    for (const mutation of pending()) this.foretell(mutation)
    if (this.#isClosed) return this.#unlock?.()
    this.#channel = new Channel(
      connection,
      this.topic,
      {
        message: (message) => this.#hear(this.#feed.take(message)),
        system: (message) => this.#hear(this.#feed.hear(message)),
        lost: (loss) => this.#lost(loss),
      },
      this.#options,
    )
  }

  /** @internal Shows what a mutation will do. */
  foretell(mutation: Mutation): void {
    if (this.#isLaid) this.#tell(this.#table.foretell(mutation))
  }

  /** @internal A mutation was not done, and will not be. */
  forget(mutationId: string): void {
    this.#tell(this.#table.forget(mutationId))
  }

  /** @internal A mutation is done, as was told on this connection; `isEchoed`: after its own changes. */
  confirm(mutationId: string, outcome: Outcome, connection: Connection, isEchoed: boolean): void {
    const hasIt = isEchoed && connection === this.#connection && this.#channel?.isJoined && this.#status === 'live'
    if (hasIt || isUpTo(outcome.position, this.#table.place.since)) return this.forget(mutationId)
    this.#tell(this.#table.await(mutationId, outcome.position, outcome.returning))
  }

  /** @internal The store cannot be read. */
  fail(error: Error): void {
    this.#settleReady.reject(error)
    this.#tell(new Map(), 'refused', error.message)
  }

  async #restore(): Promise<void> {
    // One of those who share the store writes; all begin with what is there.
    this.#unlock = await this.#store.lock(this.#space)
    if (!this.#unlock) this.#keeper.stop()
    const changed = this.#table.restore(await this.#store.read(this.#space))
    this.#feed.useStoredPlace()
    this.#tell(changed, this.#table.isWhole ? 'stale' : 'loading')
  }

  #hear(news: News): void {
    if (news.failure !== undefined) {
      this.#feed.beginAnew()
      this.#tell(news.changed, 'refused', news.failure)
      void this.#channel?.again()
    } else if (news.isCaughtUp) {
      this.#tell(news.changed, 'live')
      this.#settleReady.resolve(this)
    } else {
      this.#tell(news.changed)
    }
  }

  #lost({ reason, isRefusal }: Loss): void {
    // A place that the server cannot make anything of: without one it begins anew.
    if (reason.startsWith('InvalidPosition')) this.#feed.beginAnew()
    this.#tell(new Map(), isRefusal ? 'refused' : this.#table.isWhole ? 'stale' : 'loading', reason)
  }

  get #isClosed(): boolean {
    return this.#status === 'closed'
  }

  #tell(changed: Changed, status = this.#status, reason?: string): void {
    if (this.#isClosed || (changed.size === 0 && status === this.#status)) return
    if (status !== this.#status || reason !== undefined) this.#reason = reason
    this.#status = status
    this.#version += 1
    this.#changes.emit({ rows: changed as Map<string, R | undefined>, status })
  }
}
