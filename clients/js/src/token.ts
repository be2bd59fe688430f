import { Backoff } from './backoff.js'
import { Emitter } from './emitter.js'

/** Renewed so long before it expires, in ms, or a fifth of its lifetime. */
const AHEAD = 60_000

/** The longest that a timer can wait. */
const LONGEST_TIMER = 2 ** 31 - 1

/** The token that shows who the client is, and its renewal. */
export class Tokens {
  readonly #get: (() => Promise<string> | string) | undefined
  readonly #renewed = new Emitter<string>()
  readonly #backoff = new Backoff()
  #token: string | undefined
  #timer: ReturnType<typeof setTimeout> | undefined
  #renewal: Promise<void> | undefined
  #isClosed = false

  constructor(token: string | undefined, get: (() => Promise<string> | string) | undefined) {
    this.#token = token
    this.#get = get
  }

  /** The token, if there has been one. */
  get current(): string | undefined {
    return this.#token
  }

  /** Calls back with each new token, beginning with the first. */
  onRenewed(listener: (token: string) => void): () => void {
    if (this.#token !== undefined) listener(this.#token)
    return this.#renewed.add(listener)
  }

  /** Takes another token from now on. */
  set(token: string): void {
    if (this.#isClosed) return
    const isNew = token !== this.#token
    this.#token = token
    this.#schedule()
    if (isNew) this.#renewed.emit(token)
  }

  /** Gets a new token, if the application has said how, and goes on trying until it has one. */
  async renew(): Promise<void> {
    if (!this.#get || this.#isClosed) return
    this.#renewal ??= this.#fetch(this.#get).finally(() => {
      this.#renewal = undefined
    })
    await this.#renewal
  }

  /** Gets a new token if this one is over. */
  renewIfExpired(): void {
    const expiry = this.#token === undefined ? 0 : expiryOf(this.#token)
    if (expiry !== undefined && expiry <= Date.now()) void this.renew()
  }

  close(): void {
    this.#isClosed = true
    clearTimeout(this.#timer)
    this.#backoff.cancel()
  }

  async #fetch(get: () => Promise<string> | string): Promise<void> {
    try {
      const token = await get()
      this.#backoff.reset()
      this.set(token)
    } catch {
      // Most often there is no network.
      if (!this.#isClosed) this.#backoff.schedule(() => void this.renew())
    }
  }

  #schedule(): void {
    clearTimeout(this.#timer)
    const expiry = this.#token === undefined ? undefined : expiryOf(this.#token)
    if (!this.#get || expiry === undefined) return
    const left = expiry - Date.now()
    const wait = Math.max(left - Math.min(AHEAD, left / 5), 1000)
    this.#timer = setTimeout(() => void this.renew(), Math.min(wait, LONGEST_TIMER))
  }
}

/** When a token is over, in ms since 1970; undefined where it does not say so. */
function expiryOf(token: string): number | undefined {
  try {
    const payload = token.split('.')[1] ?? ''
    const claims = JSON.parse(atob(payload.replaceAll('-', '+').replaceAll('_', '/'))) as { exp?: unknown }
    return typeof claims.exp === 'number' ? claims.exp * 1000 : undefined
  } catch {
    return undefined
  }
}
