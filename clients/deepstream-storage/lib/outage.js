'use strict'

const { setTimeout: sleep } = require('node:timers/promises')
const { backoff } = require('./later')

/** Of a server that is going, coming, full or still a standby, and of a transaction to be repeated. */
const TRANSIENT = /^(08|40|57P0[123]|53300|25006)/

/** What the driver says, without a code, of a connection that it has lost or does not get. */
const LOST = /^(Connection terminated|Client (has|was) |timeout )/

/** What the system says of a connection; node's own complaints, about arguments, begin with ERR_. */
const SYSTEM = /^E(?!RR_)/

/** Tries again, ever more slowly, what fails because Postgres is away, until a time comes. */
async function outlast(attempt, deadline = Infinity) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await attempt()
    } catch (error) {
      if (!isOutage(error) || Date.now() >= deadline) throw error
      // Who would wait for ever shall hear that the host may be misspelt.
      if (error.code === 'ENOTFOUND' && deadline === Infinity) throw error
    }
    await sleep(Math.min(backoff(tries), Math.max(deadline - Date.now(), 0)))
  }
}

function isOutage({ code, message }) {
  return code === undefined ? LOST.test(message) : TRANSIENT.test(code) || SYSTEM.test(code)
}

module.exports = { outlast }
