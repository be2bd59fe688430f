import type { Row } from './row.js'

/** The database decided against a mutation: nothing of it was written. */
export class Rejected extends Error {
  override name = 'Rejected'

  constructor(
    /** Postgres's code, such as `23505`, or pg_tide's own, such as `TD004`: of another version. */
    readonly sqlstate: string,
    readonly reason: string,
    /** The operation that it is about, by its index; `null`: what is checked at the end. */
    readonly op: number | null,
    /** The row as it is, if there is one that the client may see. */
    readonly current: Row | null,
  ) {
    super(reason)
  }
}

/**
 * The server will not take a mutation: nothing of it was written, and nothing is remembered. `code` is
 * `malformed`, `size`, `refused`, `disabled` or `reused`, as in the documentation of errors.
 */
export class Refused extends Error {
  override name = 'Refused'

  constructor(
    readonly code: string,
    readonly reason: string,
    readonly sqlstate: string | null,
  ) {
    super(reason)
  }
}

/** A mutation was sent again after so long that the server does not know any more how it ended. */
export class Expired extends Error {
  override name = 'Expired'

  constructor(readonly reason: string) {
    super(reason)
  }
}

/** The tide was closed before a mutation was answered. It is in the store, and sent when that is used again. */
export class Closed extends Error {
  override name = 'Closed'

  constructor() {
    super('closed: the mutation is kept, and sent when its store is used again')
  }
}
