"""Mutations in their order, sent until they are answered."""

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from .backoff import Backoff
from .channel import Channel
from .connection import Connection, close_code
from .error import Closed, MutationFailed, Refused, Rejected
from .mutation import Confirmed, Mutation, Op
from .store import QueueState, Store

log = logging.getLogger(__name__)

TOPIC = "tide:mutations"

#: As many are sent before the answers are waited for.
BATCH = 32

#: Seconds for an answer. Sending one again is safe.
PATIENCE = 30.0

#: Nothing was written, the number is not used up, and the same again would be answered the same.
USELESS = ("refused", "malformed", "size", "disabled")

#: The number is used up.
SPENT = ("expired", "reused")

#: The websocket was closed for a message that is too large.
TOO_LARGE = 1009


class MutationQueue:
    """The client's mutations.

    The number of one is that of the first that waits and its place behind it, so that the others close
    up where one is given up that was not done.
    """

    def __init__(self, connection: Connection, store: Store) -> None:
        """Goes on with what the store has."""
        self._store = store
        state = store.open() or QueueState(client_id=str(uuid.uuid4()))
        self._client_id = state.client_id
        self._next = state.next
        self.pending = [Mutation(**mutation) for mutation in state.pending]
        # Sent, and not yet answered.
        self._asked: set[str] = set()
        self._has_trouble = False
        self._has_progress = False
        self._batch = BATCH
        self._connection = connection
        self._news = asyncio.Event()
        self._channel: Channel | None = None
        self._refusal: str | None = None
        self._task = asyncio.create_task(self._keep())

    def add(self, ops: Sequence[Op]) -> Mutation:
        """Keeps one more, to be sent after the others. Raises as `json.dumps` if it is not JSON."""
        ops = json.loads(json.dumps(list(ops), allow_nan=False))
        mutation = Mutation(ops)
        self.pending.append(mutation)
        try:
            self._save()
        except BaseException:
            self.pending.remove(mutation)
            raise
        self._news.set()
        return mutation

    async def drained(self) -> None:
        """Waits until each that waits now has an outcome, whatever it is."""
        outcomes = [mutation.outcome for mutation in self.pending]
        if outcomes:
            await asyncio.wait(outcomes)

    async def close(self) -> None:
        """Sends nothing any more. What has no outcome stays in the store."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._channel is not None:
            await self._channel.close()
        for mutation in self.pending:
            if not mutation.outcome.done():
                mutation.outcome.set_exception(
                    Closed("the client was closed before there was an answer")
                )
                # Who waits for it is told all the same.
                mutation.outcome.exception()
        self._store.close()

    # What the channel says.

    def on_joined(self) -> None:
        """See `Listener`."""
        self._news.set()

    def on_parted(self, error: Exception | None) -> None:
        """See `Listener`."""
        if close_code(error) == TOO_LARGE and self._asked:
            self._find_too_large()
        self._asked.clear()
        self._news.set()

    def on_refused(self, reason: str) -> None:
        """See `Listener`. Who may not join the topic may not write."""
        self._refusal = reason
        self._news.set()

    def on_notice(self, extension: str, message: str) -> None:
        """See `Listener`."""

    def on_event(self, event: str, payload: dict[str, Any], meta: Mapping[str, Any]) -> None:
        """See `Listener`."""
        if event != "tide:mutation" or payload.get("client_id") not in (self._client_id, None):
            return
        mutation_id = payload.get("mutation_id")
        self._asked.discard(str(mutation_id))
        for place, mutation in enumerate(self.pending):
            if mutation.mutation_id == mutation_id:
                self._settle(mutation, place, payload)
                break
        self._news.set()

    # How they are sent.

    async def _keep(self) -> None:
        backoff = Backoff(0.1, 5.0)
        while True:
            await self._until_ready()
            self._has_trouble = self._has_progress = False
            await self._send_batch()
            if self._has_progress:
                backoff.reset()
            if self._has_trouble:
                await asyncio.sleep(backoff.next())

    async def _until_ready(self) -> None:
        while not (self.pending and self._channel is not None and self._channel.is_joined):
            if self.pending and self._refusal is not None:
                self._give_up(Refused(self._refusal))
            elif self.pending and self._channel is None:
                self._channel = Channel(self._connection, TOPIC, {"ack": True}, self)
            self._news.clear()
            await self._news.wait()

    async def _send_batch(self) -> None:
        """Sends the first few, and waits for all of the answers."""
        channel = self._channel
        if channel is None:
            return
        first = self._next
        batch = self.pending[: self._batch]
        for place, mutation in enumerate(batch):
            # The numbers of the others are others now.
            if self._has_trouble or not channel.is_joined:
                break
            self._asked.add(mutation.mutation_id)
            body = {**mutation.to_json(), "client_id": self._client_id, "n": first + place}
            await channel.send("tide:mutate", body)
        deadline = monotonic() + PATIENCE
        while self._asked and channel.is_joined:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline - monotonic()):
                    await self._news.wait()
            if monotonic() >= deadline:
                break
        self._asked.clear()

    def _settle(self, mutation: Mutation, place: int, answer: dict[str, Any]) -> None:
        status = answer.get("status")
        if status in ("confirmed", "rejected"):
            # Of one behind others it is asked again: their answers come first.
            if place == 0:
                self._take_outcome(mutation, answer)
            return
        code, reason = str(answer.get("code")), str(answer.get("reason"))
        if code == "out_of_order":
            # Those behind another that was not done are sent again with it.
            if place == 0:
                self._has_trouble = True
                self._next = int(answer["expected"])
                self._save()
        elif code in USELESS:
            self._has_trouble = True
            self._fail(mutation, MutationFailed(code, reason, answer.get("sqlstate")))
        elif code in SPENT:
            if place == 0:
                self._next += 1
                self._fail(mutation, MutationFailed(code, reason))
        else:
            log.info("a mutation is sent again: %s: %s", code, reason)
            self._has_trouble = True

    def _take_outcome(self, mutation: Mutation, answer: dict[str, Any]) -> None:
        self._next = int(answer["n"]) + 1
        self._has_progress = True
        self._batch = BATCH
        if answer["status"] == "rejected":
            sqlstate, reason = str(answer.get("sqlstate")), str(answer.get("reason"))
            self._fail(mutation, Rejected(sqlstate, reason, answer.get("op"), answer.get("current")))
            return
        self.pending.remove(mutation)
        self._save()
        if not mutation.outcome.done():
            skipped = answer.get("echo") == "skipped"
            returning = answer.get("returning") or []
            mutation.outcome.set_result(Confirmed(str(answer.get("position")), returning, skipped))

    def _fail(self, mutation: Mutation, error: Exception) -> None:
        self.pending.remove(mutation)
        self._save()
        if not mutation.outcome.done():
            mutation.outcome.set_exception(error)

    def _give_up(self, error: Refused) -> None:
        for mutation in list(self.pending):
            self._fail(mutation, error)

    def _find_too_large(self) -> None:
        """The connection was closed for one of those that were sent: alone, it is found."""
        if self._batch > 1:
            self._batch = 1
        elif self.pending and self.pending[0].mutation_id in self._asked:
            reason = "it is larger than any message may be: make several of it"
            self._fail(self.pending[0], MutationFailed("size", reason))
            self._batch = BATCH

    def _save(self) -> None:
        pending = [mutation.to_json() for mutation in self.pending]
        self._store.save(QueueState(self._client_id, self._next, pending))
