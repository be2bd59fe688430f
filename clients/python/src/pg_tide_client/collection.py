"""The rows of a table, as they are."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from .change import Change, Row
from .channel import Channel
from .connection import Connection
from .error import Closed, Refused
from .rows import Rows

log = logging.getLogger(__name__)

#: joining: nothing is known yet, or the connection was lost: `rows` are what they were. loading: more
#: is on its way. up_to_date: `rows` are what a SELECT would give. failed: see `error`. closed: by
#: `close`.
Status = Literal["joining", "loading", "up_to_date", "failed", "closed"]

#: Notices after which something is missing that will not come.
MISSING = ("tide.error", "tide.policy")


class Collection:
    """What a SELECT of the table would give to the client, kept up to date.

    Iterate over it to follow: what there is comes first, then what changes. Each iteration has a queue
    of its own, which grows while it is not read.
    """

    def __init__(
        self, connection: Connection, table: str, filter: str | None, select: Sequence[str] | None
    ) -> None:
        """Made by `Client.sync`."""
        self.table = table
        #: Why it has failed.
        self.error: Refused | None = None
        #: How often it began with all rows.
        self.begun = 0
        self._status: Status = "joining"
        self._rows = Rows()
        # There has been an up_to_date since the rows began.
        self._is_complete = False
        self._seen: str | None = None
        self._news = asyncio.Event()
        self._queues: list[tuple[deque[Change], asyncio.Event]] = []
        options: dict[str, Any] = {"snapshot": True, "meta_in_payload": True}
        if filter is not None:
            options["filter"] = filter
        if select is not None:
            options["select"] = list(select)
        self._channel = Channel(connection, f"tide:table:{table}", options, self)

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order in which they came. They are not to be changed."""
        return list(self._rows)

    @property
    def status(self) -> Status:
        """How far it is."""
        return self._status

    @property
    def is_resumable(self) -> bool:
        """Whether it can go on where it is; else it begins anew when it comes back."""
        return self._channel.options.get("resume") is not None

    async def until(self, condition: Callable[[Self], bool]) -> None:
        """Waits until the condition holds, which is asked after each change. Raises if it failed."""
        while not condition(self):
            if self.error is not None:
                raise self.error
            if self._status == "closed":
                raise Closed("the collection is closed")
            news = self._news
            await news.wait()

    async def up_to_date(self) -> None:
        """Waits until `rows` are what a SELECT would give."""
        await self.until(lambda collection: collection.status == "up_to_date")

    async def close(self) -> None:
        """Forgets nothing, but hears of nothing any more. Iterations end."""
        if self._status != "failed":
            self._turn("closed")
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Change]:
        queue = deque([Change("RESET")])
        queue.extend(Change("INSERT", new=row) for row in self._rows)
        if self._status == "up_to_date":
            queue.append(Change("UP_TO_DATE"))
        reader = (queue, asyncio.Event())
        self._queues.append(reader)
        try:
            while True:
                while queue:
                    yield queue.popleft()
                if self.error is not None:
                    raise self.error
                if self._status == "closed":
                    return
                reader[1].clear()
                await reader[1].wait()
        finally:
            self._queues.remove(reader)

    # What the channel says.

    def on_joined(self) -> None:
        """See `Listener`."""
        self._turn("loading")

    def on_parted(self, error: Exception | None) -> None:
        """See `Listener`."""
        if self._status in ("loading", "up_to_date"):
            self._turn("joining")

    def on_refused(self, reason: str) -> None:
        """See `Listener`."""
        self.error = Refused(reason)
        self._turn("failed")

    def on_notice(self, extension: str, message: str) -> None:
        """See `Listener`."""
        if extension == "tide.caught_up" and self._is_complete:
            self._finish(None)
        elif extension in MISSING:
            log.warning("%s begins anew: %s", self.table, message)
            self._channel.options.pop("resume", None)
            self._channel.options.pop("since", None)
            self._channel.restart()

    def on_event(self, event: str, payload: dict[str, Any], meta: Mapping[str, Any]) -> None:
        """See `Listener`."""
        position = meta.get("id")
        if event == "SNAPSHOT":
            self._take_page(payload)
        elif event == "up_to_date":
            self._is_complete = True
            self._finish(position)
        elif event == "TRUNCATE":
            # The channel ends, and begins anew.
            self._forget()
        else:
            if position is not None:
                if self._has_seen(position):
                    return
                self._seen = position
            self._take(event, payload, meta)
        options = self._channel.options
        if position is not None:
            options["since"] = position
        if "resume" in meta:
            options["resume"] = meta["resume"]
        self._tell()

    def _has_seen(self, position: str) -> bool:
        """Whether it is told a second time. Positions of one epoch have the order of their texts."""
        seen = self._seen
        if seen is None or seen.partition(".")[0] != position.partition(".")[0]:
            return False
        return position <= seen

    def _take_page(self, page: dict[str, Any]) -> None:
        if page.get("fresh"):
            self._forget()
            self.begun += 1
        for row in page["rows"]:
            self._rows.add(row)
            self._say(Change("INSERT", new=row))

    def _take(self, event: str, payload: dict[str, Any], meta: Mapping[str, Any]) -> None:
        new, named = payload.get("record"), payload.get("old_record") or {}
        old = None
        if event == "INSERT":
            self._rows.add(new or {})
        elif event == "UPDATE":
            # All of `meta` is there, or its id at most.
            unchanged = meta.get("unchanged") or [] if meta.keys() - {"id"} else None
            old = self._rows.replace(named, new or {}, unchanged)
        elif event == "DELETE":
            old, new = self._rows.remove(named), None
            if old is None:
                return
        else:
            return
        kind: Literal["INSERT", "UPDATE", "DELETE"]
        kind = "DELETE" if new is None else "INSERT" if old is None else "UPDATE"
        self._say(Change(kind, old, new, meta.get("mutation_id"), meta.get("id")))

    def _forget(self) -> None:
        self._rows.clear()
        self._is_complete = False
        self._seen = None
        if self._status == "up_to_date":
            self._status = "loading"
        self._say(Change("RESET"))

    def _finish(self, position: str | None) -> None:
        self._say(Change("UP_TO_DATE", position=position))
        self._turn("up_to_date")

    def _turn(self, status: Status) -> None:
        self._status = status
        self._tell()

    def _say(self, change: Change) -> None:
        for queue, _ in self._queues:
            queue.append(change)

    def _tell(self) -> None:
        for _, has_more in self._queues:
            has_more.set()
        self._news.set()
        self._news = asyncio.Event()
