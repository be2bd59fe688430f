'use strict'

/** Calls an application's function; what it throws is the process's to handle, not ours. */
function call(callback, ...args) {
  try {
    callback(...args)
  } catch (error) {
    process.nextTick(() => {
      throw error
    })
  }
}

/** A promise and its two ends. */
function deferred() {
  const ends = {}
  ends.promise = new Promise((resolve, reject) => Object.assign(ends, { resolve, reject }))
  // Whoever waits for it hears of it; that nobody does is no fault.
  ends.promise.catch(() => {})
  return ends
}

/** Milliseconds to wait before the nth try: 50, 100 ... 5,000, each up to a half less at random. */
function backoff(tries) {
  const most = Math.min(50 * 2 ** Math.min(tries, 10), 5_000)
  return most * (1 - Math.random() / 2)
}

/** Gives a promise's outcome to a callback instead, if there is one. */
function settle(promise, callback) {
  if (!callback) return promise
  promise.then(
    (value) => call(callback, null, value),
    (error) => call(callback, error),
  )
  return undefined
}

module.exports = { backoff, call, deferred, settle }
