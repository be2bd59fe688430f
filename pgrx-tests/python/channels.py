"""Broadcast, presence and private channels with Python's unmodified `realtime` client.

The database allows public channels, and clients to speak on them.
"""

import asyncio

from realtime import AsyncRealtimeClient, RealtimeSubscribeStates
from tide import connect, main, sql

POLICIES = """
    create policy listen on tide.channel for select to authenticated
        using (tide.topic() like 'team-%');
    create policy speak on tide.channel for insert to authenticated
        with check (topic like 'team-%')"""


class Member:
    """A channel with its queue of broadcasts and of states."""

    def __init__(self, client: AsyncRealtimeClient, topic: str, **config: object) -> None:
        self.heard: asyncio.Queue = asyncio.Queue()
        self.states: asyncio.Queue = asyncio.Queue()
        private = topic.startswith("team-")
        self.channel = client.channel(topic, {"config": {"private": private, **config}})
        self.channel.on_broadcast("*", self.heard.put_nowait)

    async def subscribe(self) -> "Member":
        await self.channel.subscribe(lambda state, _error: self.states.put_nowait(state))
        assert await self.states.get() == RealtimeSubscribeStates.SUBSCRIBED
        return self

    async def hears(self) -> tuple:
        message = await self.heard.get()
        return message["event"], message["payload"]


async def a_broadcast_reaches_the_others(client: AsyncRealtimeClient) -> None:
    other = await connect()
    for topic in ["public", "team-a"]:
        one = await Member(client, topic, broadcast={"ack": False, "self": True}).subscribe()
        two = await Member(other, topic).subscribe()

        await one.channel.send_broadcast("hi", {"n": 1})

        assert await one.hears() == ("hi", {"n": 1})
        assert await two.hears() == ("hi", {"n": 1})
    await other.close()


async def what_is_no_object_does_not_break_the_client(client: AsyncRealtimeClient) -> None:
    other = await connect()
    one = await Member(client, "team-a").subscribe()
    two = await Member(other, "team-a").subscribe()

    await one.channel.send_broadcast("text", "no object")
    await one.channel.send_broadcast("after", {"n": 1})

    assert await two.hears() == ("text", {"data": "no object"})
    assert await two.hears() == ("after", {"n": 1})
    await other.close()


async def what_is_sent_over_http_is_heard(client: AsyncRealtimeClient) -> None:
    listener = await Member(client, "team-a/b").subscribe()

    await listener.channel.http_send("http", {"n": 1})

    assert await listener.hears() == ("http", {"n": 1})


async def members_see_each_other_come_and_go(client: AsyncRealtimeClient) -> None:
    other = await connect()
    joins: asyncio.Queue = asyncio.Queue()
    leaves: asyncio.Queue = asyncio.Queue()
    watcher = Member(client, "team-p", presence={"key": "watcher", "enabled": True})
    watcher.channel.on_presence_join(lambda key, _now, new: joins.put_nowait((key, new)))
    watcher.channel.on_presence_leave(lambda key, _now, left: leaves.put_nowait((key, left)))
    await watcher.subscribe()
    member = await Member(other, "team-p", presence={"key": "me", "enabled": True}).subscribe()

    await member.channel.track({"at": "home"})
    key, new = await joins.get()
    assert (key, new[0]["at"]) == ("me", "home"), new
    assert watcher.channel.presence_state()["me"][0]["at"] == "home"
    await member.channel.untrack()

    key, left = await leaves.get()
    assert (key, left[0]["at"]) == ("me", "home"), left
    await member.channel.track({"at": "work"})
    assert (await joins.get())[0] == "me"
    await other.close()
    assert (await leaves.get())[0] == "me"


async def a_stranger_cannot_join(_client: AsyncRealtimeClient) -> None:
    stranger = await connect("anon")
    member = Member(stranger, "team-a")
    await member.channel.subscribe(lambda state, _error: member.states.put_nowait(state))

    assert await member.states.get() == RealtimeSubscribeStates.CHANNEL_ERROR
    await stranger.close()


TESTS = [
    a_broadcast_reaches_the_others,
    what_is_no_object_does_not_break_the_client,
    what_is_sent_over_http_is_heard,
    members_see_each_other_come_and_go,
    a_stranger_cannot_join,
]


if __name__ == "__main__":
    sql(POLICIES)
    main(TESTS)
