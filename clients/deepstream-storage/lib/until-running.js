'use strict'

const { backoff } = require('./later')

/** Errors of a server that is starting, is being restarted, or is not there yet. */
const NOT_RUNNING = new Set(['57P01', '57P02', '57P03', 'ECONNREFUSED', 'ECONNRESET', 'ENOENT'])

/** Tries again and again, ever more slowly, until the server is there. */
async function untilRunning(attempt) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await attempt()
    } catch (error) {
      if (!NOT_RUNNING.has(error.code)) throw error
      await new Promise((resolve) => setTimeout(resolve, backoff(tries)))
    }
  }
}

module.exports = { untilRunning }
