"""The client of one database."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from .collection import Collection
from .connection import Connection
from .mutation import Confirmed, Mutation, Op
from .queue import MutationQueue
from .store import MemoryStore, Store


class Client:
    """Follows tables and writes to them, for as long as it is open.

        async with Client("ws://localhost:4000/realtime/v1", token) as client:
            orders = client.sync("public.orders", filter="state=eq.open")
            await orders.up_to_date()
            new = {"op": "insert", "table": "public.orders", "values": {"state": "open"}}
            await client.mutate([new])

    What is lost of the network is waited for: nothing but `close` ends it.
    """

    def __init__(self, url: str, token: str | None = None, *, store: Store | None = None) -> None:
        """`store` keeps the mutations that are not answered yet; by default the memory does."""
        self._url = url
        self._token = token
        self._store: Store = store if store is not None else MemoryStore()
        self._connections: list[Connection] = []
        self._collections: list[Collection] = []
        self._queue: MutationQueue | None = None

    async def open(self) -> Self:
        """Begins to connect, and to send what the store has. Does not wait for the server."""
        connection = Connection(self._url, self._token)
        self._connections.append(connection)
        try:
            self._queue = MutationQueue(connection, self._store)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Ends all. Mutations without an answer stay in the store."""
        if self._queue is not None:
            await self._queue.close()
            self._queue = None
        await asyncio.gather(*(collection.close() for collection in self._collections))
        await asyncio.gather(*(connection.close() for connection in self._connections))
        self._collections.clear()
        self._connections.clear()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def sync(
        self, table: str, filter: str | None = None, select: Sequence[str] | None = None
    ) -> Collection:
        """Follows the rows of a table, `schema.table`, that the filter admits (`state=eq.open`).

        `select`: these columns and the key. Of a table that is followed several times at once, each
        has a connection of its own; `mutate` waits for the first only.
        """
        self._the_queue()
        collection = Collection(self._connection_for(f"tide:table:{table}"), table, filter, select)
        self._collections.append(collection)
        return collection

    def mutate(self, ops: Sequence[Op]) -> asyncio.Future[Confirmed]:
        """Has the operations done in one transaction, once, after those that were asked for before.

        It is stored when this returns, and done whether or not anybody waits. Await it to hear what
        has become of it: by then the collections of this client have what it did (unless
        `echo_skipped`). Raises Rejected or MutationFailed.
        """
        return self._the_queue().add(ops).outcome

    @property
    def pending(self) -> list[Mutation]:
        """Those without an answer, from an earlier run too."""
        return list(self._the_queue().pending)

    async def drained(self) -> None:
        """Waits until each mutation that waits now has an outcome, whatever it is."""
        await self._the_queue().drained()

    async def set_token(self, token: str) -> None:
        """Shows another token, in time before the first one expires."""
        self._token = token
        await asyncio.gather(*(connection.set_token(token) for connection in self._connections))

    def _the_queue(self) -> MutationQueue:
        if self._queue is None:
            raise RuntimeError("the client is not open")
        return self._queue

    def _connection_for(self, topic: str) -> Connection:
        for connection in self._connections:
            if topic not in connection.topics:
                return connection
        connection = Connection(self._url, self._token)
        self._connections.append(connection)
        return connection
