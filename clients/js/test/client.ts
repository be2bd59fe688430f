// Clients under test, what they are sent, and waiting for what they have.

import { connect } from '@pg-tide/client'
import type { Collection, ConnectOptions, Tide } from '@pg-tide/client'
import { mkdtempSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import type { TestContext } from 'node:test'
import { WebSocket } from 'ws'

/** Every test ends by itself; this only ends one that hangs. */
export const limits = { timeout: 120_000 }

/** A client whose frames are kept; closed when the test ends. */
export function client(t: TestContext, url: string, options: ConnectOptions): Tide & { frames: string[] } {
  const frames: string[] = []
  class Recorded extends WebSocket {
    constructor(address: string | URL, protocols?: string | string[]) {
      super(address, protocols)
      this.on('message', (data) => frames.push(String(data)))
    }
  }
  const tide = connect(url, { transport: Recorded, ...options })
  t.after(() => tide.close())
  return Object.assign(tide, { frames })
}

/** How often a client was told to begin anew. */
export const begun = (frames: string[]) => frames.filter((frame) => frame.includes('"fresh":true')).length

/** A folder for a store, among what was built. */
export const newFolder = () => mkdtempSync(`${import.meta.dirname}/store.`)

/** Resolves once the condition holds, asked after each change. */
export async function until(collection: Collection, condition: () => boolean): Promise<void> {
  if (condition()) return
  await new Promise<void>((resolve) => {
    const stop = collection.subscribe(() => {
      if (!condition()) return
      stop()
      resolve()
    })
  })
}

/** Waits until a collection is live and has these rows. */
export function has(collection: Collection, rows: Map<string, unknown>): Promise<void> {
  return until(collection, () => collection.status === 'live' && isDeepStrictEqual(new Map(collection.rows), rows))
}

/** What a promise is rejected with. */
export async function rejection<T extends Error>(promise: Promise<unknown>): Promise<T> {
  const error = await promise.then(
    () => undefined,
    (reason: T) => reason,
  )
  if (!error) throw new Error('it was not rejected')
  return error
}
