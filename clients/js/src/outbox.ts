import { Backoff } from './backoff.js'
import type { Channel, Loss } from './channel.js'
import { Expired, Refused, Rejected } from './errors.js'
import type { Answer, Mutation, Op, Outcome, Settlement } from './mutation.js'
import type { Slot } from './slot.js'
import type { Batch, Store } from './store.js'

/** How many mutations may be sent that are not answered. */
const AT_ONCE = 50

/** Of errors, those that will be the same whenever it is sent: it was not done, and takes no number. */
const NEVER = new Set(['malformed', 'size', 'refused', 'disabled'])

/** What is done with what becomes of mutations. */
export interface Listeners {
  /** `isEchoed`: what it did has come before on the same connection. */
  settled(settlement: Settlement, isEchoed: boolean): void
}

interface Entry {
  mutation: Mutation
  isKept: boolean
  /** On its way, on this connection. */
  isSent: boolean
  /** It may still be on its way on a connection that is gone: its number stands for it, and no other may. */
  isLost: boolean
}

/** What is rejected, and does nothing: there is no such table. */
const FILLER: Op[] = [{ op: 'delete', table: 'tide.filler', key: { id: 0 } }]

/**
 * The mutations of one client in their order: kept before they are sent, sent in order, and again after anything
 * that has come in between, until each is answered. Sent twice it is done once, by its number.
 *
 * After an error the numbers behind it are out of order, so nothing more is sent until all that was is answered;
 * then it goes on from the first that was not done.
 */
export class Outbox {
  readonly #slot: Slot
  readonly #store: Store
  readonly #listeners: Listeners
  readonly #backoff = new Backoff()
  #entries: Entry[] = []
  #next = 1
  #channel: Channel | undefined
  /** The writes to the store, one after the other. */
  #writes: Promise<void> = Promise.resolve()
  /** Numbers are not what they have to be, or an answer asks to send again. */
  #goesBack = false
  #isGoingBack = false
  /** Numbers whose mutations were not done, and how far the server is behind the others. */
  #freed: number[] = []
  #shift = 0
  #hasToWait = false
  #isClosed = false

  constructor(slot: Slot, store: Store, listeners: Listeners) {
    this.#slot = slot
    this.#store = store
    this.#listeners = listeners
    this.#entries = slot.mutations.map((mutation) => ({ mutation, isKept: true, isSent: false, isLost: true }))
    this.#next = slot.next
  }

  /** What is not answered, in order. */
  get mutations(): Mutation[] {
    return this.#entries.map((entry) => entry.mutation).filter((mutation) => !mutation.isFiller)
  }

  /** The name that the server knows this client by. */
  get clientId(): string {
    return this.#slot.clientId
  }

  /** The channel is joined: from the first that is not answered, all is sent. */
  joined(channel: Channel): void {
    this.#channel = channel
    this.#stopSending()
    this.#goBackOnceAnswered()
    this.#send()
  }

  /** The channel is lost, and the answers with it. */
  lost({ reason }: Loss): void {
    if (reason.includes('1009')) this.#refuseLargest()
    this.#stopSending()
  }

  /** Takes a mutation in. It resolves once it is kept; it is sent when it can be. */
  async add(
    mutationId: string,
    ops: Op[],
    optimistic: Op[] | undefined,
    shown: (mutation: Mutation) => void,
  ): Promise<void> {
    const mutation: Mutation = { mutation_id: mutationId, n: this.#next, ops, ...(optimistic && { optimistic }) }
    this.#next += 1
    const entry: Entry = { mutation, isKept: false, isSent: false, isLost: false }
    this.#entries.push(entry)
    shown(mutation)
    try {
      await this.#write([entry])
    } catch (error) {
      this.#remove(entry)
      this.#free(entry)
      // In case it was written under another number meanwhile.
      void this.#write([], [entry]).catch(() => {})
      this.#settle({ mutationId, status: 'rejected', error: error as Error })
      this.#goBackOnceAnswered()
      return
    }
    entry.isKept = true
    this.#send()
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#backoff.cancel()
    await this.#writes.catch(() => {})
    this.#slot.release()
  }

  #send(): void {
    if (this.#isClosed || this.#goesBack || !this.#channel?.isJoined) return
    let underWay = this.#entries.filter((entry) => entry.isSent).length
    for (const entry of this.#entries) {
      if (underWay >= AT_ONCE || !entry.isKept) return
      if (entry.isSent) continue
      entry.isSent = true
      underWay += 1
      const { mutation_id, n, ops } = entry.mutation
      this.#channel.send('tide:mutate', { mutation_id, client_id: this.#slot.clientId, n, ops })
    }
  }

  /** Of what was sent, one was more than a connection takes: it would be so each time. */
  #refuseLargest(): void {
    const reason = 'the mutation is larger than tide.max_message_size: make several of it'
    const largest = this.#largest()
    if (largest) this.#refuse(largest, 'size', reason, null)
  }

  #largest(): Entry | undefined {
    const sent = this.#entries.filter((entry) => entry.isSent)
    return sent.sort((one, other) => sizeOf(other.mutation) - sizeOf(one.mutation))[0]
  }

  /** Of one that is too large the server does not say which it is. */
  #largestFor(answer: Answer): Entry | undefined {
    const isNameless = typeof answer.n !== 'number' && answer.status === 'error' && answer.code === 'size'
    return isNameless ? this.#largest() : undefined
  }

  #stopSending(): void {
    for (const entry of this.#entries) {
      entry.isLost ||= entry.isSent
      entry.isSent = false
    }
  }

  /** What the server says of one of these mutations. */
  take(answer: Answer): void {
    const entry = this.#entryOf(answer) ?? this.#largestFor(answer)
    if (!entry) return
    const mutationId = entry.mutation.mutation_id
    if (answer.status === 'confirmed') {
      const outcome: Outcome = { returning: answer.returning ?? [], position: answer.position }
      this.#done(entry, { mutationId, status: 'confirmed', outcome }, answer.echo !== 'skipped')
    } else if (answer.status === 'rejected') {
      const error = new Rejected(answer.sqlstate, answer.reason, answer.op, answer.current ?? null)
      this.#done(entry, { mutationId, status: 'rejected', error })
    } else {
      this.#takeError(entry, answer)
    }
    if (this.#goesBack) this.#goBackOnceAnswered()
    else this.#send()
  }

  /** Of an answer to what was sent under another number nothing is to be learned. */
  #entryOf({ mutation_id: id, n }: Answer): Entry | undefined {
    return this.#entries.find(({ mutation }) => mutation.n === n && (!id || mutation.mutation_id === id))
  }

  #takeError(entry: Entry, { code, reason, sqlstate, expected }: Answer & { status: 'error' }): void {
    const mutationId = entry.mutation.mutation_id
    if (NEVER.has(code)) return this.#refuse(entry, code, reason, sqlstate ?? null)
    if (code === 'expired') return this.#done(entry, { mutationId, status: 'rejected', error: new Expired(reason) })
    if (code === 'reused') {
      return this.#done(entry, { mutationId, status: 'rejected', error: new Refused(code, reason, null) })
    }
    if (code !== 'out_of_order') return this.#postpone(entry)
    entry.isSent = false
    this.#goesBack = true
    // The server knows less of this client than it had: it was restored, or told to forget.
    if (expected !== undefined && entry === this.#entries[0]) this.#shift = entry.mutation.n - expected
  }

  /** It was not done, and is not remembered: its number is the next one's. */
  #refuse(entry: Entry, code: string, reason: string, sqlstate: string | null): void {
    const { mutation_id: mutationId, isFiller } = entry.mutation
    if (isFiller) return this.#postpone(entry)
    this.#remove(entry)
    this.#free(entry)
    void this.#write([], [entry]).catch(() => {})
    this.#settle({ mutationId, status: 'rejected', error: new Refused(code, reason, sqlstate) })
  }

  /** It is to be sent again, after a while. */
  #postpone(entry: Entry): void {
    entry.isSent = false
    this.#goesBack = true
    this.#hasToWait = true
  }

  /** It has its answer. */
  #done(entry: Entry, settlement: Settlement, isEchoed = false): void {
    this.#remove(entry)
    void this.#write([], [entry]).catch(() => {})
    if (!entry.mutation.isFiller) this.#settle(settlement, isEchoed)
  }

  #settle(settlement: Settlement, isEchoed = false): void {
    this.#listeners.settled(settlement, isEchoed)
  }

  #remove(entry: Entry): void {
    this.#entries = this.#entries.filter((one) => one !== entry)
  }

  #goBackOnceAnswered(): void {
    if (!this.#goesBack || this.#isGoingBack || this.#backoff.isWaiting || this.#entries.some((entry) => entry.isSent)) return
    if (!this.#hasToWait) {
      this.#backoff.reset()
      return void this.#goBack()
    }
    this.#hasToWait = false
    this.#backoff.schedule(() => void this.#goBack())
  }

  async #goBack(): Promise<void> {
    this.#isGoingBack = true
    // Under a number that was not kept it would be another mutation after a reload.
    await this.#write(this.#renumber()).catch(() => {})
    // Meanwhile one more may have come to nothing.
    if (this.#freed.length > 0) return this.#goBack()
    this.#isGoingBack = false
    this.#goesBack = false
    this.#send()
  }

  /** Its number is for the next one. */
  #free(entry: Entry): void {
    this.#freed.push(entry.mutation.n)
    this.#goesBack = true
  }

  /** Has numbers follow one another, from the one that the server expects; those that are other ones now. */
  #renumber(): Entry[] {
    const changed = new Set<Entry>()
    for (const n of this.#freed.sort((one, other) => other - one)) {
      const later = this.#entries.filter((entry) => entry.mutation.n > n)
      if (later.some((entry) => entry.isLost)) changed.add(this.#fill(n))
      else this.#moveDown(later, 1, changed)
    }
    if (this.#shift > 0) this.#moveDown(this.#entries, this.#shift, changed)
    this.#freed = []
    this.#shift = 0
    return [...changed]
  }

  #moveDown(entries: Entry[], by: number, changed: Set<Entry>): void {
    for (const entry of entries) {
      entry.mutation = { ...entry.mutation, n: entry.mutation.n - by }
      changed.add(entry)
    }
    this.#next -= by
  }

  /** Has a number be used, but do nothing. */
  #fill(n: number): Entry {
    const mutation: Mutation = { mutation_id: crypto.randomUUID(), n, ops: FILLER, isFiller: true }
    const entry: Entry = { mutation, isKept: true, isSent: false, isLost: false }
    this.#entries.push(entry)
    this.#entries.sort((one, other) => one.mutation.n - other.mutation.n)
    return entry
  }

  /** Keeps entries, and forgets others, with the next number. */
  #write(entries: Entry[], gone: Entry[] = []): Promise<void> {
    const write = this.#writes.catch(() => {}).then(() => {
      // As they are when it is their turn: numbers may have changed.
      const kept = entries.map(({ mutation }): [string, unknown] => [mutation.mutation_id, mutation])
      const client = { client_id: this.#slot.clientId, next: this.#next }
      const batch: Batch = { delete: gone.map((entry) => entry.mutation.mutation_id), put: [['client', client], ...kept] }
      return this.#store.write(this.#slot.space, batch)
    })
    this.#writes = write
    return write
  }
}

function sizeOf(mutation: Mutation): number {
  return JSON.stringify(mutation.ops).length
}
