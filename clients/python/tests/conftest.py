"""The cluster that all tests share, and a table of its own for each."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

import pytest
from cluster import Cluster, in_order

from pg_tide_client import Client, Collection, Row

DEADLINE = 60.0

T = TypeVar("T")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Gone when the tests are."""
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def table(cluster: Cluster) -> str:
    """A published table that clients may do anything with: `id`, `n`, `note`."""
    name = f"t_{next(_numbers)}"
    cluster.sql(
        f"create table {name} (id int primary key, n int not null default 0 check (n >= 0),"
        " note text);"
        f" grant all on {name} to authenticated; select tide.publish('{name}')"
    )
    return f"public.{name}"


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    """Of a user who may use the role `authenticated`."""
    async with Client(cluster.url, cluster.token()) as client:
        yield client


async def soon(awaited: Awaitable[T]) -> T:
    """Gives up on what does not come."""
    return await asyncio.wait_for(awaited, DEADLINE)


async def converges(cluster: Cluster, collection: Collection, query: str) -> None:
    """Waits until the collection is what the query returns."""
    expected = await asyncio.to_thread(cluster.rows, query)

    def is_equal(collection: Collection) -> bool:
        return collection.status == "up_to_date" and in_order(collection.rows) == expected

    try:
        await soon(collection.until(is_equal))
    except TimeoutError:
        assert (collection.status, in_order(collection.rows)) == ("up_to_date", expected)
        raise


def ids(rows: list[Row]) -> list[int]:
    """Their keys, in order."""
    return sorted(row["id"] for row in rows)
