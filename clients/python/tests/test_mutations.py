"""Mutations are done once and in order, and who asked hears what became of each."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from conftest import converges, ids, soon

from pg_tide_client import (
    Client,
    Closed,
    Confirmed,
    FileStore,
    MutationFailed,
    Op,
    Rejected,
    StoreInUse,
)


def insert(table: str, number: int, **values: Any) -> list[Op]:
    """One row."""
    values = {"id": number, **values}
    return [{"op": "insert", "table": table, "values": values, "returning": ["id"]}]


def log_table(cluster: Cluster, table: str) -> str:
    """A table beside it that has each row in the order in which it was inserted."""
    name = f"{table}_log"
    cluster.sql(
        f"create table {name} (at bigint generated always as identity, id int);"
        f" create function {name}_trigger() returns trigger language plpgsql security definer as"
        f" $$ begin insert into {name} (id) values (new.id); return new; end $$;"
        f" create trigger log after insert on {table}"
        f" for each row execute function {name}_trigger()"
    )
    return name


def logged(cluster: Cluster, name: str) -> list[int]:
    text = cluster.sql(f"select coalesce(json_agg(id order by at), '[]') from {name}")
    numbers: list[int] = json.loads(text)
    return numbers


async def test_a_mutation_is_seen_before_it_is_answered(
    cluster: Cluster, client: Client, table: str
) -> None:
    collection = client.sync(table)
    await soon(collection.up_to_date())

    for number in range(5):
        confirmed = await soon(client.mutate(insert(table, number, note="x")))
        assert confirmed.returning == [{"id": number}]
        assert confirmed.position
        assert not confirmed.echo_skipped
        assert ids(collection.rows) == list(range(number + 1))


async def test_a_rejection_has_the_row_as_it_is(cluster: Cluster, client: Client, table: str) -> None:
    cluster.sql(f"insert into {table} values (1, 1, 'mine')")
    ops: list[Op] = [
        *insert(table, 2),
        {"op": "set", "table": table, "key": {"id": 1}, "values": {"n": -1}},
    ]
    rejected, confirmed = client.mutate(ops), client.mutate(insert(table, 3))

    with pytest.raises(Rejected) as caught:
        await soon(rejected)
    assert (caught.value.sqlstate, caught.value.op) == ("23514", 1)
    assert caught.value.current == {"id": 1, "n": 1, "note": "mine"}
    await soon(confirmed)
    assert [row["id"] for row in cluster.rows(f"select id from {table}")] == [1, 3]


async def test_a_version_that_is_another_is_rejected(
    cluster: Cluster, client: Client, table: str
) -> None:
    cluster.sql(f"select tide.version_column('{table}', 'n'); insert into {table} values (1, 5, 'x')")
    with pytest.raises(Rejected) as caught:
        await soon(
            client.mutate(
                [
                    {
                        "op": "set",
                        "table": table,
                        "key": {"id": 1},
                        "values": {"note": "y"},
                        "if_version": 4,
                    }
                ]
            )
        )
    assert caught.value.sqlstate == "TD004"
    assert caught.value.current == {"id": 1, "n": 5, "note": "x"}


async def test_what_is_no_mutation_is_told_and_the_others_go_on(
    cluster: Cluster, client: Client, table: str
) -> None:
    log = log_table(cluster, table)
    bad: Sequence[Sequence[Op]] = [
        [{"op": "no such operation", "table": table}],
        insert(table, 100, note="x" * 300_000),
        # Larger than any message: the server closes the connection.
        insert(table, 101, note="x" * 2_000_000),
    ]
    asked: list[asyncio.Future[Confirmed]] = []
    failing: list[asyncio.Future[Confirmed]] = []
    for number, ops in enumerate(bad):
        asked.append(client.mutate(insert(table, number)))
        failing.append(client.mutate(ops))
    asked.append(client.mutate(insert(table, len(bad))))

    codes = []
    for outcome in failing:
        with pytest.raises(MutationFailed) as caught:
            await soon(outcome)
        codes.append(caught.value.code)
    assert codes == ["malformed", "size", "size"]
    await soon(asyncio.gather(*asked))
    assert logged(cluster, log) == list(range(len(bad) + 1))


async def test_what_is_not_json_is_not_taken(client: Client, table: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        client.mutate(insert(table, 1, n=float("nan")))
    with pytest.raises(TypeError):
        client.mutate(insert(table, 1, note=object()))
    assert client.pending == []


async def test_more_than_the_rate_are_done_all_the_same(
    cluster: Cluster, client: Client, table: str
) -> None:
    log = log_table(cluster, table)
    count = 400
    asked = [client.mutate(insert(table, number)) for number in range(count)]
    await soon(asyncio.gather(*asked))
    assert logged(cluster, log) == list(range(count))


async def test_a_role_that_may_write_nothing_is_told(cluster: Cluster, table: str) -> None:
    token = cluster.sql("select tide.token('anon', '{}', interval '1 hour')")
    async with Client(cluster.url, token) as client:
        with pytest.raises(MutationFailed) as caught:
            await soon(client.mutate(insert(table, 1)))
        assert caught.value.code == "refused"
        assert client.pending == []


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_a_server_that_stops_and_starts_does_each_once(
    cluster: Cluster, client: Client, table: str, how: str
) -> None:
    log = log_table(cluster, table)
    collection = client.sync(table)
    await soon(collection.up_to_date())
    count, stops = 60, 3
    asked: list[asyncio.Future[Confirmed]] = []
    for stop in range(stops):
        asked += [client.mutate(insert(table, stop * count + n)) for n in range(count)]
        # In the middle of them.
        await soon(asked[stop * count + count // 3])
        await asyncio.to_thread(cluster.stop, how)
        await asyncio.to_thread(cluster.start)

    await soon(asyncio.gather(*asked))
    assert logged(cluster, log) == list(range(stops * count))
    await converges(cluster, collection, f"select * from {table}")


async def test_what_is_asked_while_the_server_is_away_is_done_later(
    cluster: Cluster, client: Client, table: str
) -> None:
    await soon(client.mutate(insert(table, 0)))
    await asyncio.to_thread(cluster.stop)
    asked = [client.mutate(insert(table, n)) for n in range(1, 5)]
    assert len(client.pending) == 4
    await asyncio.to_thread(cluster.start)
    await soon(asyncio.gather(*asked))
    assert ids(cluster.rows(f"select id from {table}")) == list(range(5))


async def test_a_queue_in_a_file_survives_the_program(
    cluster: Cluster, table: str, tmp_path: Path
) -> None:
    log = log_table(cluster, table)
    path, token = tmp_path / "queue.json", cluster.token()
    async with Client(cluster.url, token, store=FileStore(path)) as client:
        await soon(client.mutate(insert(table, 0)))
        with pytest.raises(StoreInUse):
            await Client(cluster.url, token, store=FileStore(path)).open()
    # A program that ends before anything is sent.
    async with Client("ws://localhost:1/realtime/v1", token, store=FileStore(path)) as client:
        lost = [client.mutate(insert(table, n)) for n in (1, 2, 3)]
    for outcome in lost:
        with pytest.raises(Closed):
            await outcome

    async with Client(cluster.url, token, store=FileStore(path)) as client:
        assert len(client.pending) == 3
        outcomes = [mutation.outcome for mutation in client.pending]
        asked = client.mutate(insert(table, 4))
        await soon(client.drained())
        assert [outcome.result().returning for outcome in outcomes] == [[{"id": n}] for n in (1, 2, 3)]
        await asked
    assert logged(cluster, log) == [0, 1, 2, 3, 4]
    assert json.loads(path.read_text())["pending"] == []


async def test_a_program_that_ends_before_the_answer_has_written_once(
    cluster: Cluster, table: str, tmp_path: Path
) -> None:
    log = log_table(cluster, table)
    path, token = tmp_path / "queue.json", cluster.token()
    before: str | None = None
    async with Client(cluster.url, token, store=FileStore(path)) as client:
        asked = [client.mutate(insert(table, n)) for n in range(20)]
        before = path.read_text()
        await soon(asyncio.gather(*asked))
    # As it was before the first of them was answered.
    path.write_text(before)

    async with Client(cluster.url, token, store=FileStore(path)) as client:
        outcomes = [mutation.outcome for mutation in client.pending]
        assert len(outcomes) == 20
        await soon(asyncio.gather(*outcomes))
        await soon(client.mutate(insert(table, 20)))
    assert logged(cluster, log) == list(range(21))


async def test_a_server_that_has_forgotten_the_client_is_begun_anew_with(
    cluster: Cluster, client: Client, table: str
) -> None:
    for number in range(3):
        await soon(client.mutate(insert(table, number)))
    cluster.sql("select tide.forget_clients('0'); delete from tide.mutation")

    asked = [client.mutate(insert(table, number)) for number in range(3, 6)]
    await soon(asyncio.gather(*asked))
    assert ids(cluster.rows(f"select id from {table}")) == list(range(6))


async def test_a_file_that_is_older_than_what_was_done_is_told(
    cluster: Cluster, table: str, tmp_path: Path
) -> None:
    path, token = tmp_path / "queue.json", cluster.token()
    async with Client(cluster.url, token, store=FileStore(path)) as client:
        await soon(client.mutate(insert(table, 0)))
        before = path.read_text()
        await soon(client.mutate(insert(table, 1)))
    path.write_text(before)

    async with Client(cluster.url, token, store=FileStore(path)) as client:
        reused, confirmed = client.mutate(insert(table, 2)), client.mutate(insert(table, 3))
        with pytest.raises(MutationFailed) as caught:
            await soon(reused)
        assert caught.value.code == "reused"
        await soon(confirmed)
    assert ids(cluster.rows(f"select id from {table}")) == [0, 1, 3]


async def test_where_clients_write_nothing_they_are_told(
    cluster: Cluster, client: Client, table: str
) -> None:
    async def restart(writers: str) -> None:
        await asyncio.to_thread(cluster.sql, f"alter system {writers}")
        await asyncio.to_thread(cluster.stop)
        await asyncio.to_thread(cluster.start)

    await restart("set tide.writers = 0")
    try:
        outcomes = [client.mutate(insert(table, number)) for number in range(2)]
        for outcome in outcomes:
            with pytest.raises(MutationFailed) as caught:
                await soon(outcome)
            assert caught.value.code == "disabled"
    finally:
        await restart("reset tide.writers")
    await soon(client.mutate(insert(table, 2)))
    assert ids(cluster.rows(f"select id from {table}")) == [2]


async def test_two_clients_have_the_same_in_the_end(cluster: Cluster, table: str) -> None:
    cluster.sql(f"insert into {table} select i from generate_series(0, 9) as i")
    async with (
        Client(cluster.url, cluster.token()) as one,
        Client(cluster.url, cluster.token()) as two,
    ):
        collections = [client.sync(table) for client in (one, two)]
        asked: list[asyncio.Future[Confirmed]] = []
        for round_ in range(40):
            for place, client in enumerate((one, two)):
                number = (round_ * 7 + place * 3) % 12
                # Rows of its own it deletes as well.
                is_own = number >= 6 and number % 2 == place
                number = number if is_own else number % 6
                key, values = {"id": number}, {"note": f"{place}/{round_}"}
                ops: list[Op]
                if is_own and round_ % 3 > 0:
                    ops = [{"op": "delete", "table": table, "key": key}]
                else:
                    ops = [{"op": "upsert", "table": table, "key": key, "values": values}]
                asked.append(client.mutate(ops))
        await soon(asyncio.gather(*asked))

        for collection in collections:
            await converges(cluster, collection, f"select * from {table}")


async def test_changes_name_the_mutation_that_made_them(
    cluster: Cluster, client: Client, table: str
) -> None:
    collection = client.sync(table)
    await soon(collection.up_to_date())
    if not collection.is_resumable:
        pytest.skip("this server does not know meta_in_payload")
    told = []

    async def follow() -> None:
        async for change in collection:
            if change.kind == "INSERT":
                told.append(change.mutation_id)
                return

    following = asyncio.create_task(soon(follow()))
    outcome = client.mutate(insert(table, 1))
    [mutation] = client.pending
    await soon(outcome)
    await following
    assert told == [mutation.mutation_id]


@pytest.mark.parametrize("op", ["delete", "set"])
async def test_a_row_that_is_made_anew_meanwhile_may_be_written(
    cluster: Cluster, client: Client, table: str, op: str
) -> None:
    cluster.sql(f"insert into {table} values (1)")
    other = asyncio.create_task(
        asyncio.to_thread(
            cluster.sql,
            f"begin; delete from {table} where id = 1; insert into {table} values (1, 1);"
            " select pg_advisory_xact_lock(4711);"
            " do $$ begin"
            "   while not exists (select from pg_locks where not granted) loop"
            "     perform pg_sleep(0.01);"
            "   end loop;"
            " end $$; commit",
        )
    )
    is_held = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711"
    await asyncio.to_thread(wait_until, "it is deleted", lambda: cluster.sql(is_held) == "1")

    values = {} if op == "delete" else {"values": {"note": "x"}}
    await soon(client.mutate([{"op": op, "table": table, "key": {"id": 1}, **values}]))
    await other
