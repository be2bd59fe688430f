// The page docs/sync.md, followed to the letter.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import test from 'node:test'
import { promisify } from 'node:util'
import { limits } from './client.js'
import { Cluster } from './cluster.js'

const page = readFileSync(`${import.meta.dirname}/../../../../docs/sync.md`, 'utf8')

/** The first block of a language. */
function block(language: string): string {
  const match = new RegExp('```' + language + '\n(.*?)```', 's').exec(page)
  assert.ok(match, language)
  return match[1]!
}

test('the example works as it stands', limits, async () => {
  const cluster = await Cluster.start({ roles: false })
  await cluster.sql(block('sql'))
  const folder = mkdtempSync(`${import.meta.dirname}/example.`)
  const exit = '\nawait todos.ready\nawait tide.close()\nprocess.exit()\n'
  writeFileSync(`${folder}/app.mjs`, block('js').replace(':4000', `:${cluster.port}`) + exit)

  const token = await cluster.token('9c9b7a54-3b1c-4a8e-9d3e-3f8f5a1e2b4d')
  const options = { cwd: folder, env: { ...process.env, TOKEN: token } }
  const { stdout } = await promisify(execFile)(process.execPath, ['app.mjs'], options)

  assert.match(stdout, /live \[/)
  assert.match(stdout, /Rejected 23514 .*todos_title_check/)
  assert.equal(await cluster.sql('select owner, title, done from todos'), '9c9b7a54-3b1c-4a8e-9d3e-3f8f5a1e2b4d|buy a boat|t')
})
