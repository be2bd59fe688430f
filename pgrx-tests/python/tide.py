"""The database under test, as the environment names it, and what its tests share."""

import asyncio
import json
import os
import subprocess
import sys

from realtime import AsyncRealtimeClient

URL = os.environ["TIDE_URL"]
PSQL = os.environ["TIDE_PSQL"]
DEADLINE = 60


def sql(statements: str) -> str:
    command = [PSQL, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def token(role: str = "authenticated", claims: dict | None = None, lifetime: str = "1 hour") -> str:
    return sql(f"select tide.token('{role}', '{json.dumps(claims or {})}', interval '{lifetime}')")


async def connect(role: str = "authenticated") -> AsyncRealtimeClient:
    client = AsyncRealtimeClient(URL, token(role), initial_backoff=0.2, max_retries=20)
    await client.connect()
    return client


async def run(test) -> None:
    client = await connect()
    try:
        await asyncio.wait_for(test(client), DEADLINE)
    finally:
        await client.close()


def main(tests: list) -> None:
    """Runs the tests, each with a client of its own; the first failure ends the program."""

    async def all_of_them() -> None:
        for test in tests:
            await run(test)
            print(f"ok - {test.__name__.replace('_', ' ')}", flush=True)

    asyncio.run(all_of_them())
    sys.exit(0)
