"""How long to wait before the next try."""

import random


class Backoff:
    """Twice as long each time, up to a limit, and never the same for all clients."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        """It went well."""
        self._next = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        wait = self._next
        self._next = min(2 * wait, self._longest)
        return wait * random.uniform(0.5, 1.0)
