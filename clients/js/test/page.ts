// What the browser tests' page runs: one tide in its store, on the window for the tests to use.

import { connect, IndexedDbStore } from '@pg-tide/client'
import type { Collection, Tide } from '@pg-tide/client'

/** What the tests find on the window. */
export interface Page {
  tide: Tide
  rows: Collection
  begun: number
  settled: number
}

const { url, token, table } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)))
const page = globalThis as unknown as Page
page.begun = 0
page.settled = 0

class Counting extends WebSocket {
  constructor(address: string | URL, protocols?: string | string[]) {
    super(address, protocols)
    this.addEventListener('message', ({ data }) => {
      if (String(data).includes('"fresh":true')) page.begun += 1
    })
  }
}

page.tide = connect(url!, { token: token!, store: new IndexedDbStore('test'), transport: Counting })
page.tide.onSettled(() => (page.settled += 1))
page.rows = page.tide.sync({ table: table! })
