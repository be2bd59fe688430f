/**
 * The shape of Ably's Models SDK (`@ably-labs/models`): a state that a `sync` function reads, and that events on a
 * channel are merged into, optimistic ones on top until they are confirmed.
 *
 * A confirmed event is a message on the channel, sent by `tide.send` or an outbox in a transaction that
 * `tide.set_mutation_id` has given the event's `mutationId`. A mutation with that name that is rejected rejects
 * the event.
 * @module
 */
import { Backoff, pause } from './backoff.js'
import { Channel } from './channel.js'
import type { JoinOptions, Message } from './channel.js'
import { Emitter } from './emitter.js'
import type { Tide } from './tide.js'

/** What happens to a model. */
export interface Event {
  mutationId: string
  name: string
  data?: any
}

/** An event that is shown before the backend has confirmed it. */
export type OptimisticEvent = Event & { confirmed: false }

/** An event that came from the backend; `rejected`: it says that the optimistic one does not count. */
export type ConfirmedEvent = Event & { confirmed: true; sequenceId: string; rejected: boolean }

/** Reads the state, and where in the history it was read: a position, or the largest `sequence_id` of an outbox. */
export type SyncFunction = (...params: any[]) => Promise<{ data: any; sequenceId: string | number }>

/** What a sync function reads. */
export type Data<S extends SyncFunction> = Awaited<ReturnType<S>>['data']

/** A model's functions. `merge` has to be pure: it is called for an event as often as what is below it changes. */
export interface Registration<S extends SyncFunction> {
  sync: S
  merge: (state: Data<S>, event: OptimisticEvent | ConfirmedEvent) => Data<S>
}

/** A model's functions and the channel that its events are on. */
export interface ModelSpec<S extends SyncFunction> extends Registration<S> {
  name: string
  /** Whether to join it as a private channel: true, if it is left out, as that is what `tide.send` sends to. */
  private?: boolean
}

export type ModelState = 'initialized' | 'syncing' | 'ready' | 'paused' | 'errored' | 'disposed'

export interface ModelStateChange {
  current: ModelState
  previous: ModelState
  reason?: Error
}

/** Called back with the state of a model, or with what went wrong. */
export type SubscriptionCallback<T> = (error: Error | null, data?: T) => void

interface Pending {
  event: OptimisticEvent
  resolve: () => void
  reject: (error: Error) => void
  timer: ReturnType<typeof setTimeout>
}

/** How long an optimistic event waits to be confirmed, in ms. */
const TIMEOUT = 120_000

/** How often a state is read in vain before the model is `errored`. */
const TRIES = 10

/** How many messages are asked for where a state is told by a sequence_id. */
const LAST = 1000

/** A state that is kept in step with events on a channel. */
export class Model<S extends SyncFunction> {
  readonly name: string
  readonly #spec: ModelSpec<S>
  readonly #tide: Tide
  readonly #states = new Emitter<ModelStateChange>()
  readonly #data = new Emitter<{ isConfirmed: boolean; data: Data<S> }>()
  readonly #subscriptions = new Map<SubscriptionCallback<Data<S>>, () => void>()
  readonly #listeners = new Map<(change: ModelStateChange) => void, () => void>()
  readonly #backoff = new Backoff()
  readonly #options: JoinOptions = {}
  #state: ModelState = 'initialized'
  #confirmed!: Data<S>
  #optimistic!: Data<S>
  #pending: Pending[] = []
  #channel: Channel | undefined
  /** Events up to here are in the state that was read. */
  #sequenceId = 0
  #params: unknown[] = []
  #round = 0

  /** @internal Use {@link Tide.model}. */
  constructor(spec: ModelSpec<S>, tide: Tide) {
    this.name = spec.name
    this.#spec = spec
    this.#tide = tide
  }

  get state(): ModelState {
    return this.#state
  }

  /** The state with optimistic events, and as it is confirmed. */
  get data(): { optimistic: Data<S>; confirmed: Data<S> } {
    return { optimistic: this.#optimistic, confirmed: this.#confirmed }
  }

  /** Reads the state, with these parameters, and follows it. Resolves when it is ready. */
  async sync(...params: Parameters<S>): Promise<ModelStateChange> {
    this.#params = params
    return this.#resync()
  }

  /** Calls back with the state now and after each change; begins to sync if nothing has so far. */
  subscribe(callback: SubscriptionCallback<Data<S>>, options = { optimistic: true }): void {
    if (this.#state === 'disposed') throw new Error('Cannot subscribe to a disposed model')
    const stopData = this.#data.add(({ isConfirmed, data }) => {
      if (isConfirmed !== options.optimistic) callback(null, data)
    })
    const stopStates = this.#states.add(({ current, reason }) => {
      if (current === 'errored') callback(reason ?? new Error('the model could not be synced'))
    })
    this.#subscriptions.set(callback, () => (stopData(), stopStates()))
    if (this.#state === 'initialized') void this.#resync().catch(() => {})
    if (this.#state !== 'ready') return
    queueMicrotask(() => callback(null, options.optimistic ? this.#optimistic : this.#confirmed))
  }

  unsubscribe(callback: SubscriptionCallback<Data<S>>): void {
    this.#subscriptions.get(callback)?.()
    this.#subscriptions.delete(callback)
  }

  /** Calls back whenever the model comes to a state. */
  on(state: ModelState, listener: (change: ModelStateChange) => void): void {
    const stop = this.#states.add((change) => {
      if (change.current === state) listener(change)
    })
    this.#listeners.set(listener, stop)
  }

  off(_state: ModelState, listener: (change: ModelStateChange) => void): void {
    this.#listeners.get(listener)?.()
    this.#listeners.delete(listener)
  }

  /**
   * Merges an event before the backend has confirmed it. Resolves, once it is, with a promise that resolves when it
   * is confirmed, and rejects when it is rejected, cancelled or not confirmed in time; and with what cancels it.
   */
  async optimistic(event: Event, options: { timeout?: number } = {}): Promise<[Promise<void>, () => Promise<void>]> {
    const isEvent = typeof event?.mutationId === 'string' && typeof event.name === 'string'
    if (!isEvent) throw new Error('expected event to be an Event')
    await this.#readied()
    const own: OptimisticEvent = { ...event, confirmed: false }
    const merged = this.#spec.merge(this.#optimistic, own)
    const { mutationId } = event
    const confirmation = new Promise<void>((resolve, reject) => {
      const late = () => this.reject(mutationId, new Error('timed out waiting for event confirmation'))
      const timer = setTimeout(late, options.timeout ?? TIMEOUT)
      this.#pending.push({ event: own, resolve, reject, timer })
    })
    // In case nobody looks at it.
    confirmation.catch(() => {})
    this.#show(merged)
    const cancel = async () => this.reject(mutationId, new Error('optimistic event cancelled'))
    return [confirmation, cancel]
  }

  /** @internal An optimistic event does not count any more. */
  reject(mutationId: string, error: Error): void {
    const gone = this.#take(mutationId)
    if (gone.length === 0) return
    this.#rebase()
    for (const { reject } of gone) reject(error)
  }

  /** Follows no more, until it is resumed. */
  async pause(): Promise<void> {
    if (this.#state === 'paused') return
    this.#round += 1
    await this.#leave()
    this.#change('paused')
  }

  /** Goes on where it was paused. */
  async resume(): Promise<void> {
    if (this.#state !== 'paused') throw new Error(`can only resume when in paused state: ${this.#state}`)
    if (this.#options.since === undefined) return void (await this.#resync())
    this.#follow()
    this.#change('ready')
  }

  /** Ends it. */
  async dispose(reason?: Error): Promise<void> {
    if (this.#state === 'disposed') return
    this.#round += 1
    this.#change('disposed', reason)
    this.#backoff.cancel()
    for (const stop of this.#subscriptions.values()) stop()
    for (const { event } of [...this.#pending]) this.reject(event.mutationId, reason ?? new Error('the model was disposed'))
    await this.#leave()
  }

  async #resync(reason?: Error): Promise<ModelStateChange> {
    const round = (this.#round += 1)
    const previous = this.#state
    this.#change('syncing', reason)
    await this.#leave()
    try {
      const { data, sequenceId } = await this.#read(round)
      if (round !== this.#round) return { current: this.#state, previous }
      this.#begin(sequenceId)
      this.#confirm(data)
      this.#follow()
      this.#change('ready')
      return { current: 'ready', previous: 'syncing' }
    } catch (error) {
      if (round === this.#round) this.#change('errored', error as Error)
      throw error
    }
  }

  async #read(round: number): Promise<Awaited<ReturnType<S>>> {
    for (let tries = 1; ; tries += 1) {
      try {
        const read = (await this.#spec.sync(...this.#params)) as Awaited<ReturnType<S>>
        if (read?.sequenceId !== undefined && read.sequenceId !== null) return read
        tries = TRIES
        throw new Error('The sync function returned an undefined sequenceId')
      } catch (error) {
        if (tries >= TRIES || round !== this.#round) throw error
        await new Promise((resolve) => setTimeout(resolve, pause(tries)))
      }
    }
  }

  /** What is to be asked for of what came after the state was read. */
  #begin(sequenceId: string | number): void {
    const isPosition = /^[0-9a-f]+\./.test(String(sequenceId))
    delete this.#options.since
    delete this.#options.last
    Object.assign(this.#options, isPosition ? { since: sequenceId } : { last: LAST })
    this.#sequenceId = isPosition ? 0 : Number(sequenceId)
  }

  #follow(): void {
    const topic = this.#spec.name
    this.#channel = new Channel(
      this.#tide.connectionFor(topic),
      topic,
      {
        message: (message) => this.#hear(message),
        system: ({ extension }) => {
          if (extension === 'tide.resync') void this.#resync(new Error('events are missing')).catch(() => {})
        },
      },
      this.#options,
      this.#spec.private ?? true,
    )
  }

  async #leave(): Promise<void> {
    const channel = this.#channel
    this.#channel = undefined
    await channel?.leave()
  }

  #hear({ event: name, payload, meta }: Message): void {
    // What clients say to each other has no position, and confirms nothing.
    if (!meta?.id) return
    delete this.#options.last
    this.#options.since = meta.id
    const sequence = Number(meta.sequence_id ?? 0)
    if (sequence > 0 && sequence <= this.#sequenceId) return
    const event: ConfirmedEvent = {
      name,
      // What is no object arrives as one with this member only.
      data: Object.keys(payload).length === 1 && 'data' in payload ? payload['data'] : payload,
      mutationId: meta.mutation_id ?? '',
      sequenceId: String(meta.sequence_id ?? meta.id),
      rejected: meta.rejected ?? false,
      confirmed: true,
    }
    this.#merge(event)
  }

  #merge(event: ConfirmedEvent): void {
    if (event.rejected) return this.reject(event.mutationId, new Error(`events contain rejections: name:${event.name}`))
    const done = this.#take(event.mutationId)
    try {
      this.#confirm(this.#spec.merge(this.#confirmed, event))
    } catch (error) {
      void this.#resync(error as Error).catch(() => {})
    }
    for (const { resolve } of done) resolve()
  }

  #confirm(data: Data<S>): void {
    this.#confirmed = data
    this.#data.emit({ isConfirmed: true, data })
    this.#rebase()
  }

  /** Merges the optimistic events into what is confirmed; one that cannot be does not count. */
  #rebase(): void {
    let data = this.#confirmed
    for (const { event } of [...this.#pending]) {
      try {
        data = this.#spec.merge(data, event)
      } catch (error) {
        for (const { reject } of this.#take(event.mutationId)) reject(error as Error)
      }
    }
    this.#show(data)
  }

  #show(data: Data<S>): void {
    this.#optimistic = data
    this.#data.emit({ isConfirmed: false, data })
  }

  #take(mutationId: string): Pending[] {
    const taken = this.#pending.filter(({ event }) => event.mutationId === mutationId)
    this.#pending = this.#pending.filter(({ event }) => event.mutationId !== mutationId)
    for (const { timer } of taken) clearTimeout(timer)
    return taken
  }

  /** Resolves when there is a state. */
  #readied(): Promise<void> {
    if (this.#state === 'ready') return Promise.resolve()
    return new Promise((resolve, reject) => {
      const stop = this.#states.add(({ current, reason }) => {
        if (current === 'ready') resolve()
        else if (current === 'errored' || current === 'disposed') reject(reason ?? new Error(`the model is ${current}`))
        else return
        stop()
      })
      if (this.#state === 'initialized') void this.#resync().catch(() => {})
    })
  }

  #change(current: ModelState, reason?: Error): void {
    const previous = this.#state
    if (current === previous) return
    this.#state = current
    this.#states.emit({ current, previous, ...(reason && { reason }) })
  }
}

/** The entrance of Ably's Models SDK, with a tide for its connection. */
export class ModelsClient {
  readonly #tide: Tide
  readonly #models = new Map<string, unknown>()

  constructor({ tide }: { tide: Tide }) {
    this.#tide = tide
  }

  /** Gets a model by the name of its channel, which makes it at the first time. */
  get models(): { get<S extends SyncFunction>(spec: Omit<ModelSpec<S>, 'name'> & { channelName: string }): Model<S> } {
    return {
      get: ({ channelName, ...functions }) => {
        const model = this.#models.get(channelName) ?? this.#tide.model({ name: channelName, ...functions })
        this.#models.set(channelName, model)
        return model as Model<(typeof functions)['sync']>
      },
    }
  }
}

export default ModelsClient
