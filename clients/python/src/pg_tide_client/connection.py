"""A websocket that is opened again whenever it is lost."""

import asyncio
import logging
from contextlib import suppress
from time import monotonic
from typing import Any

from realtime import AsyncRealtimeClient

from .backoff import Backoff

log = logging.getLogger(__name__)

#: Seconds that a connection lasts that went well.
GOOD = 5.0

#: Seconds after which a loss is noticed that nobody was told of.
GLANCE = 0.5


class Connection:
    """A stock client, which says what it says, and somebody who connects it again.

    The stock client's own way gives up after a few tries.
    """

    def __init__(self, url: str, token: str | None) -> None:
        # Not as the client's token: it would be part of the URL for good.
        params = {} if token is None else {"apikey": token}
        self.client = AsyncRealtimeClient(url, auto_reconnect=False, params=params)
        self.client.access_token = token
        #: Of channels that are open, or not yet closed.
        self.topics: set[str] = set()
        #: Why it was not opened, or how it ended.
        self.error: Exception | None = None
        self._is_up = asyncio.Event()
        self._is_lost = asyncio.Event()
        self._task = asyncio.create_task(self._keep())

    async def up(self) -> None:
        """Waits until it is connected."""
        await self._is_up.wait()

    def lose(self, error: Exception | None) -> None:
        """Says that it was lost."""
        self.error = error or self.error
        self._is_up.clear()
        self._is_lost.set()

    async def set_token(self, token: str) -> None:
        """Shows another token, now and from now on."""
        self.client.params["apikey"] = token
        await self.client.set_auth(token)

    async def close(self) -> None:
        """Ends it for good."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self.client.remove_all_channels()

    async def _keep(self) -> None:
        backoff = Backoff(0.1, 10.0)
        while True:
            opened = monotonic()
            self._is_lost.clear()
            try:
                await self.client.connect()
            except Exception as error:  # Whatever it is, there is nothing to do but try again.
                self.error = error
                log.info("not connected: %s", error)
            else:
                self._is_up.set()
                await self._until_lost()
                self._is_up.clear()
                log.info("the connection was lost: %s", self.error)
            if monotonic() - opened > GOOD:
                backoff.reset()
            await asyncio.sleep(backoff.next())

    async def _until_lost(self) -> None:
        while self.client.is_connected:
            # Not wait_for: Python 3.11's forgets that it was cancelled if it is done just then.
            with suppress(TimeoutError):
                async with asyncio.timeout(GLANCE):
                    await self._is_lost.wait()
            self._is_lost.clear()


def close_code(error: Exception | None) -> int | None:
    """The code that the server ended the connection with, if this is how it ended."""
    received: Any = getattr(error, "rcvd", None)
    code = getattr(received, "code", None)
    return code if isinstance(code, int) else None
