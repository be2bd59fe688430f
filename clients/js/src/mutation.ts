import type { Position } from './position.js'
import type { Row } from './row.js'

/** One operation of a mutation. Tables are `schema.table`; keys have all columns of the primary key. */
export type Op =
  | { op: 'insert'; table: string; values: Row; returning?: Returning }
  | { op: 'set'; table: string; key: Row; values: Row; if_version?: unknown; returning?: Returning }
  | { op: 'upsert'; table: string; key?: Row; values: Row; if_version?: unknown; returning?: Returning }
  | { op: 'delete'; table: string; key: Row; if_version?: unknown; returning?: Returning }
  | { op: 'call'; function: string; args?: Row; returning?: Returning }

/** The columns to give back; `true`: all that the role may read. */
export type Returning = boolean | string[]

/** What a mutation that is done comes to. */
export interface Outcome {
  /** Of each operation, what it gives back. */
  returning: unknown[]
  /** All that the mutation did is before it. */
  position: Position
}

/** A mutation as it is kept, sent and sent again. */
export interface Mutation {
  mutation_id: string
  n: number
  ops: Op[]
  /** What is shown until it is answered, where that is not what is sent. */
  optimistic?: Op[]
  /** It only takes the number of one that the server would not have. */
  isFiller?: true
}

/** What the server says of a mutation. */
export type Answer = { mutation_id?: string; client_id?: string; n?: number } & (
  | { status: 'confirmed'; position: Position; returning?: unknown[]; echo?: 'skipped' }
  | { status: 'rejected'; sqlstate: string; reason: string; op: number | null; current?: Row | null }
  | { status: 'error'; code: string; reason: string; sqlstate?: string; expected?: number }
)

/** How a mutation ended. */
export type Settlement =
  | { mutationId: string; status: 'confirmed'; outcome: Outcome }
  | { mutationId: string; status: 'rejected'; error: Error }
