/**
 * Tables of a Postgres with pg_tide, kept in step with the database and written to, offline too.
 * @module
 */
export { Collection } from './collection.js'
export type { Change, Status, SyncOptions } from './collection.js'
export { Closed, Expired, Refused, Rejected } from './errors.js'
export { IndexedDbStore } from './indexeddb-store.js'
export { Model } from './models.js'
export type {
  ConfirmedEvent,
  Data,
  Event,
  ModelSpec,
  ModelState,
  ModelStateChange,
  OptimisticEvent,
  Registration,
  SubscriptionCallback,
  SyncFunction,
} from './models.js'
export type { Mutation, Op, Outcome, Returning, Settlement } from './mutation.js'
export type { Position } from './position.js'
export type { Key, Row } from './row.js'
export { MemoryStore } from './store.js'
export type { Batch, Store, Unlock } from './store.js'
export { connect, Tide } from './tide.js'
export type { ConnectOptions, MutateOptions } from './tide.js'
