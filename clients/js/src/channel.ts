import type { RealtimeChannel, RealtimeClient } from '@supabase/realtime-js'
import { Backoff } from './backoff.js'
import type { Connection } from './connection.js'

/** A broadcast as it arrives. */
export interface Message {
  event: string
  payload: Record<string, unknown>
  meta?: Meta
}

/** What pg_tide says of a broadcast. */
export interface Meta {
  id?: string
  resume?: string | null
  mutation_id?: string
  unchanged?: string[]
  sequence_id?: string | number
  rejected?: boolean
}

/** A message from pg_tide about the channel. */
export interface SystemMessage {
  extension: string
  status: string
  message?: string
  position?: string
}

/** Why a channel is not joined; `isRefusal`: the server said no, and may well do so again. */
export interface Loss {
  reason: string
  isRefusal: boolean
}

/** What is done with what comes. */
export interface Handlers {
  joined?(reply: { position?: string }): void
  message(message: Message): void
  system?(message: SystemMessage): void
  lost?(loss: Loss): void
}

/** What a channel is joined with. It may be changed at any time, and is read at each join. */
export type JoinOptions = Record<string, unknown>

/** Before what the server has ended is asked for again, in ms. */
const WHILE = 10_000

/** A channel that is joined again whatever ends it, until it is left. */
export class Channel {
  readonly #connection: Connection
  readonly #topic: string
  readonly #options: JoinOptions
  readonly #isPrivate: boolean
  readonly #handlers: Handlers
  readonly #backoff = new Backoff()
  #channel: RealtimeChannel | undefined
  #timer: ReturnType<typeof setTimeout> | undefined
  #isLeft = false

  constructor(connection: Connection, topic: string, handlers: Handlers, options: JoinOptions = {}, isPrivate = false) {
    this.#connection = connection
    this.#topic = topic
    this.#options = options
    this.#isPrivate = isPrivate
    this.#handlers = handlers
    connection.withClient((client) => this.#join(client))
  }

  /** Whether what comes is of the newest join, and what is sent arrives. */
  get isJoined(): boolean {
    return this.#channel?.state === 'joined' && this.#channel.socket.isConnected()
  }

  /** Sends a broadcast. Only while it is joined: realtime-js would use HTTP otherwise. */
  send(event: string, payload: Record<string, unknown>): void {
    void this.#channel?.send({ type: 'broadcast', event, payload })
  }

  /** Leaves it, and joins it again after a while. */
  async again(): Promise<void> {
    const channel = this.#channel
    if (!channel) return
    // Nothing more is heard of it.
    this.#channel = undefined
    await this.#connection.remove(channel)
    this.#timer = setTimeout(() => this.#connection.withClient((client) => this.#join(client)), WHILE)
  }

  /** Leaves it for good. */
  async leave(): Promise<void> {
    this.#isLeft = true
    this.#backoff.cancel()
    clearTimeout(this.#timer)
    if (this.#channel) await this.#connection.remove(this.#channel)
    this.#connection.release(this.#topic)
  }

  #join(client: RealtimeClient): void {
    if (this.#isLeft) return
    const channel = client.channel(this.#topic, {
      // The object itself: realtime-js sends it with each join as it is then.
      config: { broadcast: this.#options, private: this.#isPrivate },
    })
    this.#channel = channel
    channel.on('broadcast', { event: '*' }, (message: Message) => {
      // What comes between a join and its answer is of the join before.
      if (this.#isCurrent(channel) && channel.state === 'joined') this.#handlers.message(message)
    })
    channel.on('system', {} as { event: string }, (message: SystemMessage) => {
      if (this.#isCurrent(channel)) this.#handlers.system?.(message)
    })
    channel.subscribe((status, error) => this.#changed(client, channel, status, error))
    // In the same turn as the answer, which subscribe's callback is not.
    channel.joinPush.receive('ok', (reply: { position?: string }) => {
      this.#backoff.reset()
      if (this.#isCurrent(channel)) this.#handlers.joined?.(reply)
    })
  }

  #isCurrent(channel: RealtimeChannel): boolean {
    return this.#channel === channel && !this.#isLeft
  }

  #changed(client: RealtimeClient, channel: RealtimeChannel, status: string, error: Error | undefined): void {
    if (status === 'SUBSCRIBED' || !this.#isCurrent(channel)) return
    const loss = lossOf(status, error)
    // A channel whose token the server takes no more is closed, or not joined.
    if (status === 'CLOSED' || /token|jwt/i.test(loss.reason)) this.#connection.renewToken()
    this.#handlers.lost?.(loss)
    // After any other end realtime-js joins again by itself, with pauses.
    if (status === 'CLOSED') this.#backoff.schedule(() => this.#join(client))
  }
}

function lossOf(status: string, error: Error | undefined): Loss {
  const reason = error?.message ?? (status === 'TIMED_OUT' ? 'the server did not answer' : 'the channel was closed')
  // A join that is answered has a reason; so has the end of a connection, but with a code.
  const cause = (error?.cause ?? {}) as { reason?: unknown; code?: unknown }
  const answered = cause.reason !== undefined && cause.code === undefined
  const isRefusal = (answered || reason.includes('1008')) && !/try again|RateLimit/.test(reason)
  return { reason, isRefusal }
}
