"""A topic that is joined for as long as it is wanted."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol, cast

from realtime import AsyncRealtimeChannel
from realtime import RealtimeSubscribeStates as State
from realtime.message import SuccessSystemPayload
from realtime.types import BroadcastPayload, RealtimeChannelOptions

from .backoff import Backoff
from .connection import Connection

log = logging.getLogger(__name__)

#: Seconds that a channel lasts that went well.
GOOD = 30.0

#: Seconds for the answer to a leave: a little more than the stock client waits.
LEAVE = 12.0

#: Beginnings of the reasons of refused joins that may be accepted when it is tried again, or with
#: another token.
PASSING = (
    "UnableToConnectToProject",
    "ClientJoinRateLimitReached",
    "ChannelRateLimitReached",
    "MemoryLimitReached",
    "InvalidJWTToken",
    "MalformedJWT",
    "JwtSignatureError",
    "MissingAPIKey",
    "Unauthorized: the role",
)

#: `extension` of system messages with status error after which no more comes.
FINAL = ("tide.snapshot", "tide.filter")


class Listener(Protocol):
    """Who is told what comes on a channel. What it raises ends the channel."""

    def on_joined(self) -> None:
        """All that is told from now on is of this join."""

    def on_parted(self, error: Exception | None) -> None:
        """It is not joined any more, and will be again."""

    def on_event(self, event: str, payload: dict[str, Any], meta: Mapping[str, Any]) -> None:
        """A broadcast. `meta` is its `id` alone where the server has no `meta_in_payload`."""

    def on_notice(self, extension: str, message: str) -> None:
        """A system message with status ok."""

    def on_refused(self, reason: str) -> None:
        """It is over: the server does not have it."""


class Channel:
    """A stock channel after the other.

    The stock client passes over which join of a topic a frame is of. So a topic is left before it is
    joined again, unless the connection is another, and what comes before the answer to a join is not
    passed on.
    """

    def __init__(
        self, connection: Connection, topic: str, options: dict[str, Any], listener: Listener
    ) -> None:
        """`options` is `config.broadcast`; changes of it count from the next join on."""
        self.options = options
        self._connection = connection
        self._topic = topic
        self._listener = listener
        self._stock: AsyncRealtimeChannel | None = None
        self._is_over = asyncio.Event()
        self._is_closing = False
        connection.topics.add(topic)
        self._task = asyncio.create_task(self._keep())

    @property
    def is_joined(self) -> bool:
        """Whether something can be sent."""
        stock = self._stock
        return stock is not None and stock.is_joined and self._connection.client.is_connected

    async def send(self, event: str, payload: Mapping[str, Any]) -> None:
        """Sends a broadcast, if it is joined."""
        if self._stock is not None:
            await self._stock.send_broadcast(event, payload)

    def restart(self) -> None:
        """Leaves it and joins it again."""
        self._is_over.set()

    async def close(self) -> None:
        """Leaves it for good."""
        self._is_closing = True
        self._is_over.set()
        if self._connection.client.is_connected:
            await asyncio.wait([self._task], timeout=2 * LEAVE)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._end()

    async def _keep(self) -> None:
        backoff = Backoff(0.1, 10.0)
        while not self._is_closing:
            opened = monotonic()
            self._is_over.clear()
            await self._open()
            await self._is_over.wait()
            self._stock = None
            await self._leave()
            if not self._is_closing:
                if monotonic() - opened > GOOD:
                    backoff.reset()
                await asyncio.sleep(backoff.next())
        self._end()

    def _end(self) -> None:
        self._stock = None
        self._forget()
        self._connection.topics.discard(self._topic)

    async def _open(self) -> None:
        while not self._is_over.is_set():
            await self._connection.up()
            stock = self._make()
            self._stock = stock
            try:
                await stock.subscribe(self._turner(stock))
                return
            except Exception as error:  # The connection was lost just now.
                log.info("%s is not joined: %s", self._topic, error)
                await self._leave()

    def _make(self) -> AsyncRealtimeChannel:
        params = {"config": {"broadcast": self.options, "presence": None, "private": False}}
        stock = self._connection.client.channel(self._topic, cast(RealtimeChannelOptions, params))
        stock.on_broadcast("*", lambda broadcast: self._guard(stock, self._hear, broadcast))
        stock.on_system(lambda notice: self._guard(stock, self._note, notice))
        return stock

    def _turner(self, stock: AsyncRealtimeChannel) -> Callable[[State, Exception | None], None]:
        return lambda state, error: self._guard(stock, self._turn, (state, error))

    async def _leave(self) -> None:
        """Twice: what the server says of the first, it has said before it answers the second."""
        for _ in range(2):
            if not self._connection.client.is_connected:
                # It has left them all.
                self._forget()
                return
            stock = self._connection.client.channel(self._topic)
            closed = asyncio.Event()
            stock.subscribe_callback = lambda state, _error, closed=closed: (
                closed.set() if state == State.CLOSED else None
            )
            with suppress(Exception):
                await stock.unsubscribe()
                async with asyncio.timeout(LEAVE):
                    await closed.wait()

    def _forget(self) -> None:
        client = self._connection.client
        stock = client.channels.pop(f"realtime:{self._topic}", None)
        if stock is not None:
            stock.rejoin_timer.reset()
            stock.join_push.destroy()

    def _guard(self, stock: AsyncRealtimeChannel, take: Any, what: Any) -> None:
        """What is raised here would end the stock client's reading, and nobody would know."""
        if stock is not self._stock:
            return
        try:
            take(stock, what)
        except Exception as error:
            log.exception("%s ends", self._topic)
            self._refuse(f"the client failed: {error!r}")

    def _hear(self, stock: AsyncRealtimeChannel, broadcast: BroadcastPayload) -> None:
        if not stock.is_joined:
            return
        payload = broadcast["payload"]
        meta = payload.pop("_meta", None) or broadcast.get("meta") or {}
        self._listener.on_event(broadcast["event"], payload, meta)

    def _note(self, stock: AsyncRealtimeChannel, notice: SuccessSystemPayload) -> None:
        if stock.is_joined:
            self._listener.on_notice(notice.extension, notice.message)

    def _turn(self, _stock: AsyncRealtimeChannel, turn: tuple[State, Exception | None]) -> None:
        state, error = turn
        if state == State.SUBSCRIBED:
            self._listener.on_joined()
            return
        self._listener.on_parted(error)
        if state == State.CLOSED:
            self._is_over.set()
        elif state == State.CHANNEL_ERROR:
            if self._connection.client.is_connected:
                self._fail(_details(error))
            else:
                self._connection.lose(error)

    def _fail(self, details: Mapping[str, Any]) -> None:
        """Of a refused join, an error that the server told, or the end of the channel."""
        reason = str(details.get("reason") or details.get("message") or "")
        if "reason" not in details:
            if details.get("extension") in FINAL:
                self._refuse(reason)
            else:
                self._is_over.set()
        elif reason.startswith("InvalidPosition"):
            self.options.pop("since", None)
            self.options.pop("resume", None)
        elif not reason.startswith(PASSING) and not reason.endswith("try again"):
            self._refuse(reason)
        # Else the stock client tries again by itself.

    def _refuse(self, reason: str) -> None:
        self._is_closing = True
        self._is_over.set()
        self._listener.on_refused(reason)


def _details(error: Exception | None) -> Mapping[str, Any]:
    try:
        details = json.loads(str(error))
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}
