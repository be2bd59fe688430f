'use strict'

const { EventEmitter, once } = require('node:events')
const { connect, createServer } = require('node:net')

/** Where the tests' Postgres is. */
function address() {
  const { PGHOST = 'localhost', PGPORT = '5432' } = process.env
  return PGHOST.startsWith('/') ? { path: `${PGHOST}/.s.PGSQL.${PGPORT}` } : { host: PGHOST, port: PGPORT }
}

/**
 * A way to Postgres that can be shut: those on it are cut off, and those who come are sent away, of
 * which 'refusal' tells.
 */
class Gate extends EventEmitter {
  #server = createServer((client) => this.#enter(client))
  #sockets = new Set()
  #isOpen = true

  async listen() {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
    const { port } = this.#server.address()
    /** What a connector needs to come this way. */
    this.options = { host: '127.0.0.1', port }
  }

  open() {
    this.#isOpen = true
  }

  shut() {
    this.#isOpen = false
    for (const socket of this.#sockets) socket.destroy()
  }

  /** Shuts it, and nobody listens any more. */
  close() {
    this.#server.close()
    this.shut()
  }

  #enter(client) {
    client.on('error', () => {})
    if (this.#isOpen) return this.#pass(client)
    client.destroy()
    this.emit('refusal')
  }

  #pass(client) {
    const postgres = connect(address())
    for (const [one, other] of [[client, postgres], [postgres, client]]) {
      this.#sockets.add(one)
      one.pipe(other)
      one.on('error', () => {})
      one.on('close', () => {
        this.#sockets.delete(one)
        other.destroy()
      })
    }
  }
}

/** A gate that is there until the test ends. */
async function makeGate(t) {
  const gate = new Gate()
  await gate.listen()
  t.after(() => gate.close())
  return gate
}

module.exports = { makeGate }
