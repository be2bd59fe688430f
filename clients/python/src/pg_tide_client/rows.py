"""The rows of a collection, found by what changes say of them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .change import Row


class Rows:
    """Rows in the order in which they came.

    A change names its row by some of its columns: the key, or all of them where the table has none, or
    its replica identity is full. So nothing has to be known of keys before, and equal rows are as many
    as there are.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._next = 0
        self._columns: tuple[str, ...] | None = None
        #: By the hashes of the values of these columns.
        self._index: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def clear(self) -> None:
        """Forgets all, also what tells rows apart: that may be something else now."""
        self._rows.clear()
        self._columns = None
        self._index.clear()

    def add(self, row: Row) -> None:
        """One more."""
        self._put(self._next, row)
        self._next += 1

    def replace(self, old: Mapping[str, Any], new: Row, unchanged: list[str] | None) -> Row | None:
        """Gives a row its new values. Returns what it was; None: there was none, and it is added.

        `unchanged` are columns that the new one lacks since they stay what they are; None: not told, so
        all that it lacks.
        """
        number = self._find(old)
        if number is None:
            self.add(new)
            return None
        before = self._rows[number]
        kept = [name for name in before if name not in new] if unchanged is None else unchanged
        new.update((name, before[name]) for name in kept if name in before)
        self._unindex(number, before)
        self._put(number, new)
        return before

    def remove(self, old: Mapping[str, Any]) -> Row | None:
        """Takes a row away. Returns what it was; None: there was none."""
        number = self._find(old)
        if number is None:
            return None
        row = self._rows.pop(number)
        self._unindex(number, row)
        return row

    def _find(self, named: Mapping[str, Any]) -> int | None:
        columns = tuple(sorted(named))
        if columns != self._columns:
            self._columns = columns
            self._index.clear()
            for number, row in self._rows.items():
                self._index.setdefault(self._hash(row), []).append(number)
        for number in self._index.get(self._hash(named), ()):
            row = self._rows[number]
            if all(name in row and row[name] == value for name, value in named.items()):
                return number
        return None

    def _put(self, number: int, row: Row) -> None:
        self._rows[number] = row
        if self._columns is not None:
            self._index.setdefault(self._hash(row), []).append(number)

    def _unindex(self, number: int, row: Row) -> None:
        if self._columns is None:
            return
        hashed = self._hash(row)
        numbers = self._index[hashed]
        numbers.remove(number)
        if not numbers:
            del self._index[hashed]

    def _hash(self, row: Mapping[str, Any]) -> int:
        return hash(json.dumps([row.get(name) for name in self._columns or ()], sort_keys=True))
