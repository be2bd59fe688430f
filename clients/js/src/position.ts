/** Where something is in the server's history, `<epoch>.<position>`: opaque, but in order within an epoch. */
export type Position = string

/** Whether a position is at or before another one of the same epoch; of two epochs nothing can be said. */
export function isUpTo(position: Position, other: Position | undefined): boolean {
  if (!other) return false
  const [epoch, at] = split(position)
  const [otherEpoch, otherAt] = split(other)
  // Numbers of one width.
  return epoch === otherEpoch && at.length === otherAt.length && at <= otherAt
}

/** Whether two positions are of different histories, so that what one of them waits for never comes. */
export function isOfAnotherEpoch(position: Position, other: Position | undefined): boolean {
  return other !== undefined && split(position)[0] !== split(other)[0]
}

function split(position: Position): [epoch: string, at: string] {
  const dot = position.indexOf('.')
  return [position.slice(0, dot), position.slice(dot + 1)]
}
