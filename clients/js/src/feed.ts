import type { JoinOptions, Message, Meta, SystemMessage } from './channel.js'
import { isOfAnotherEpoch, isUpTo } from './position.js'
import type { Position } from './position.js'
import { keyOf } from './row.js'
import type { Row } from './row.js'
import type { Changed, Table } from './table.js'

/** What has become of a table by what came. */
export interface News {
  changed: Changed
  /** All has come that there was. */
  isCaughtUp?: true
  /** What came does not do: the rows have to be read anew, for this reason. */
  failure?: string
}

const NOTHING: Changed = new Map()

/** Messages after which changes are missing, or end. */
const FAILURES = new Set(['tide.snapshot', 'tide.error', 'tide.policy', 'tide.filter'])

/** Takes in what the channel of a table says, and keeps the options that it is joined with current. */
export class Feed {
  readonly #table: Table
  readonly #options: JoinOptions

  constructor(table: Table, options: JoinOptions) {
    this.#table = table
    this.#options = options
  }

  /** The place is another one: joins go on from there. */
  useStoredPlace(): void {
    this.#tellPlace()
  }

  /** The next join begins anew. */
  beginAnew(): void {
    this.#table.place = {}
    this.#tellPlace()
  }

  /** What a broadcast of the channel does. */
  take(message: Message): News {
    const meta = message.meta ?? {}
    // The server tells nothing twice, but a page that was being read when the connection broke may overlap.
    if (isChange(message) && meta.id && isUpTo(meta.id, this.#table.place.since)) return { changed: NOTHING }
    const news = this.#apply(message, meta)
    this.#move(meta)
    return { ...news, changed: merged(news.changed, this.#arrive(this.#table.place.since)) }
  }

  /** What a message from pg_tide about the channel does. */
  hear(message: SystemMessage): News {
    switch (message.extension) {
      case 'tide.caught_up':
        return this.#caughtUp(message.position)
      case 'tide.truncate':
        return { changed: this.#table.clear() }
      case 'tide.subscription':
        // Otherwise it is joined again by itself, from where it is.
        return message.message?.includes('cannot be compared') ? failed(message) : { changed: NOTHING }
      default:
        return FAILURES.has(message.extension) && message.status === 'error' ? failed(message) : { changed: NOTHING }
    }
  }

  #apply(message: Message, meta: Meta): News {
    const { record, old_record: old } = message.payload as { record?: Row; old_record?: Row | null }
    const key = this.#table.key
    switch (message.event) {
      case 'SNAPSHOT':
        return { changed: this.#page(message.payload as { fresh?: boolean; rows: Row[] }) }
      case 'up_to_date':
        return { changed: this.#table.complete(), isCaughtUp: true }
      case 'INSERT':
      case 'UPDATE':
        return {
          changed: this.#table.put(record!, old ? keyOf(old, key) : undefined, meta.unchanged ?? [], meta.mutation_id),
        }
      case 'DELETE':
        return { changed: this.#table.remove(keyOf(old!, key), meta.mutation_id) }
      case 'TRUNCATE':
        return { changed: this.#table.clear() }
      default:
        return { changed: NOTHING }
    }
  }

  #page({ fresh, rows }: { fresh?: boolean; rows: Row[] }): Changed {
    if (!fresh) return this.#table.add(rows)
    this.#table.place = {}
    const begun = this.#table.begin()
    return merged(begun, this.#table.add(rows))
  }

  #caughtUp(position: Position | undefined): News {
    // While rows are being read, the rest of them is still to come.
    if (this.#table.isReading) return { changed: NOTHING }
    return { changed: this.#arrive(position), isCaughtUp: true }
  }

  /** The rows have all that was done up to here. */
  #arrive(position: Position | undefined): Changed {
    return this.#table.arrive((until) => isUpTo(until, position) || isOfAnotherEpoch(until, position))
  }

  #move(meta: Meta): void {
    const { resume, since, ...rest } = this.#table.place
    const next = meta.resume === undefined ? resume : (meta.resume ?? undefined)
    const at = meta.id ?? since
    this.#table.place = { ...rest, ...(next && { resume: next }), ...(at && { since: at }) }
    this.#table.keepPlace()
    this.#tellPlace()
  }

  #tellPlace(): void {
    delete this.#options.resume
    delete this.#options.since
    const { resume, since } = this.#table.place
    Object.assign(this.#options, resume && { resume }, since && { since })
  }
}

/** Both, the later one on top. */
export function merged(one: Changed, other: Changed): Changed {
  return other.size === 0 ? one : new Map([...one, ...other])
}

function isChange(message: Message): boolean {
  return message.event !== 'SNAPSHOT' && message.event !== 'up_to_date'
}

function failed(message: SystemMessage): News {
  return { changed: NOTHING, failure: message.message ?? message.extension }
}
