"""Where mutations wait that have no answer yet."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from .error import StoreInUse

try:
    import fcntl
except ImportError:  # Not on Windows: two clients of one file are not kept apart there.
    fcntl = None  # type: ignore[assignment]


@dataclass(slots=True)
class QueueState:
    """What a client has to know to go on."""

    client_id: str
    #: The number of the first that waits, or of the next.
    next: int = 1
    #: Each with `mutation_id` and `ops`, in their order.
    pending: list[dict[str, Any]] = field(default_factory=list)


class Store(Protocol):
    """Keeps the state of one queue. Each client has its own."""

    def open(self) -> QueueState | None:
        """What was saved last; None: nothing."""

    def save(self, state: QueueState) -> None:
        """From the return on it is kept, whatever happens."""

    def close(self) -> None:
        """Lets another client have it."""


class MemoryStore:
    """Keeps them for as long as the program runs."""

    def __init__(self) -> None:
        self._state: QueueState | None = None

    def open(self) -> QueueState | None:
        """See `Store`."""
        return self._state

    def save(self, state: QueueState) -> None:
        """See `Store`."""
        self._state = state

    def close(self) -> None:
        """See `Store`."""


class FileStore:
    """Keeps them in a file of JSON, which survives the program and the machine's crash."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock: IO[bytes] | None = None

    def open(self) -> QueueState | None:
        """See `Store`. Raises StoreInUse if another client has the file."""
        lock = self._path.with_name(self._path.name + ".lock").open("wb")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StoreInUse(f"{self._path} is another client's") from None
        self._lock = lock
        try:
            return QueueState(**json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def save(self, state: QueueState) -> None:
        """See `Store`."""
        new = self._path.with_name(self._path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(state), file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        if os.name == "posix":
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """See `Store`."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
