'use strict'

const { escapeIdentifier } = require('pg')

const UNDEFINED_TABLE = '42P01'
const UNDEFINED_COLUMN = '42703'
const UNDEFINED_SCHEMA = '3F000'
const PLAN_IS_STALE = '0A000'
/** Bytes of the longest name that Postgres does not cut off. */
const LONGEST_NAME = 63
/** Ids that are read at once. */
const PAGE = 5_000
/** Statements that each connection keeps: those of the first few tables. */
const PREPARED = 300

/** pg_tide's SQL functions for records, schemas and positions, on a pool of connections. */
class Records {
  #pool
  /** Names of prepared statements, by their text. */
  #names = new Map()
  /** What is to be read in a moment, by its table: the ids, and a promise of their rows. */
  #asked = new Map()

  constructor(pool) {
    this.#pool = pool
  }

  /**
   * Stores records of one table, which is made if it is not there; all or none of them.
   * @param batch a map from ids to `{ version, value }`, the value as JSON text
   * @param mutationId what the events shall carry, or null
   * @returns `{ events, oid }`: how many events of records that makes, and the table's oid
   */
  async set(schema, table, batch, mutationId) {
    if (isDirect(schema, table)) {
      try {
        return await this.#insert(relation(schema, table), batch, mutationId)
      } catch (error) {
        if (error.code !== UNDEFINED_TABLE) throw error
      }
    }
    const [keys, values, versions] = [[], [], []]
    for (const [id, { version, value }] of batch) {
      keys.push(`${table}/${id}`)
      values.push(value)
      versions.push(version)
    }
    return this.#write(
      relation(schema, table),
      'select count(*) from tide.record_set_many($1, $2::jsonb[], $3, schema => $4)',
      [keys, values, versions, schema],
      mutationId,
    )
  }

  /** What tide.record_set_many() does where the table is there, without looking whether it is. */
  #insert(target, batch, mutationId) {
    const rows = []
    // Always in one order, so that connectors that share records do not deadlock.
    for (const id of [...batch.keys()].sort()) {
      const { version, value } = batch.get(id)
      rows.push(`{"id":${JSON.stringify(id)},"version":${JSON.stringify(version)},"val":${value}}`)
    }
    return this.#write(
      target,
      'select count(*) from stored',
      [`[${rows.join()}]`],
      mutationId,
      `with stored as (
         insert into ${target} (id, version, val)
         select r ->> 'id', (r ->> 'version')::bigint, r -> 'val' from jsonb_array_elements($1) as r
         on conflict (id) do update set version = excluded.version, val = excluded.val
         returning true
       )`,
    )
  }

  /** Deletes records of one table; `{ events, oid }` as for those that are set. */
  delete(schema, table, ids, mutationId) {
    return this.#write(
      relation(schema, table),
      'select tide.record_delete_many($1, $2)',
      [ids.map((id) => `${table}/${id}`), schema],
      mutationId,
    )
  }

  /** Drops a table that has no rows, unless somebody uses it at this moment. */
  async dropIfEmpty(schema, table, mutationId) {
    try {
      const statement = 'select count(tide_internal.drop_if_empty($1, $2)::text)'
      await this.#write(relation(schema, table), statement, [schema, table], mutationId)
    } catch (error) {
      if (error.code !== UNDEFINED_TABLE && error.code !== UNDEFINED_SCHEMA) throw error
    }
  }

  /**
   * One statement that is one transaction: stamped before anything is written in it; after that the
   * oid of the table is looked up, which nobody can drop or make until it ends.
   */
  async #write(target, statement, values, mutationId, preamble = '') {
    const events = `(${statement}) as events`
    if (mutationId === null) {
      const { rows } = await this.#prepared(`${preamble} select ${events}`, values)
      return { events: Number(rows[0].events), oid: null }
    }
    const [stamp, name] = [`$${values.length + 1}`, `$${values.length + 2}`]
    const { rows } = await this.#prepared(
      `${preamble} select tide.set_mutation_id(${stamp}), ${events}, to_regclass(${name})::oid as oid`,
      [...values, mutationId, target],
    )
    return { events: Number(rows[0].events), oid: rows[0].oid }
  }

  /** The oid of a table; null if there is none. */
  async oid(schema, table) {
    const { rows } = await this.#pool.query('select to_regclass($1)::oid as oid', [relation(schema, table)])
    return rows[0].oid
  }

  /**
   * `{ version, value }`, or null if there is no such record, table or schema. What is asked for in
   * the same moment is read with one statement per table.
   */
  async get(schema, table, id) {
    const source = relation(schema, table)
    if (!this.#asked.has(source)) {
      const ids = new Set()
      const rows = new Promise((resolve) => process.nextTick(resolve)).then(() => {
        this.#asked.delete(source)
        return this.#rows(schema, table, [...ids])
      })
      this.#asked.set(source, { ids, rows })
    }
    const { ids, rows } = this.#asked.get(source)
    ids.add(id)
    const row = (await rows).get(id)
    return row ? { version: Number(row.version), value: JSON.parse(row.val) } : null
  }

  /** Rows of a table by their ids, the values as JSON text whatever the type of their column. */
  async #rows(schema, table, ids) {
    try {
      const { rows } = await this.#select(schema, table, ids)
      return new Map(rows.map((row) => [row.id, row]))
    } catch (error) {
      if (error.code === UNDEFINED_TABLE || error.code === UNDEFINED_SCHEMA) return new Map()
      throw error
    }
  }

  #select(schema, table, ids) {
    if (isDirect(schema, table)) {
      const source = relation(schema, table)
      return this.#prepared(`select id, version, val::text as val from ${source} where id = any ($1)`, [ids])
    }
    return this.#prepared(
      'select tide_internal.record_id(key) as id, version, value::text as val from tide.record_get_many($1, $2)',
      [ids.map((id) => `${table}/${id}`), schema],
    )
  }

  /** Runs a statement that each connection parses and plans once. */
  async #prepared(text, values) {
    let name = this.#names.get(text)
    if (name === undefined && this.#names.size < PREPARED) {
      name = `deepstream ${this.#names.size}`
      this.#names.set(text, name)
    }
    try {
      return await this.#pool.query({ name, text, values })
    } catch (error) {
      // The table was made anew, with columns of other types.
      if (error.code !== PLAN_IS_STALE) throw error
      return this.#pool.query(text, values)
    }
  }

  /**
   * Several records; those that are not there are left out.
   * @param places a map from names to `{ table, id }`
   * @returns a map from names to `{ version, value }`
   */
  async getMany(schema, places) {
    const keys = new Map()
    for (const [name, { table, id }] of places) keys.set(name, `${table}/${id}`)
    const { rows } = await this.#pool.query(
      'select key, version, value from tide.record_get_many($1, $2)',
      [[...new Set(keys.values())], schema],
    )
    const found = new Map(
      rows.map(({ key, version, value }) => [key, { version: Number(version), value }]),
    )
    return new Map([...places.keys()].flatMap((name) => {
      const record = found.get(keys.get(name))
      return record ? [[name, structuredClone(record)]] : []
    }))
  }

  /** The table and id of every record of a schema. */
  async *all(schema) {
    for (const { table_name: table } of await this.#overview(schema, false)) {
      try {
        yield* this.#ids(schema, table)
      } catch (error) {
        // Dropped meanwhile, or not a table of records.
        if (error.code !== UNDEFINED_TABLE && error.code !== UNDEFINED_COLUMN) throw error
      }
    }
  }

  async *#ids(schema, table) {
    const from = `select id from ${relation(schema, table)}`
    let { rows } = await this.#pool.query(`${from} order by id limit ${PAGE}`)
    while (rows.length > 0) {
      for (const { id } of rows) yield { table, id }
      const last = rows.at(-1).id
      ;({ rows } = await this.#pool.query(`${from} where id > $1 order by id limit ${PAGE}`, [last]))
    }
  }

  async overview(schema) {
    const tables = await this.#overview(schema, true)
    return Object.fromEntries(
      tables.map(({ table_name: table, row_count: rows }) => [table, Number(rows)]),
    )
  }

  async #overview(schema, exact) {
    const statement = 'select table_name, row_count from tide.schema_overview($1, $2)'
    return (await this.#pool.query(statement, [schema, exact])).rows
  }

  /** Makes a schema that is streamed; `owner`, if given, shall own it and so its tables. */
  async createSchema(name, owner) {
    const { rows } = await this.#pool.query('select tide.create_schema($1) as made', [name])
    if (!rows[0].made || !owner) return
    const [schema, role] = [name, owner].map(escapeIdentifier)
    await this.#pool.query(`alter schema ${schema} owner to ${role}`)
  }

  destroySchema(name) {
    return this.#pool.query('select tide.destroy_schema($1, true)', [name])
  }

  /** A position that all commits from now on come after. */
  async position() {
    const { rows } = await this.#pool.query('select tide.current_position() as position')
    const { position } = rows[0]
    if (position === null) {
      throw Object.assign(new Error("pg_tide's worker is not running yet"), { code: '57P03' })
    }
    return position
  }

  /** A token of a role's, or of the one that the pool connects as. */
  async token(role = null) {
    const { rows } = await this.#pool.query('select tide.token(coalesce($1, current_user)) as token', [role])
    return rows[0].token
  }

  /** Where the database's listener is, on a host. */
  async address(host) {
    const { rows } = await this.#pool.query(
      `select current_setting('tide.port') as port, current_setting('tide.ssl')::boolean as ssl`,
    )
    const { port, ssl } = rows[0]
    return `${ssl ? 'wss' : 'ws'}://${host}:${port}/realtime/v1/websocket`
  }
}

/**
 * Whether things can be named in a statement of ours: of a longer name Postgres would take the
 * beginning, which may be another's. pg_tide's functions say what is wrong with it.
 */
function isDirect(...names) {
  return names.every((name) => {
    const bytes = Buffer.byteLength(name)
    return bytes > 0 && bytes <= LONGEST_NAME && !name.includes('\0')
  })
}

function relation(schema, table) {
  return `${escapeIdentifier(schema)}.${escapeIdentifier(table)}`
}

module.exports = { Records }
