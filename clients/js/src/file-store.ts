import { constants } from 'node:fs'
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { apply } from './store.js'
import type { Batch, Store, Unlock } from './store.js'

/** Beyond what is there, how many outdated entries a file may have before it is written anew. */
const SLACK = 1000

/** Locks that this process has, since its number alone does not tell two stores in it apart. */
const held = new Set<string>()

/** A space and the file of its changes, one a line. */
interface Space {
  entries: Map<string, unknown>
  file: FileHandle
  /** How many entries the file has, outdated ones with them. */
  written: number
}

/**
 * A store in a folder, for Node: a file for each space, to whose end changes are written. Several processes can
 * share one.
 */
export class FileStore implements Store {
  readonly #folder: string
  readonly #spaces = new Map<string, Promise<Space>>()
  /** The end of what is under way in each space: one thing after the other. */
  readonly #turns = new Map<string, Promise<unknown>>()

  constructor(folder: string) {
    this.#folder = folder
  }

  async read(space: string): Promise<Map<string, unknown>> {
    return this.#inTurn(space, async () => {
      // Another process may have written to it.
      const { entries } = await load(this.#path(space))
      return entries
    })
  }

  async write(space: string, batch: Batch): Promise<void> {
    await this.#inTurn(space, async () => {
      const opened = await this.#open(space)
      const line = `${JSON.stringify(batch)}\n`
      // The file first: what it cannot hold is not there.
      await opened.file.appendFile(line)
      await opened.file.datasync()
      apply(opened.entries, JSON.parse(line) as Batch)
      opened.written += (batch.put?.length ?? 0) + (batch.delete?.length ?? 0)
      if (opened.written > 2 * opened.entries.size + SLACK) await this.#compact(space, opened)
    })
  }

  async spaces(prefix: string): Promise<string[]> {
    const files = await readdir(this.#folder).catch(() => [] as string[])
    const names = files.filter((file) => file.endsWith('.jsonl')).map((file) => decode(file))
    return names.filter((name) => name.startsWith(prefix))
  }

  async lock(name: string): Promise<Unlock | null> {
    await mkdir(this.#folder, { recursive: true })
    const path = join(this.#folder, `${encodeURIComponent(name)}.lock`)
    if (held.has(path)) return null
    held.add(path)
    const taken = (await create(path)) || ((await isAbandoned(path)) && (await create(path)))
    if (!taken) {
      held.delete(path)
      return null
    }
    return () => {
      rmSync(path, { force: true })
      held.delete(path)
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.#turns.values()])
    for (const space of this.#spaces.values()) await (await space).file.close()
    this.#spaces.clear()
  }

  #path(space: string): string {
    return join(this.#folder, `${encodeURIComponent(space)}.jsonl`)
  }

  #open(space: string): Promise<Space> {
    const opened = this.#spaces.get(space) ?? openSpace(this.#folder, this.#path(space))
    this.#spaces.set(space, opened)
    return opened
  }

  /** Writes the file anew, with what is there only. */
  async #compact(space: string, opened: Space): Promise<void> {
    const path = this.#path(space)
    const batch: Batch = { put: [...opened.entries] }
    await writeDurably(`${path}.new`, `${JSON.stringify(batch)}\n`)
    await rename(`${path}.new`, path)
    await opened.file.close()
    opened.file = await open(path, 'a')
    opened.written = opened.entries.size
  }

  #inTurn<T>(space: string, work: () => Promise<T>): Promise<T> {
    const turn = (this.#turns.get(space) ?? Promise.resolve()).then(work)
    this.#turns.set(
      space,
      turn.catch(() => {}),
    )
    return turn
  }
}

function decode(file: string): string {
  return decodeURIComponent(file.slice(0, -'.jsonl'.length))
}

async function openSpace(folder: string, path: string): Promise<Space> {
  await mkdir(folder, { recursive: true })
  const { entries, length, written } = await load(path)
  const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND)
  // What a program was cut off in the middle of was never there.
  await file.truncate(length)
  return { entries, file, written }
}

async function load(path: string): Promise<{ entries: Map<string, unknown>; length: number; written: number }> {
  const text = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return Buffer.alloc(0)
    throw error
  })
  const entries = new Map<string, unknown>()
  let [length, written] = [0, 0]
  for (let end = text.indexOf(10); end >= 0; end = text.indexOf(10, length)) {
    const batch = JSON.parse(text.toString('utf8', length, end)) as Batch
    apply(entries, batch)
    written += (batch.put?.length ?? 0) + (batch.delete?.length ?? 0)
    length = end + 1
  }
  return { entries, length, written }
}

async function writeDurably(path: string, text: string): Promise<void> {
  const file = await open(path, 'w')
  await file.writeFile(text)
  await file.datasync()
  await file.close()
}

/** Makes the file of a lock, with the number of this process; false: it is there. */
async function create(path: string): Promise<boolean> {
  return writeFile(path, `${process.pid}`, { flag: 'wx' }).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return false
      throw error
    },
  )
}

/** Removes the file of a lock whose process is gone. */
async function isAbandoned(path: string): Promise<boolean> {
  const pid = Number(await readFile(path, 'utf8').catch(() => '0'))
  // Empty: it is being written. This process's number, but not its lock: of one before it with the same.
  if (pid <= 0 || (pid !== process.pid && isAlive(pid))) return false
  await rm(path, { force: true })
  return true
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}
