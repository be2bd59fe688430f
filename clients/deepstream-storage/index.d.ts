import { EventEmitter } from 'events'
import { PoolConfig, QueryResult } from 'pg'

interface ConnectorOptions extends PoolConfig {
  /** Schema of the tables; made if it is not there. Default: ds */
  schema?: string
  /** Table of records whose names have no slash. Default: default */
  defaultTable?: string
  /** Accepted and without effect, as ever: names are split at their first slash. */
  splitChar?: string
  /** Owner of the schemas that the connector makes, and so of their tables. */
  role?: string
  /** Milliseconds during which writes are gathered, from the first on. Default: 200 */
  writeInterval?: number
  /** For how long a write is tried again while Postgres is away. Default: 60000 */
  retryTimeoutMillis?: number
  /** Accepted and without effect: new tables have jsonb values. Those with text are served too. */
  useJsonb?: boolean
  /**
   * Which events subscribers get; replaces the default, which is all, as a whole. TRUNCATE, if it is not
   * given, is as DELETE.
   */
  notifications?: Partial<Record<EventName, boolean>>
  /** pg_tide's websocket. */
  realtime?: {
    /** Default: ws://<host>:<tide.port>/realtime/v1/websocket, wss if tide.ssl is on */
    url?: string
    /** A token, or a function that makes one. Default: `select tide.token(<role>)` */
    token?: string | (() => string | Promise<string>)
    /** Role of the default token. Default: `role`, else the user who connects */
    role?: string
  }
}

type EventName = 'CREATE_TABLE' | 'DESTROY_TABLE' | 'TRUNCATE' | 'INSERT' | 'UPDATE' | 'DELETE'

type StorageEvent =
  | { event: 'CREATE_TABLE' | 'DESTROY_TABLE' | 'TRUNCATE'; table: string }
  | { event: 'INSERT' | 'UPDATE' | 'DELETE'; table: string; key: string }
  /** Events were missed for good; an UPDATE of every record that there is follows. */
  | { event: 'RESYNC' }

type Done = (error: Error | null) => void
type WriteCallback = (error: string | null) => void
type ReadCallback = (error: Error | null, version?: number, value?: any) => void
type OverviewCallback = (error: Error | null, tables?: Record<string, number>) => void

/** Emits `ready` when whenReady() resolves; `error`, if somebody listens, when it rejects. */
declare class Connector extends EventEmitter {
  readonly options: ConnectorOptions
  description: string

  /** @param services those of a deepstream server, which passes them itself */
  constructor(options: ConnectorOptions, services?: object)
  init(): void
  whenReady(): Promise<void>
  close(): Promise<void>
  destroy(callback?: () => void): void

  set(name: string, version: number, value: any, callback: WriteCallback): void
  get(name: string, callback: ReadCallback): void
  delete(name: string, callback: WriteCallback): void
  deleteBulk(names: string[], callback: WriteCallback): void
  query(
    statement: string,
    callback: (error: Error | undefined, result?: QueryResult) => void,
    args?: any[],
    silent?: boolean,
  ): void

  createSchema(name: string): Promise<void>
  createSchema(name: string, callback: Done): void
  destroySchema(name: string): Promise<void>
  destroySchema(name: string, callback: Done): void
  getSchemaOverview(schema?: string): Promise<Record<string, number>>
  getSchemaOverview(callback: OverviewCallback, schema?: string): void

  subscribe(callback: (event: StorageEvent) => void, done?: undefined, schema?: string): Promise<void>
  subscribe(callback: (event: StorageEvent) => void, done: Done, schema?: string): void
  unsubscribe(done: Done): void
  unsubscribe(callback?: (event: StorageEvent) => void, done?: undefined, schema?: string): Promise<void>
  unsubscribe(callback: ((event: StorageEvent) => void) | undefined, done: Done, schema?: string): void
}

declare namespace Connector {
  export { Connector, Connector as default, ConnectorOptions, EventName, StorageEvent }
}

export = Connector
