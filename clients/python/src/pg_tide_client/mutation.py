"""What a client asks to be written."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: `{"op": "insert", "table": "public.orders", "values": {...}}` and the like: docs/writing.md.
Op = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """It is done."""

    #: All of its events are before it.
    position: str
    #: One item for each operation.
    returning: list[Any]
    #: Its own events were not all told before it was answered.
    echo_skipped: bool = False


@dataclass(eq=False, slots=True)
class Mutation:
    """A few operations in one transaction."""

    ops: Sequence[Op]
    mutation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: What becomes of it.
    outcome: asyncio.Future[Confirmed] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {"mutation_id": self.mutation_id, "ops": list(self.ops)}
