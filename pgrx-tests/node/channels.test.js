// Broadcast, presence and private channels with the newest unmodified client, in both versions of
// the protocol. The database allows public channels, and clients to speak on them.

import assert from 'node:assert/strict'
import test from 'node:test'
import { Inbox, connect, limits, sql, subscribe, terminateWorker, token } from './tide.js'

await sql(`create policy listen on tide.channel for select to authenticated
    using (tide.topic() like 'team-%' and extension in ('broadcast', 'presence'));
  create policy speak on tide.channel for insert to authenticated
    with check (topic like 'team-%' and topic <> 'team-read')`)

/** A subscribed channel with its inbox of broadcasts. */
async function join(t, topic, { vsn, broadcast, presence, on, ...options } = {}) {
  const client = await connect(t, { vsn, reconnectAfterMs: () => 200, ...options })
  const isPrivate = topic.startsWith('team-')
  const channel = client.channel(topic, { config: { private: isPrivate, broadcast, presence } })
  const heard = new Inbox()
  channel.on('broadcast', { event: '*' }, heard.put)
  on?.(channel)
  const states = await subscribe(channel)
  return { client, channel, heard, states }
}

const said = (event, payload) => ({ type: 'broadcast', event, payload })

function withoutMeta({ meta, ...message }) {
  return message
}

for (const vsn of ['1.0.0', '2.0.0']) {
  const name = (text) => `vsn ${vsn}: ${text}`

  for (const topic of ['public', 'team-a']) {
    test(name(`a broadcast reaches the others on ${topic}`), limits, async (t) => {
      const one = await join(t, topic, { vsn, broadcast: { ack: true } })
      const two = await join(t, topic, { vsn, broadcast: { self: true } })

      assert.equal(await one.channel.send(said('hi', { n: 1 })), 'ok')
      assert.deepEqual(withoutMeta(await two.heard.take()), said('hi', { n: 1 }))
      await two.channel.send(said('back', { list: [1, 'é'] }))

      assert.deepEqual(withoutMeta(await two.heard.take()), said('back', { list: [1, 'é'] }))
      // The first has not heard itself.
      assert.deepEqual(withoutMeta(await one.heard.take()), said('back', { list: [1, 'é'] }))
    })
  }

  test(name('who may not speak is told, if it asks to be'), limits, async (t) => {
    const one = await join(t, 'team-read', { vsn, broadcast: { ack: true } })

    assert.equal(await one.channel.send(said('no', {})), 'error')
    assert.equal(await one.channel.track({ n: 1 }), 'error')
  })

  test(name('a stranger cannot join'), limits, async (t) => {
    const client = await connect(t, { vsn, apikey: await token('anon') })
    const states = new Inbox()
    const channel = client.channel('team-a', { config: { private: true } })
    channel.subscribe((state, error) => states.put({ state, error }))

    const { state, error } = await states.take()

    assert.equal(state, 'CHANNEL_ERROR')
    assert.match(error.message, /permissions to read from this Channel topic: team-a/)
  })

  test(name('what is sent over HTTP is heard'), limits, async (t) => {
    const topic = 'team-a/b é'
    const listener = await join(t, topic, { vsn })
    const client = await connect(t, { vsn })
    const sender = client.channel(topic, { config: { private: true } })

    // Not subscribed: the client takes the REST endpoint by itself.
    assert.equal(await sender.send(said('batch', { n: 1 })), 'ok')
    assert.deepEqual(withoutMeta(await listener.heard.take()), said('batch', { n: 1 }))
    assert.deepEqual(await sender.httpSend('one', { n: 2 }), { success: true })

    assert.deepEqual(withoutMeta(await listener.heard.take()), said('one', { n: 2 }))
    const mute = client.channel('team-read', { config: { private: true } })
    await assert.rejects(mute.httpSend('no', {}), /permissions to write/)
  })

  test(name('members see each other come, change and go'), limits, async (t) => {
    const [joins, leaves] = [new Inbox(), new Inbox()]
    const watch = (channel) => channel
      .on('presence', { event: 'join' }, joins.put)
      .on('presence', { event: 'leave' }, leaves.put)
    const one = await join(t, 'team-p', { vsn, presence: { key: 'one' }, on: watch })
    const two = await join(t, 'team-p', { vsn, presence: { key: 'two' } })

    assert.equal(await two.channel.track({ at: 'home' }), 'ok')
    const came = await joins.take(({ key }) => key === 'two')
    assert.equal(came.newPresences[0].at, 'home')
    assert.equal(one.channel.presenceState().two[0].at, 'home')
    await two.channel.track({ at: 'work' })
    await joins.take(({ newPresences }) => newPresences[0].at === 'work')
    assert.equal(one.channel.presenceState().two.length, 1)
    assert.equal(await two.channel.untrack(), 'ok')

    await leaves.take(({ leftPresences }) => leftPresences[0].at === 'work')
    assert.deepEqual(one.channel.presenceState(), {})
  })

  test(name('several connections of one key, and one that leaves'), limits, async (t) => {
    const syncs = new Inbox()
    const watch = (channel) => channel.on('presence', { event: 'sync' }, () => syncs.put(true))
    const watcher = await join(t, 'team-q', { vsn, presence: { key: 'watcher' }, on: watch })
    const phone = await join(t, 'team-q', { vsn, presence: { key: 'me' } })
    const laptop = await join(t, 'team-q', { vsn, presence: { key: 'me' } })
    const devices = async (expected) => {
      const now = () => (watcher.channel.presenceState().me ?? []).map(({ on }) => on).sort()
      while (now().join() !== expected.join()) await syncs.take()
    }

    await phone.channel.track({ on: 'phone' })
    await laptop.channel.track({ on: 'laptop' })
    await devices(['laptop', 'phone'])
    await phone.client.disconnect()

    await devices(['laptop'])
  })

  test(name('presence is there again after the worker has come back'), limits, async (t) => {
    const syncs = new Inbox()
    const watch = (channel) => channel.on('presence', { event: 'sync' }, () => syncs.put(true))
    const one = await join(t, 'team-r', { vsn, presence: { key: 'one' }, on: watch })
    await one.channel.track({ n: 1 })
    while (!one.channel.presenceState().one) await syncs.take()

    await terminateWorker()
    await one.states.take(({ state }) => state === 'SUBSCRIBED')
    while (one.channel.presenceState().one?.[0].n === 1) await syncs.take()
    await one.channel.track({ n: 2 })

    while (one.channel.presenceState().one?.[0].n !== 2) await syncs.take()
    assert.equal(one.channel.presenceState().one.length, 1)
  })
}

test('bytes arrive as they were sent', limits, async (t) => {
  const one = await join(t, 'team-a', { broadcast: { ack: true } })
  const two = await join(t, 'team-a')
  const old = await join(t, 'team-a', { vsn: '1.0.0' })
  const bytes = Uint8Array.from([0, 1, 254, 255])

  assert.equal(await one.channel.send(said('bytes', bytes.buffer)), 'ok')
  const { event, payload } = await two.heard.take()
  assert.equal(event, 'bytes')
  assert.deepEqual(new Uint8Array(payload), bytes)
  assert.deepEqual(await one.channel.httpSend('http', bytes), { success: true })
  assert.deepEqual(new Uint8Array((await two.heard.take()).payload), bytes)
  await one.channel.send(said('json', { n: 1 }))

  // A client of version 1 cannot take bytes.
  assert.equal((await old.heard.take()).event, 'json')
})
