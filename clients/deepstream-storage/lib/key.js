'use strict'

/**
 * The table and id that a record's name stands for: what is before its first `/` and the rest, or
 * the default table and all of it. Nothing is taken out or changed.
 */
function parse(name, defaultTable) {
  const at = name.indexOf('/')
  if (at < 0) return { table: defaultTable, id: name }
  return { table: name.slice(0, at), id: name.slice(at + 1) }
}

/** The record names that stand for a row: two in the default table, if the id has no `/`. */
function namesOf(table, id, defaultTable) {
  const name = `${table}/${id}`
  return table === defaultTable && !id.includes('/') ? [id, name] : [name]
}

module.exports = { parse, namesOf }
