"""postgres_changes with Python's unmodified `realtime` client."""

import asyncio
import uuid

from realtime import AsyncRealtimeClient, RealtimeSubscribeStates
from tide import main, sql, token


def table(columns: str) -> str:
    name = f"t_{uuid.uuid4().hex[:8]}"
    sql(
        f"create table {name} ({columns}); grant select on {name} to authenticated;"
        f" select tide.publish('{name}')"
    )
    return name


class Subscription:
    """A channel with its queue of changes, of states and of system messages."""

    def __init__(self, client: AsyncRealtimeClient, topic: str = "room") -> None:
        self.changes: asyncio.Queue = asyncio.Queue()
        self.states: asyncio.Queue = asyncio.Queue()
        self.system: asyncio.Queue = asyncio.Queue()
        self.channel = client.channel(topic)
        self.channel.on_system(self.system.put_nowait)

    def on(self, event: str, **binding: object) -> "Subscription":
        queue: asyncio.Queue = binding.pop("into", self.changes)
        self.channel.on_postgres_changes(event, queue.put_nowait, schema="public", **binding)
        return self

    async def subscribe(self) -> "Subscription":
        await self.channel.subscribe(lambda state, _error: self.states.put_nowait(state))
        await self.until(RealtimeSubscribeStates.SUBSCRIBED)
        return self

    async def until(self, state: RealtimeSubscribeStates) -> None:
        while await self.states.get() != state:
            pass


def data(change: object) -> dict:
    """The client hands on the frame's payload, as a model or a dictionary."""
    if hasattr(change, "model_dump"):
        change = change.model_dump(by_alias=True)
    return change.get("data", change)


async def insert_update_and_delete_arrive(client: AsyncRealtimeClient) -> None:
    orders = table("id int primary key, item text")
    subscription = await Subscription(client).on("*", table=orders).subscribe()

    sql(f"insert into {orders} values (1, 'a boat')")
    sql(f"update {orders} set item = 'a ship'")
    sql(f"delete from {orders}")

    insert, update, delete = [data(await subscription.changes.get()) for _ in range(3)]
    assert insert["type"] == "INSERT", insert
    assert insert["record"] == {"id": 1, "item": "a boat"}, insert
    assert update["type"] == "UPDATE", update
    assert update["record"]["item"] == "a ship", update
    assert update["old_record"] == {"id": 1}, update
    assert delete["type"] == "DELETE", delete
    assert delete["old_record"] == {"id": 1}, delete


async def each_binding_gets_what_it_asked_for(client: AsyncRealtimeClient) -> None:
    orders, other = table("id int primary key, n int, pad text"), table("id int primary key")
    big, narrow, others = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()
    subscription = Subscription(client)
    subscription.on("INSERT", table=orders, filter="n=gt.10", into=big)
    subscription.on("INSERT", table=orders, select=["n"], into=narrow)
    subscription.on("*", table=other, into=others)
    await subscription.subscribe()

    sql(f"insert into {orders} values (1, 1, 'x'), (2, 20, 'y'); insert into {other} values (7)")

    assert data(await big.get())["record"]["id"] == 2
    assert data(await narrow.get())["record"] == {"id": 1, "n": 1}
    assert data(await narrow.get())["record"] == {"id": 2, "n": 20}
    assert data(await others.get())["record"] == {"id": 7}


async def a_restarted_worker_is_joined_again_and_delivers(client: AsyncRealtimeClient) -> None:
    orders = table("id int primary key")
    subscription = await Subscription(client).on("*", table=orders).subscribe()

    sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where backend_type = 'pg_tide worker' and datname = current_database()"
    )
    await subscription.until(RealtimeSubscribeStates.SUBSCRIBED)

    sql(f"insert into {orders} values (2)")
    assert data(await subscription.changes.get())["record"]["id"] == 2


async def a_refreshed_token_keeps_the_channel(client: AsyncRealtimeClient) -> None:
    orders = table("id int primary key")
    subscription = await Subscription(client).on("*", table=orders).subscribe()

    await client.set_auth(token("authenticated", {"renewed": True}))
    sql(f"insert into {orders} values (1)")

    assert data(await subscription.changes.get())["record"]["id"] == 1


async def a_refused_join_is_told(client: AsyncRealtimeClient) -> None:
    subscription = Subscription(client, "tide:table:public.no_such_table")
    await subscription.channel.subscribe(lambda state, _error: subscription.states.put_nowait(state))

    assert await subscription.states.get() == RealtimeSubscribeStates.CHANNEL_ERROR


async def positions_arrive_on_a_table_topic(client: AsyncRealtimeClient) -> None:
    orders = table("id int primary key")
    events: asyncio.Queue = asyncio.Queue()
    subscription = Subscription(client, f"tide:table:public.{orders}")
    subscription.channel.on_broadcast("INSERT", events.put_nowait)
    await subscription.subscribe()

    sql(f"insert into {orders} values (1)")

    event = await events.get()
    event = event if isinstance(event, dict) else event.model_dump()
    assert event["payload"]["record"] == {"id": 1}, event
    assert event["meta"]["id"], event


TESTS = [
    insert_update_and_delete_arrive,
    each_binding_gets_what_it_asked_for,
    a_restarted_worker_is_joined_again_and_delivers,
    a_refreshed_token_keeps_the_channel,
    a_refused_join_is_told,
    positions_arrive_on_a_table_topic,
]


if __name__ == "__main__":
    main(TESTS)
