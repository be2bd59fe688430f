import ModelsClient from '@pg-tide/client/models'
import type { ConfirmedEvent, Model, ModelStateChange, OptimisticEvent } from '@pg-tide/client'
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import test, { before } from 'node:test'
import { client, limits, rejection } from './client.js'
import { Cluster, Proxy } from './cluster.js'

type Post = { id: number; text: string; comments: string[] }

let cluster: Cluster
before(async () => {
  cluster = await Cluster.start()
  await cluster.sql(`alter system set tide.public_channels = on`)
  await cluster.sql('select pg_reload_conf()')
  await cluster.sql(`create table posts (id int primary key, text text); insert into posts values (1, 'first')`)
})

/** The backend's transaction for a change: the row, and the event for the model's channel. */
const update = (channel: string, mutationId: string, text: string) =>
  cluster.sql(`begin; select tide.set_mutation_id('${mutationId}'); update posts set text = '${text}' where id = 1;
    select tide.send('${channel}', 'updatePost', to_jsonb('${text}'::text), private => false); commit`)

async function sync(): Promise<{ data: Post; sequenceId: string }> {
  const read = await cluster.sql(`select jsonb_build_object('sequenceId', tide.snapshot_token(),
    'data', to_jsonb(p) || '{"comments": []}') from posts as p where id = 1`)
  return JSON.parse(read)
}

// As in the README of @ably-labs/models.
function merge(state: Post, event: OptimisticEvent | ConfirmedEvent): Post {
  return { ...state, text: event.data }
}

/** Resolves when the model shows such a state. */
function shows(model: Model<typeof sync>, text: string, optimistic = true): Promise<void> {
  return new Promise((resolve, reject) => {
    const callback = (error: Error | null, post?: Post) => {
      if (error) return reject(error)
      if (post?.text !== text) return
      model.unsubscribe(callback)
      resolve()
    }
    model.subscribe(callback, { optimistic })
  })
}

test("the example of Ably's README", limits, async (t) => {
  const channelName = `models:${randomUUID()}`
  const modelsClient = new ModelsClient({ tide: client(t, cluster.url, { token: await cluster.token() }) })
  const model = modelsClient.models.get({ channelName, sync, merge, private: false })
  assert.equal(modelsClient.models.get({ channelName, sync, merge }), model)
  const posts: string[] = []
  model.subscribe((err, post) => {
    if (err) throw err
    posts.push(post!.text)
  })

  const [confirmation, cancel] = await model.optimistic({ mutationId: 'my-mutation-id', name: 'updatePost', data: 'new post text' })
  assert.equal(model.data.optimistic.text, 'new post text')
  assert.notEqual(model.data.confirmed.text, 'new post text')
  await update(channelName, 'my-mutation-id', 'new post text')
  await confirmation

  assert.equal(model.data.confirmed.text, 'new post text')
  assert.equal(typeof cancel, 'function')
  assert.ok(posts.includes('new post text'))
})

test('states, and what a cancelled or late event comes to', limits, async (t) => {
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const model = tide.model({ name: `models:${randomUUID()}`, sync, merge, private: false })
  const changes: ModelStateChange[] = []
  for (const state of ['syncing', 'ready', 'disposed'] as const) model.on(state, (change) => changes.push(change))
  assert.equal(model.state, 'initialized')
  await model.sync()
  assert.equal(model.state, 'ready')
  const { text } = model.data.confirmed

  const [cancelled, cancel] = await model.optimistic({ mutationId: randomUUID(), name: 'updatePost', data: 'a' })
  const [late] = await model.optimistic({ mutationId: randomUUID(), name: 'updatePost', data: 'b' }, { timeout: 1 })
  await cancel()
  assert.match((await rejection(cancelled)).message, /cancelled/)
  assert.match((await rejection(late)).message, /timed out/)
  assert.equal(model.data.optimistic.text, text)

  await model.dispose()
  assert.deepEqual(changes.map((change) => change.current), ['syncing', 'ready', 'disposed'])
})

test('what others change goes below what is optimistic', limits, async (t) => {
  const name = `models:${randomUUID()}`
  const proxy = await Proxy.start(cluster.port)
  const tide = client(t, proxy.url, { token: await cluster.token() })
  const model = tide.model({ name, sync, merge, private: false })
  const append = (state: Post, event: OptimisticEvent | ConfirmedEvent) => ({ ...state, comments: [...state.comments, event.data as string] })
  const comments = tide.model({ name: `${name}:comments`, sync, merge: append, private: false })
  await Promise.all([model.sync(), comments.sync()])
  const send = (id: string, text: string) => cluster.sql(`begin; select tide.set_mutation_id('${id}');
    select tide.send('${name}:comments', 'add', to_jsonb('${text}'::text), private => false); commit`)
  const [mine, theirs] = [randomUUID(), randomUUID()]

  const [confirmation] = await comments.optimistic({ mutationId: mine, name: 'add', data: 'mine' })
  // What is sent while it is cut off comes, too.
  proxy.cut()
  await send(theirs, 'theirs')
  await new Promise<void>((resolve) => {
    comments.subscribe((_error, post) => post!.comments.includes('theirs') && resolve())
  })
  assert.deepEqual(comments.data.optimistic.comments, ['theirs', 'mine'])
  await send(mine, 'mine')
  await confirmation

  assert.deepEqual(comments.data.confirmed.comments, ['theirs', 'mine'])
})

test('an event is rejected by the backend, or by its mutation', limits, async (t) => {
  const name = `models:${randomUUID()}`
  const tide = client(t, cluster.url, { token: await cluster.token() })
  const model = tide.model({ name, sync, merge, private: false })
  await model.sync()
  const { text } = model.data.confirmed

  const [one] = await model.optimistic({ mutationId: 'rejected-1', name: 'updatePost', data: 'never' })
  await cluster.sql(`insert into tide.outbox (channel, name, mutation_id, rejected, private) values ('${name}', 'updatePost', 'rejected-1', true, false)`)
  assert.match((await rejection(one)).message, /contain rejections/)

  const [other] = await model.optimistic({ mutationId: 'rejected-2', name: 'updatePost', data: 'never' })
  const asked = rejection(tide.mutate([{ op: 'delete', table: 'public.posts', key: { id: 1 } }], { mutationId: 'rejected-2' }))
  assert.equal(await rejection(other), await asked)
  await shows(model, text)
})
