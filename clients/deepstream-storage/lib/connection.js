'use strict'

const { WebSocket } = require('ws')

const HEARTBEAT = 20_000
const HANDSHAKE = 10_000
const LONGEST_TIMER = 2 ** 31 - 1

/** One websocket to pg_tide, in the second version of Phoenix's protocol. */
class Connection {
  #socket
  #on
  #replies = new Map()
  #nextRef = 1
  #beats = null
  #renewal = null
  #answered = true

  /**
   * @param on what happens: `open()`, `frame(topic, event, payload, joinRef)`, `renew()` when half of the
   *   token's life is over, and once `lost(error)`
   */
  constructor(address, token, on) {
    this.#on = on
    const url = `${address}?vsn=2.0.0&apikey=${encodeURIComponent(token)}`
    this.#socket = new WebSocket(url, { perMessageDeflate: false, handshakeTimeout: HANDSHAKE })
    this.#socket.on('open', () => this.#opened(token))
    this.#socket.on('message', (data, isBinary) => isBinary || this.#receive(data))
    this.#socket.on('unexpected-response', (_, response) => this.#refused(response))
    this.#socket.on('error', (error) => this.#lose(error))
    this.#socket.on('close', (code, reason) => this.#lose(new Error(`closed: ${code} ${reason}`)))
  }

  get isOpen() {
    return this.#on !== null && this.#socket.readyState === WebSocket.OPEN
  }

  /** Sends a frame and returns its reference; `answer` is called with the payload of the reply. */
  push(topic, event, payload, answer) {
    const ref = String(this.#nextRef++)
    if (answer) this.#replies.set(ref, answer)
    const joinRef = event === 'phx_join' ? ref : null
    this.#socket.send(JSON.stringify([joinRef, ref, topic, event, payload]))
    return ref
  }

  /** Has a token replace the one before, on all the given topics. */
  authorize(token, topics) {
    for (const topic of topics) this.push(topic, 'access_token', { access_token: token })
    this.#renewBeforeExpiry(token)
  }

  /** Ends it without a word to anybody. */
  close() {
    this.#on = null
    clearInterval(this.#beats)
    clearTimeout(this.#renewal)
    this.#socket.close()
    // What has been sent is gone in a moment; an answer is not waited for.
    setTimeout(() => this.#socket.terminate(), 1_000).unref()
  }

  #opened(token) {
    if (!this.#on) return
    this.#beats = setInterval(() => this.#beat(), HEARTBEAT)
    this.#renewBeforeExpiry(token)
    this.#on.open()
  }

  /** The handshake was answered, but not with a websocket; the body says why. */
  async #refused(response) {
    let body = ''
    try {
      for await (const chunk of response) body += chunk
    } catch {
      // The status says enough.
    }
    const error = new Error(`refused with status ${response.statusCode}: ${body.slice(0, 500)}`)
    this.#lose(Object.assign(error, { status: response.statusCode }))
  }

  #beat() {
    if (!this.#answered) return this.#lose(new Error('the server does not answer'))
    this.#answered = false
    this.push('phoenix', 'heartbeat', {}, () => {
      this.#answered = true
    })
  }

  #renewBeforeExpiry(token) {
    clearTimeout(this.#renewal)
    const expiry = expiryOf(token)
    if (expiry === null) return
    const wait = Math.max(1_000, (expiry - Date.now()) / 2)
    this.#renewal = setTimeout(() => this.#on?.renew(), Math.min(wait, LONGEST_TIMER))
  }

  #receive(data) {
    if (!this.#on) return
    const [joinRef, ref, topic, event, payload] = JSON.parse(data)
    if (event === 'phx_reply') {
      const answer = this.#replies.get(ref)
      this.#replies.delete(ref)
      answer?.(payload)
    } else {
      this.#on.frame(topic, event, payload, joinRef)
    }
  }

  #lose(error) {
    if (!this.#on) return
    const { lost } = this.#on
    this.close()
    lost(error)
  }
}

/** When a token expires, in milliseconds since 1970; null if it does not say. */
function expiryOf(token) {
  try {
    const { exp } = JSON.parse(Buffer.from(token.split('.')[1], 'base64url'))
    return typeof exp === 'number' ? exp * 1_000 : null
  } catch {
    return null
  }
}

module.exports = { Connection }
