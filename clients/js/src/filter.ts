import type { Row } from './row.js'

/** What a row has to meet: `null`, too, is what a condition may say of it (SQL's unknown). */
export type Filter = (row: Row) => boolean

type Condition = (value: unknown) => boolean

/**
 * The conditions of a filter that can be told without the database, for rows that it has not said anything of:
 * others hold. `col=op.value`, several with commas.
 */
export function parseFilter(text: string | undefined): Filter {
  const conditions = split(text ?? '').flatMap((part) => {
    const match = /^([^=]+)=(not\.)?([a-z]+)\.(.*)$/s.exec(part.trim())
    if (!match) return []
    const [, column, not, operator, operand] = match
    const condition = conditionOf(operator!, unquote(operand!))
    return condition ? [{ column: unquote(column!), not: not !== undefined, condition }] : []
  })
  return (row) =>
    conditions.every(({ column, not, condition }) => {
      // What is not known of the row stands in no one's way.
      const value = row[column]
      return value === undefined || condition(value) !== not
    })
}

function conditionOf(operator: string, operand: string): Condition | undefined {
  switch (operator) {
    case 'eq':
      return (value) => value !== null && compare(value, operand) === 0
    case 'neq':
      return (value) => value !== null && compare(value, operand) !== 0
    case 'lt':
      return (value) => value !== null && compare(value, operand) < 0
    case 'lte':
      return (value) => value !== null && compare(value, operand) <= 0
    case 'gt':
      return (value) => value !== null && compare(value, operand) > 0
    case 'gte':
      return (value) => value !== null && compare(value, operand) >= 0
    case 'in': {
      const values = split(operand.replace(/^\(|\)$/g, '')).map(unquote)
      return (value) => value !== null && values.some((one) => compare(value, one) === 0)
    }
    case 'is':
      return (value) => String(value) === operand
    default:
      return undefined
  }
}

function compare(value: unknown, operand: string): number {
  if (typeof value === 'number') return value - Number(operand)
  const text = typeof value === 'object' ? JSON.stringify(value) : String(value)
  return text < operand ? -1 : text > operand ? 1 : 0
}

/** At the commas outside of quotes and parentheses. */
function split(text: string): string[] {
  return text.match(/(?:"(?:\\.|[^"\\])*"|\((?:"(?:\\.|[^"\\])*"|[^)"])*\)|[^,])+/gs) ?? []
}

function unquote(text: string): string {
  return /^".*"$/s.test(text) ? text.slice(1, -1).replace(/\\(.)/gs, '$1') : text
}
