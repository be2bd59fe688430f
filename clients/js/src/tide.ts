import type { WebSocketLikeConstructor } from '@supabase/realtime-js'
import { Channel } from './channel.js'
import type { Loss, Message } from './channel.js'
import { Collection, nameOf } from './collection.js'
import type { SyncOptions } from './collection.js'
import { Connection } from './connection.js'
import { Emitter } from './emitter.js'
import { Closed } from './errors.js'
import { Model } from './models.js'
import type { ModelSpec, SyncFunction } from './models.js'
import type { Answer, Mutation, Op, Outcome, Settlement } from './mutation.js'
import { Outbox } from './outbox.js'
import type { Row } from './row.js'
import { takeAbandoned, takeSlot } from './slot.js'
import { MemoryStore } from './store.js'
import type { Store } from './store.js'
import { Tokens } from './token.js'

/** How to connect. */
export interface ConnectOptions {
  /** A token that shows who the client is. */
  token?: string
  /** Gets a token: at the beginning, before one expires, and when the server takes one no more. */
  getToken?: () => Promise<string> | string
  /** What survives a reload; nothing, if it is left out. One store for each user. */
  store?: Store
  /** What to open websockets with, where there is no global `WebSocket`: `ws` on Node 20. */
  transport?: unknown
}

/** What can be said of a mutation besides what it does. */
export interface MutateOptions {
  /** Its name, which its events have as `meta.mutation_id`; a random one, if it is left out. */
  mutationId?: string
  /** What to show until it is answered, instead of what it does: for `call`, of which nobody knows it. */
  optimistic?: Op[]
}

const MUTATIONS = 'tide:mutations'

/** Connects to a database: `ws://host:4000`, or the address of its `/realtime/v1`. */
export function connect(url: string, options: ConnectOptions): Tide {
  return new Tide(url, options)
}

/** A database, as one of its clients has it. */
export class Tide {
  readonly #url: string
  readonly #transport: WebSocketLikeConstructor | undefined
  readonly #store: Store
  readonly #tokens: Tokens
  readonly #connections: Connection[] = []
  readonly #collections = new Map<string, Collection>()
  readonly #waiting = new Map<string, { resolve: (outcome: Outcome) => void; reject: (error: Error) => void }>()
  readonly #settled = new Emitter<Settlement>()
  readonly #models = new Set<Model<SyncFunction>>()
  readonly #main: Connection
  readonly #opening: Promise<Outbox>
  #outbox: Outbox | undefined
  #outboxes: Outbox[] = []
  #channel: Channel | undefined
  #isAdopting = false
  #isClosed = false

  /** @internal Use {@link connect}. */
  constructor(url: string, { token, getToken, store, transport }: ConnectOptions) {
    if (token === undefined && !getToken) throw new Error('connect needs a token, or getToken')
    this.#url = endpoint(url)
    this.#transport = transport as WebSocketLikeConstructor | undefined
    this.#store = store ?? new MemoryStore()
    this.#tokens = new Tokens(token, getToken)
    this.#main = this.#connectionFor(MUTATIONS)
    this.#opening = this.#open()
    // It is told to whoever asks for something.
    this.#opening.then(
      // Not before, so that what is asked for now does not come before what already waits.
      (outbox) => (this.#outbox = outbox),
      () => {},
    )
    if (token === undefined) void this.#tokens.renew()
    else this.#tokens.set(token)
  }

  /** Keeps a table, or a part of it, in step with the database. Asked for twice it is the same collection. */
  sync<R extends Row = Row>(options: SyncOptions): Collection<R> {
    if (this.#isClosed) throw new Closed()
    const name = nameOf(options)
    const known = this.#collections.get(name)
    if (known && known.status !== 'closed') return known as Collection<R>
    const collection = new Collection<Row>(options, this.#store)
    this.#collections.set(name, collection)
    void this.#start(collection).catch((error: Error) => collection.fail(error))
    return collection as Collection<R>
  }

  /**
   * Asks for operations to be done, all or none. They are shown at once, kept in the store, and sent as soon as
   * they can be. It resolves when they are done, and rejects with {@link Rejected} where the database decided
   * against them, with {@link Refused} or {@link Expired} where the server does not take them.
   */
  async mutate(ops: Op[], { mutationId, optimistic }: MutateOptions = {}): Promise<Outcome> {
    if (this.#isClosed) throw new Closed()
    const id = mutationId ?? crypto.randomUUID()
    // As it is now, whatever the caller does with it afterwards, and without what JSON has not.
    const [copy, shown] = JSON.parse(JSON.stringify([ops, optimistic ?? null])) as [Op[], Op[] | null]
    // If it is closed while this waits, it is kept all the same: close() waits for the same, and after this.
    const outbox = this.#outbox ?? (await this.#opening)
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      void outbox.add(id, copy, shown ?? undefined, (mutation) => this.#foretell(mutation))
    })
  }

  /** What has been asked for and not been answered, in order; after a reload that of before, too. */
  get pending(): readonly Mutation[] {
    return this.#outboxes.flatMap((outbox) => outbox.mutations)
  }

  /** Calls back whenever a mutation has ended, also one of before a reload. What is returned ends that. */
  onSettled(listener: (settlement: Settlement) => void): () => void {
    return this.#settled.add(listener)
  }

  /** A model in the shape of Ably's Models SDK: events on a channel, merged into a state. */
  model<S extends SyncFunction>(spec: ModelSpec<S>): Model<S> {
    const model = new Model(spec, this)
    this.#models.add(model as unknown as Model<SyncFunction>)
    return model
  }

  /** Shows another token from now on: of the same user. */
  setToken(token: string): void {
    this.#tokens.set(token)
  }

  /** Ends all of it. What the store has stays. Mutations that are not answered reject with {@link Closed}. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#tokens.close()
    await this.#opening.catch(() => {})
    for (const model of this.#models) void model.dispose()
    for (const collection of this.#collections.values()) await collection.close()
    await this.#channel?.leave()
    for (const outbox of this.#outboxes) await outbox.close()
    for (const connection of this.#connections) await connection.close()
    await this.#store.close()
    for (const { reject } of this.#waiting.values()) reject(new Closed())
    this.#waiting.clear()
  }

  /** @internal A channel of the application's own, on a connection that has no other of its name. */
  connectionFor(topic: string): Connection {
    return this.#connectionFor(topic)
  }

  async #open(): Promise<Outbox> {
    const outbox = new Outbox(await takeSlot(this.#store), this.#store, this)
    this.#outboxes.push(outbox)
    await this.#adopt()
    // The connection is made with the first token; until then this waits.
    this.#channel = new Channel(this.#main, MUTATIONS, {
      joined: () => this.#joined(),
      message: (message) => this.#answered(message),
      lost: (loss) => this.#lost(loss),
    })
    return outbox
  }

  /** Takes over what tabs and processes have left that are gone. */
  async #adopt(): Promise<void> {
    if (this.#isAdopting || this.#isClosed) return
    this.#isAdopting = true
    try {
      for (const slot of await takeAbandoned(this.#store)) {
        const outbox = new Outbox(slot, this.#store, this)
        this.#outboxes.push(outbox)
        for (const mutation of outbox.mutations) this.#foretell(mutation)
        if (this.#channel?.isJoined) outbox.joined(this.#channel)
      }
    } finally {
      this.#isAdopting = false
    }
  }

  async #start(collection: Collection): Promise<void> {
    await this.#opening
    await collection.start(this.#connectionFor(collection.topic), () => this.pending)
  }

  #connectionFor(topic: string): Connection {
    // A connection has one channel of a name: another filter of the same table needs another connection.
    const free = this.#connections.find((connection) => connection.reserve(topic))
    if (free) return free
    const connection = new Connection(this.#url, this.#tokens, this.#transport)
    connection.reserve(topic)
    this.#connections.push(connection)
    return connection
  }

  #joined(): void {
    for (const outbox of this.#outboxes) outbox.joined(this.#channel!)
    void this.#adopt().catch(() => {})
  }

  #lost(loss: Loss): void {
    for (const outbox of this.#outboxes) outbox.lost(loss)
  }

  #answered({ event, payload }: Message): void {
    if (event !== 'tide:mutation') return
    const answer = payload as unknown as Answer
    for (const outbox of this.#outboxes) {
      if (!answer.client_id || answer.client_id === outbox.clientId) outbox.take(answer)
    }
  }

  #foretell(mutation: Mutation): void {
    for (const collection of this.#collections.values()) collection.foretell(mutation)
  }

  /** @internal */
  settled(settlement: Settlement, isEchoed: boolean): void {
    const { mutationId } = settlement
    for (const collection of this.#collections.values()) {
      if (settlement.status === 'rejected') collection.forget(mutationId)
      else collection.confirm(mutationId, settlement.outcome, this.#main, isEchoed)
    }
    if (settlement.status === 'rejected') {
      for (const model of this.#models) model.reject(mutationId, settlement.error)
    }
    const waiting = this.#waiting.get(mutationId)
    this.#waiting.delete(mutationId)
    if (settlement.status === 'rejected') waiting?.reject(settlement.error)
    else waiting?.resolve(settlement.outcome)
    this.#settled.emit(settlement)
  }
}

/** The address of the websocket's parent, as realtime-js wants it. */
function endpoint(url: string): string {
  const address = new URL(url)
  address.protocol = address.protocol.replace('http', 'ws')
  if (address.pathname === '/') address.pathname = '/realtime/v1'
  return address.href.replace(/\/$/, '')
}
