// A private Postgres with pg_tide, gone when the tests are.

import { execFile, spawn, spawnSync } from 'node:child_process'
import { appendFileSync, chownSync, mkdtempSync, readFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { promisify } from 'node:util'

const run = promisify(execFile)
const bin = `/usr/lib/postgresql/${process.env['PG'] ?? '15'}/bin`

const SETTINGS = `
listen_addresses = ''
shared_preload_libraries = 'pg_tide'
wal_level = logical
max_worker_processes = 32
fsync = off
autovacuum = off
`

export class Cluster {
  readonly folder: string
  readonly port: number

  private constructor(folder: string, port: number) {
    this.folder = folder
    this.port = port
  }

  /** Starts one with a database that clients can use. */
  static async start({ roles = true } = {}): Promise<Cluster> {
    const folder = mkdtempSync('/tmp/tide-js.')
    if (isRoot) chownSync(folder, id('-u'), id('-g'))
    const cluster = new Cluster(folder, await freePort())
    watch(folder)
    asOwner('initdb', '-D', cluster.#data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale', 'C.UTF-8', '-N')
    const conf = `${cluster.#data}/postgresql.conf`
    appendFileSync(conf, `${SETTINGS}unix_socket_directories = '${folder}'\ntide.port = ${cluster.port}\n`)
    // Only newer minor versions know the list, and the others would not start with it.
    const known = command('postgres', '-D', cluster.#data, '-C', 'output_plugin_libraries')
    if (known.status === 0) appendFileSync(conf, "output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'\n")
    await cluster.resume()
    await cluster.sql('create database app', 'postgres')
    await cluster.sql('create extension pg_tide')
    if (roles) await cluster.sql('create role authenticated nologin; grant authenticated to tide_authenticator')
    return cluster
  }

  get url(): string {
    return `ws://localhost:${this.port}/realtime/v1`
  }

  async resume(): Promise<void> {
    asOwner('pg_ctl', '-D', this.#data, '-w', '-s', '-l', `${this.folder}/log`, 'start')
  }

  stop(): void {
    asOwner('pg_ctl', '-D', this.#data, '-w', '-s', '-m', 'fast', 'stop')
  }

  /** Runs SQL as a superuser; the rows as lines of text. */
  async sql(statements: string, database = 'app'): Promise<string> {
    const options = ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-h', this.folder, '-U', 'postgres', '-d', database]
    const { stdout } = await run(`${bin}/psql`, [...options, '-c', statements], { maxBuffer: 1 << 28 })
    return stdout.trim()
  }

  /** A table that clients may do anything with. */
  async table(name: string, columns: string): Promise<void> {
    await this.sql(`create table ${name} (${columns});
      grant select, insert, update, delete on ${name} to authenticated;
      grant usage on all sequences in schema public to authenticated;`)
    await this.sql(`select tide.publish('${name}')`)
  }

  token(sub = 'somebody', lifetime = '1 hour'): Promise<string> {
    return this.sql(`select tide.token('authenticated', '{"sub": "${sub}"}', interval '${lifetime}')`)
  }

  /** What SELECT shows, by the key `id`. */
  async rows(table: string, condition = 'true'): Promise<Map<string, unknown>> {
    const query = `select coalesce(jsonb_agg(t order by id), '[]') from ${table} as t where ${condition}`
    const rows = JSON.parse(await this.sql(query)) as { id: unknown }[]
    return new Map(rows.map((row) => [String(row.id), row]))
  }

  get log(): string {
    return readFileSync(`${this.folder}/log`, 'utf8')
  }

  get #data(): string {
    return `${this.folder}/data`
  }
}

/** A way to a server that can be cut. */
export class Proxy {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  /** Whether nobody gets through. */
  isCut = false

  private constructor(target: number) {
    this.#server = createServer((socket) => {
      if (this.isCut) return void socket.destroy()
      const upstream = connect(target, 'localhost')
      for (const [one, other] of [[socket, upstream], [upstream, socket]] as const) {
        this.#sockets.add(one)
        one.on('error', () => {}).on('close', () => other.destroy())
        one.pipe(other)
      }
    })
  }

  static async start(target: number): Promise<Proxy> {
    const proxy = new Proxy(target)
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve))
    return proxy
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.#server.address() as AddressInfo).port}/realtime/v1`
  }

  /** Ends all connections; with `true`, until it is mended. */
  cut(stays = false): void {
    this.isCut = stays
    for (const socket of this.#sockets) socket.destroy()
    this.#sockets.clear()
  }

  mend(): void {
    this.isCut = false
  }
}

const isRoot = process.getuid?.() === 0

/** Ends the server and removes the folder once this process lets go of a pipe, however it ends. */
function watch(folder: string): void {
  const script = `trap '' INT TERM HUP; cat >/dev/null
    kill -QUIT "$(head -n 1 "$1/data/postmaster.pid")"; while [ -e "$1/data/postmaster.pid" ] && kill -0 "$(head -n 1 "$1/data/postmaster.pid")"; do sleep 0.1; done
    rm -rf "$1"`
  const watchdog = spawn('sh', ['-c', script, 'watchdog', folder], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
  watchdog.unref()
  ;(watchdog.stdin as Socket).unref()
}

/** Postgres does not run as root. */
function command(program: string, ...args: string[]) {
  const [name, ...rest] = isRoot
    ? ['setpriv', '--reuid=postgres', '--regid=postgres', '--init-groups', '--', `${bin}/${program}`, ...args]
    : [`${bin}/${program}`, ...args]
  // Nowhere but to the log: the server would keep a pipe open.
  return spawnSync(name!, rest, { cwd: '/', stdio: ['ignore', 'ignore', 'inherit'] })
}

function asOwner(program: string, ...args: string[]): void {
  const { status } = command(program, ...args)
  if (status !== 0) throw new Error(`${program} failed with ${status}`)
}

function id(option: string): number {
  return Number(spawnSync('id', [option, 'postgres'], { encoding: 'utf8' }).stdout)
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(port))
    })
  })
}
