"""What can go wrong, as exceptions."""

from typing import Any


class TideError(Exception):
    """What all of them are."""


class Closed(TideError):
    """The client was closed before there was an answer. What is in a file, the next client sends."""


class StoreInUse(TideError):
    """The file of a queue is another client's."""


class Refused(TideError):
    """A table cannot be followed: the server says why."""


class Rejected(TideError):
    """Postgres did not accept a mutation: nothing of it was written, and that is its outcome."""

    def __init__(
        self, sqlstate: str, reason: str, op: int | None, current: dict[str, Any] | None
    ) -> None:
        super().__init__(f"{reason} (SQLSTATE {sqlstate})")
        self.sqlstate = sqlstate
        self.reason = reason
        #: The index of the operation that failed; None: what is checked at the end.
        self.op = op
        #: The row as the client may see it.
        self.current = current


class MutationFailed(TideError):
    """A mutation has no outcome, and sending it again as it is would not help.

    `code` is one of docs/errors.md, "Mutations that are not done".
    """

    def __init__(self, code: str, reason: str, sqlstate: str | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.sqlstate = sqlstate
