import { RealtimeClient } from '@supabase/realtime-js'
import type { RealtimeChannel, WebSocketLikeConstructor } from '@supabase/realtime-js'
import { pause } from './backoff.js'
import { Emitter } from './emitter.js'
import type { Tokens } from './token.js'

/** One websocket, once there is a token to open it with. It comes back by itself. */
export class Connection {
  readonly #tokens: Tokens
  readonly #params: { apikey: string } = { apikey: '' }
  readonly #topics = new Set<string>()
  readonly #opened = new Emitter<RealtimeClient>()
  readonly #stopRenewals: () => void
  #client: RealtimeClient | undefined
  #isClosed = false

  constructor(url: string, tokens: Tokens, transport: WebSocketLikeConstructor | undefined) {
    this.#tokens = tokens
    this.#stopRenewals = tokens.onRenewed((token) => {
      // realtime-js reads it each time it connects.
      this.#params.apikey = token
      if (this.#isClosed) return
      this.#client ??= this.#open(url, transport)
      void this.#client.setAuth(token)
    })
  }

  /** Has a topic be one's own on this connection; false: it is somebody else's. */
  reserve(topic: string): boolean {
    if (this.#topics.has(topic)) return false
    this.#topics.add(topic)
    return true
  }

  /** Gives a topic back. */
  release(topic: string): void {
    this.#topics.delete(topic)
  }

  /** Calls back with the client, now or once there is one. */
  withClient(callback: (client: RealtimeClient) => void): void {
    if (this.#client) callback(this.#client)
    else this.#opened.add(callback)
  }

  /** The server may not take the token any more. */
  renewToken(): void {
    void this.#tokens.renew()
  }

  /** Leaves a channel for good. */
  async remove(channel: RealtimeChannel): Promise<void> {
    await this.#client?.removeChannel(channel)
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#stopRenewals()
    await this.#client?.disconnect()
  }

  #open(url: string, transport: WebSocketLikeConstructor | undefined): RealtimeClient {
    const client = new RealtimeClient(url, {
      params: this.#params,
      reconnectAfterMs: pause,
      ...(transport && { transport }),
    })
    client.stateChangeCallbacks.close.push(['tide', (event: CloseEvent) => this.#lost(event)])
    // A turn later, so that the token is set before the first join.
    queueMicrotask(() => this.#opened.emit(client))
    return client
  }

  #lost(event: CloseEvent): void {
    // A token that the server does not take may be over by its clock, if not by ours.
    if (event.code === 1008) void this.#tokens.renew()
    else this.#tokens.renewIfExpired()
  }
}
