"""Rows of Postgres tables as they change, and mutations that are each done once.

See `Client`: `sync` follows a table, `mutate` writes.
"""

from .change import Change, Row
from .client import Client
from .collection import Collection, Status
from .error import Closed, MutationFailed, Refused, Rejected, StoreInUse, TideError
from .mutation import Confirmed, Mutation, Op
from .store import FileStore, MemoryStore, QueueState, Store

__all__ = [
    "Change",
    "Client",
    "Closed",
    "Collection",
    "Confirmed",
    "FileStore",
    "MemoryStore",
    "Mutation",
    "MutationFailed",
    "Op",
    "QueueState",
    "Refused",
    "Rejected",
    "Row",
    "Status",
    "Store",
    "StoreInUse",
    "TideError",
]
