import type { Mutation } from './mutation.js'
import type { Store } from './store.js'

/** One client in a store: its name, its numbers, its mutations. One tab or process has it at a time. */
export interface Slot {
  space: string
  clientId: string
  /** The number of the next mutation. */
  next: number
  /** In the order of their numbers. */
  mutations: Mutation[]
  release(): void
}

const QUEUES = 'queue/'

/** Takes the first client that nobody else has: a reload gets the one from before. */
export async function takeSlot(store: Store): Promise<Slot> {
  for (let index = 0; ; index += 1) {
    const slot = await take(store, `${QUEUES}${index}`)
    if (slot) return slot
  }
}

/** Takes those clients that nobody has any more, and that have mutations which nobody will send. */
export async function takeAbandoned(store: Store): Promise<Slot[]> {
  const found: Slot[] = []
  for (const space of await store.spaces(QUEUES)) {
    const slot = await take(store, space)
    if (!slot) continue
    if (slot.mutations.length > 0) found.push(slot)
    else slot.release()
  }
  return found
}

async function take(store: Store, space: string): Promise<Slot | null> {
  const release = await store.lock(space)
  if (!release) return null
  const entries = await store.read(space)
  const client = entries.get('client') as { client_id: string; next: number } | undefined
  entries.delete('client')
  const mutations = [...entries.values()] as Mutation[]
  mutations.sort((one, other) => one.n - other.n)
  return { space, clientId: client?.client_id ?? crypto.randomUUID(), next: client?.next ?? 1, mutations, release }
}
