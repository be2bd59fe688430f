'use strict'

const { Connection } = require('./connection')
const { backoff, deferred } = require('./later')

const PREFIX = 'realtime:'
/** Refusals of a join that a later try may not meet. */
const TEMPORARY = /^(UnableToConnectToProject|ClientJoinRateLimitReached)/

/**
 * Topics of pg_tide's that stay joined: after whatever ends the connection each is joined again
 * from the last event it had, so that none is missed and none comes twice.
 */
class Feed {
  #address
  #token
  #logger
  #topics = new Map()
  #connection = null
  #connecting = false
  #tries = 0
  #retry = null

  /**
   * @param address makes the websocket's URL
   * @param token makes a token
   */
  constructor({ address, token, logger }) {
    this.#address = address
    this.#token = token
    this.#logger = logger
  }

  /**
   * Joins a topic. Resolves when it is live; rejects if it is refused.
   * @param since the position after which events are wanted
   * @param on `event(name, payload, meta)`, and `resync(reason)` when events were missed that the
   *   server does not have any more
   */
  join(name, since, on) {
    const topic = { name: PREFIX + name, since, on, joined: deferred(), live: false, wasLive: false }
    this.#topics.set(topic.name, topic)
    if (this.#connection?.isOpen) this.#joinNow(topic)
    else if (!this.#connection && !this.#retry) this.#connect()
    return topic.joined.promise
  }

  leave(name) {
    const topic = this.#topics.get(PREFIX + name)
    if (!topic) return
    this.#topics.delete(topic.name)
    topic.joined.reject(new Error(`${name} was left`))
    if (this.#topics.size === 0) this.#disconnect()
    else if (this.#connection?.isOpen) this.#connection.push(topic.name, 'phx_leave', {})
  }

  /** Whether events of the topic are being received. */
  isLive(name) {
    return this.#topics.get(PREFIX + name)?.live ?? false
  }

  close() {
    for (const { joined } of this.#topics.values()) joined.reject(new Error('closed'))
    this.#topics.clear()
    this.#disconnect()
  }

  async #connect() {
    if (this.#connecting) return
    this.#connecting = true
    try {
      const [address, token] = await Promise.all([this.#address(), this.#token()])
      if (this.#topics.size === 0) return
      this.#connection = new Connection(address, token, {
        open: () => this.#topics.forEach((topic) => this.#joinNow(topic)),
        frame: (...frame) => this.#receive(...frame),
        renew: () => this.#renew(),
        lost: (error) => this.#lost(error),
      })
    } catch (error) {
      this.#lost(error)
    } finally {
      this.#connecting = false
    }
  }

  #disconnect() {
    clearTimeout(this.#retry)
    this.#retry = null
    this.#connection?.close()
    this.#connection = null
  }

  #lost(error) {
    this.#disconnect()
    for (const topic of this.#topics.values()) {
      topic.live = false
      if (isRefusal(error) && !topic.wasLive) this.#giveUp(topic, error)
    }
    if (this.#topics.size === 0) return
    this.#logger.info('CONNECTION_ERROR', `events: ${error.message}; connecting again`)
    this.#retry = setTimeout(() => {
      this.#retry = null
      this.#connect()
    }, backoff(this.#tries++))
  }

  #joinNow(topic) {
    const payload = { config: { broadcast: { since: topic.since } } }
    topic.joinRef = this.#connection.push(topic.name, 'phx_join', payload, ({ status, response }) => {
      if (this.#topics.get(topic.name) !== topic) return
      if (status === 'ok') {
        topic.live = true
        topic.wasLive = true
        this.#tries = 0
        topic.joined.resolve()
      } else {
        this.#refused(topic, response?.reason ?? 'the join was refused')
      }
    })
  }

  #refused(topic, reason) {
    if (topic.wasLive || TEMPORARY.test(reason)) return this.#lost(new Error(reason))
    this.#giveUp(topic, new Error(reason))
    if (this.#topics.size === 0) this.#disconnect()
  }

  #giveUp(topic, error) {
    this.#topics.delete(topic.name)
    topic.joined.reject(error)
  }

  #receive(name, event, payload, joinRef) {
    const topic = this.#topics.get(name)
    if (!topic) return
    if (event === 'broadcast') {
      const { id } = payload.meta
      if (!isNews(id, topic.since)) return
      topic.since = id
      topic.on.event(payload.event, payload.payload, payload.meta)
    } else if (event === 'system' && payload.extension === 'tide.resync') {
      topic.since = payload.newest ?? topic.since
      topic.on.resync(payload.message)
    } else if (event === 'system' && payload.status === 'error') {
      this.#logger.error('ERROR', `events: ${payload.message}`)
    } else if ((event === 'phx_close' || event === 'phx_error') && joinRef === topic.joinRef) {
      this.#lost(new Error(`${topic.name} was closed`))
    }
  }

  async #renew() {
    const connection = this.#connection
    try {
      const token = await this.#token()
      if (connection.isOpen) connection.authorize(token, this.#topics.keys())
    } catch (error) {
      // The old token serves until it expires; then the connection is made again, with a new one.
      this.#logger.error('ERROR', `events: no new token: ${error.message}`)
    }
  }
}

/** Whether the next try would meet the same answer: of the websocket's handshake, or in SQL. */
function isRefusal({ status, code }) {
  return status === 401 || status === 403 || /^(22|28|42)/.test(code)
}

/** Whether an event comes after a position. Positions of one epoch sort as text. */
function isNews(id, since) {
  const epoch = id.slice(0, id.indexOf('.') + 1)
  return !since?.startsWith(epoch) || id > since
}

module.exports = { Feed }
