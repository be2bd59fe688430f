/** A row as the server tells it: columns by name. */
export type Row = Record<string, unknown>

/** A key in a mutation, or as one asks for a row by it: its columns, or the value of the only one. */
export type Key = string | number | bigint | boolean | Row

/** The text that a row is kept by: the value of the one key column, or a JSON array of several. */
export function keyOf(row: Row, columns: readonly string[]): string {
  const [only, ...others] = columns
  return others.length === 0 ? text(row[only!]) : JSON.stringify(columns.map((column) => row[column]))
}

/** The same of what somebody asks for. */
export function keyText(key: Key, columns: readonly string[]): string {
  return typeof key === 'object' ? keyOf(key, columns) : text(key)
}

/** Whether a row, or the values of a mutation, have all of the key. */
export function hasKey(row: Row, columns: readonly string[]): boolean {
  return columns.every((column) => row[column] !== undefined && row[column] !== null)
}

/** Whether two values that were JSON are the same. */
export function isEqual(one: unknown, other: unknown): boolean {
  if (one === other) return true
  if (typeof one !== 'object' || typeof other !== 'object' || !one || !other) return false
  const [left, right] = [Object.entries(one), Object.entries(other)]
  return left.length === right.length && left.every(([name, value]) => isEqual(value, (other as Row)[name]))
}

function text(value: unknown): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}
