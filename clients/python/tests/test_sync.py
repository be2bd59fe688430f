"""Collections are what a SELECT would give, whatever happens."""

import asyncio
from collections.abc import Callable

import pytest
from cluster import Cluster
from conftest import converges, ids, soon

from pg_tide_client import Change, Client, Collection, Refused, Row


def note(cluster: Cluster) -> str:
    """A text that is stored out of line: an UPDATE of something else leaves it out of the WAL."""
    return "(select string_agg(md5(i::text), '') from generate_series(1, 300) as i)"


async def run(cluster: Cluster, statements: str) -> None:
    """SQL, while the client goes on."""
    await asyncio.to_thread(cluster.sql, statements)


async def test_rows_that_there_are_and_what_becomes_of_them(
    cluster: Cluster, client: Client, table: str
) -> None:
    cluster.sql(f"insert into {table} select i, i, {note(cluster)} from generate_series(1, 2000) as i")
    collection = client.sync(table)
    for step in range(10):
        await run(
            cluster,
            f"update {table} set n = n + 1 where id % 10 = {step};"
            f" delete from {table} where id % 97 = {step};"
            f" update {table} set id = id + 100000 where id = {500 + step};"
            f" insert into {table} values ({10000 + step}, 1, null)",
        )

    await converges(cluster, collection, f"select * from {table}")
    await run(cluster, f"update {table} set n = 7 where id = 600; delete from {table} where id = 10000")
    await converges(cluster, collection, f"select * from {table}")
    assert collection.begun == 1


async def test_a_filter_and_columns(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} select i, i % 3, 'x' from generate_series(1, 100) as i")
    collection = client.sync(table, filter="n=eq.1", select=["n"])
    await soon(collection.up_to_date())

    await run(cluster, f"update {table} set n = 1 where id = 3; update {table} set n = 2 where id = 1")
    await converges(cluster, collection, f"select id, n from {table} where n = 1")


async def test_two_filters_of_one_table(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} select i, i % 2 from generate_series(1, 10) as i")
    collections = [client.sync(table, filter=f"n=eq.{n}") for n in range(2)]
    for n, collection in enumerate(collections):
        await converges(cluster, collection, f"select * from {table} where n = {n}")


async def test_a_table_without_a_key_has_equal_rows(cluster: Cluster, client: Client) -> None:
    cluster.sql(
        "create table keyless (a int, b text); alter table keyless replica identity full;"
        " grant select on keyless to authenticated; select tide.publish('keyless');"
        " insert into keyless values (1, 'x'), (1, 'x'), (2, null)"
    )
    collection = client.sync("public.keyless")
    await soon(collection.up_to_date())

    await run(cluster, "delete from keyless where ctid = (select min(ctid) from keyless)")
    await converges(cluster, collection, "select * from keyless")
    await run(cluster, "update keyless set b = 'y' where a = 2")
    await converges(cluster, collection, "select * from keyless")


async def test_a_truncate_is_a_new_beginning(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} values (1), (2)")
    collection = client.sync(table)
    await soon(collection.up_to_date())

    await run(cluster, f"truncate {table}")
    await run(cluster, f"insert into {table} values (3)")
    await converges(cluster, collection, f"select * from {table}")


async def test_another_column_is_a_new_beginning(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} values (1), (2)")
    collection = client.sync(table)
    await soon(collection.up_to_date())

    await run(cluster, f"alter table {table} add more text default 'x'")
    await run(cluster, f"insert into {table} values (3)")
    await converges(cluster, collection, f"select * from {table}")


async def lose(cluster: Cluster, collection: Collection) -> None:
    """Ends the connection, and waits until the client has noticed."""
    lost = asyncio.create_task(soon(collection.until(lambda c: c.status == "joining")))
    await asyncio.to_thread(cluster.cut)
    await lost


@pytest.mark.parametrize("meta_in_payload", [True, False])
async def test_a_connection_that_is_lost_again_and_again(
    cluster: Cluster, client: Client, table: str, meta_in_payload: bool
) -> None:
    rows = 60_000
    cluster.sql(f"insert into {table} select i, i, md5(i::text) from generate_series(1, {rows}) as i")
    collection = client.sync(table)
    # As with a server that does not know it.
    collection._channel.options["meta_in_payload"] = meta_in_payload
    for cut in range(3):
        # In the middle of the rows, as far as it has come.
        await soon(collection.until(lambda c: c.status == "up_to_date" or len(c.rows) > 1000))
        await run(
            cluster,
            f"update {table} set n = n + 1 where id % 1000 = {cut};"
            f" delete from {table} where id % 1000 = {500 + cut}",
        )
        await lose(cluster, collection)

    assert meta_in_payload or not collection.is_resumable
    await converges(cluster, collection, f"select * from {table}")


async def test_who_comes_back_goes_on_where_it_was(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} select i, 0, null from generate_series(1, 100) as i")
    collection = client.sync(table)
    await soon(collection.up_to_date())
    if not collection.is_resumable:
        pytest.skip("this server does not know meta_in_payload")

    await drop(client)
    await run(cluster, f"update {table} set n = 1 where id <= 50; delete from {table} where id > 90")
    await converges(cluster, collection, f"select * from {table}")
    assert collection.begun == 1


async def drop(client: Client) -> None:
    """Breaks the websocket, as a network does."""
    for connection in client._connections:
        websocket = connection.client._ws_connection
        assert websocket is not None
        websocket.transport.abort()


async def test_changes_are_told_in_order(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} values (1, 1), (2, 2)")
    collection = client.sync(table)
    rows: dict[int, Row] = {}
    seen: list[Change] = []

    async def follow(is_enough: Callable[[], bool]) -> None:
        async for change in collection:
            seen.append(change)
            if change.kind == "RESET":
                rows.clear()
            if change.old is not None:
                del rows[change.old["id"]]
            if change.new is not None:
                assert change.new["id"] not in rows
                rows[change.new["id"]] = change.new
            if is_enough():
                return

    await soon(follow(lambda: seen[-1].kind == "UP_TO_DATE"))
    assert sorted(rows) == [1, 2]
    following = asyncio.create_task(soon(follow(lambda: 4 in rows)))
    await run(
        cluster,
        f"update {table} set n = 9 where id = 1; delete from {table} where id = 2;"
        f" insert into {table} values (3)",
    )
    await run(cluster, f"insert into {table} values (4)")
    await following
    assert sorted(rows) == ids(collection.rows) == [1, 3, 4]
    assert [change.kind for change in seen[-4:]] == ["UPDATE", "DELETE", "INSERT", "INSERT"]


async def test_a_table_that_may_not_be_read_is_refused(client: Client) -> None:
    collection = client.sync("public.no_such_table")
    with pytest.raises(Refused, match="Unauthorized"):
        await soon(collection.up_to_date())
    assert collection.status == "failed"


async def test_a_collection_that_is_closed_can_be_had_again(
    cluster: Cluster, client: Client, table: str
) -> None:
    cluster.sql(f"insert into {table} values (1)")
    for _ in range(3):
        async with client.sync(table) as collection:
            await soon(collection.up_to_date())
            assert ids(collection.rows) == [1]
        assert collection.status == "closed"


async def test_another_token_is_shown(cluster: Cluster, client: Client, table: str) -> None:
    collection = client.sync(table)
    await soon(collection.up_to_date())
    await client.set_token(cluster.token({"renewed": True}))
    await run(cluster, f"insert into {table} values (1)")
    await converges(cluster, collection, f"select * from {table}")
