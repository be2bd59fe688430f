"""What happens to a collection."""

from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]

#: RESET: all rows are gone, others may follow. UP_TO_DATE: the rows are what a SELECT would give.
Kind = Literal["RESET", "INSERT", "UPDATE", "DELETE", "UP_TO_DATE"]


@dataclass(frozen=True, slots=True)
class Change:
    """One step. Whoever takes all steps has the collection's rows."""

    kind: Kind
    old: Row | None = None
    new: Row | None = None
    #: Of the transaction, if the server told it (`meta_in_payload`).
    mutation_id: str | None = None
    position: str | None = None
