import type { Batch, Store, Unlock } from './store.js'

const ENTRIES = 'entries'

/**
 * A store in the browser's IndexedDB, shared by all tabs of the origin that name the same one. One for each
 * user of the application: `new IndexedDbStore('shop-' + userId)`.
 *
 * Its locks are the browser's (Web Locks), which pages have over https and on localhost.
 */
export class IndexedDbStore implements Store {
  readonly #name: string
  readonly #database: Promise<IDBDatabase>

  constructor(name = 'pg_tide') {
    if (!globalThis.navigator?.locks) {
      throw new Error('IndexedDbStore needs Web Locks: serve the page over https, or from localhost')
    }
    this.#name = name
    this.#database = open(name)
    // It is told to whoever asks for something first.
    this.#database.catch(() => {})
  }

  async read(space: string): Promise<Map<string, unknown>> {
    const entries = (await this.#database).transaction(ENTRIES).objectStore(ENTRIES)
    const range = within(space)
    // Both of one transaction, so they belong together.
    const [names, values] = await Promise.all([done(entries.getAllKeys(range)), done(entries.getAll(range))])
    return new Map(names.map((key, index) => [(key as [string, string])[1], values[index]]))
  }

  async write(space: string, batch: Batch): Promise<void> {
    const transaction = (await this.#database).transaction(ENTRIES, 'readwrite', { durability: 'strict' })
    const entries = transaction.objectStore(ENTRIES)
    if (batch.clear) entries.delete(within(space))
    for (const name of batch.delete ?? []) entries.delete([space, name])
    for (const [name, value] of batch.put ?? []) entries.put(value, [space, name])
    await new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve()
      transaction.onabort = () => reject(transaction.error ?? new Error('the transaction was aborted'))
    })
  }

  async spaces(prefix: string): Promise<string[]> {
    const entries = (await this.#database).transaction(ENTRIES).objectStore(ENTRIES)
    const found: string[] = []
    let cursor = await done(entries.openKeyCursor(IDBKeyRange.lowerBound([prefix])))
    while (cursor) {
      const [space] = cursor.key as [string, string]
      if (!space.startsWith(prefix)) break
      found.push(space)
      // Past all that this space has: an array sorts after every text.
      const next = done(cursor.request as IDBRequest<IDBCursor | null>)
      cursor.continue([space, []])
      cursor = await next
    }
    return found
  }

  lock(name: string): Promise<Unlock | null> {
    return new Promise((resolve, reject) => {
      const hold = (lock: Lock | null) => {
        if (!lock) return resolve(null)
        return new Promise<void>((release) => resolve(release))
      }
      navigator.locks.request(`${this.#name}/${name}`, { ifAvailable: true }, hold).catch(reject)
    })
  }

  async close(): Promise<void> {
    ;(await this.#database).close()
  }
}

function open(name: string): Promise<IDBDatabase> {
  const request = indexedDB.open(name, 1)
  request.onupgradeneeded = () => request.result.createObjectStore(ENTRIES)
  return done(request)
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

/** All names of a space. */
function within(space: string): IDBKeyRange {
  return IDBKeyRange.bound([space], [space, []])
}
