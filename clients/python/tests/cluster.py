"""A Postgres cluster of the tests' own, with one database that has the extension."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

SETTINGS = """
listen_addresses = ''
shared_preload_libraries = 'pg_tide'
wal_level = logical
max_worker_processes = 50
fsync = off
full_page_writes = off
autovacuum = off
"""

DATABASE = "app"

DEADLINE = 60.0


def _bin() -> Path:
    config = os.environ.get("PG_CONFIG", "/usr/lib/postgresql/15/bin/pg_config")
    output = subprocess.run([config, "--bindir"], check=True, capture_output=True, text=True)
    return Path(output.stdout.strip())


BIN = _bin()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Asks again and again, up to a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class Cluster:
    """Run by `postgres` where this is root, which Postgres is not run by."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg_tide-python-", dir="/tmp"))
        self._owner = "postgres" if os.getuid() == 0 else None
        if self._owner is not None:
            shutil.chown(self.folder, self._owner, self._owner)
        self.port = free_port()
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
        settings = f"{SETTINGS}\nunix_socket_directories = '{self.folder}'\n"
        known = self._try("postgres", "-D", self._data, "-C", "output_plugin_libraries")
        if known.returncode == 0:
            settings += "output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'\n"
        with (self.folder / "data/postgresql.conf").open("a") as file:
            file.write(settings)
        self._run("pg_ctl", "-D", self._data, "-l", self._log, "-w", "-s", "start")
        self.sql(f"create database {DATABASE}", database="postgres")
        self.sql(f"alter database {DATABASE} set tide.port = {self.port}", database="postgres")
        self.sql("create role anon; create role authenticated", database="postgres")
        self.sql("create extension pg_tide; grant anon, authenticated to tide_authenticator")
        self.wait_until_live()

    @property
    def url(self) -> str:
        """What a client is given."""
        return f"ws://localhost:{self.port}/realtime/v1"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def _log(self) -> str:
        return str(self.folder / "log")

    def sql(self, statements: str, database: str = DATABASE) -> str:
        """Runs them as the superuser; what they return, unaligned."""
        command = [str(BIN / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        command += ["-h", str(self.folder), "-U", "postgres", "-d", database, "-c", statements]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What a query returns, as the stream prints it, in the order of the rows' texts."""
        text = self.sql(f"select coalesce(jsonb_agg(to_jsonb(t)), '[]') from ({query}) as t")
        rows: list[dict[str, Any]] = json.loads(text)
        return in_order(rows)

    def token(self, claims: dict[str, Any] | None = None) -> str:
        """For the role `authenticated`."""
        return self.sql(
            f"select tide.token('authenticated', '{json.dumps(claims or {})}', interval '1 hour')"
        )

    def stop(self, how: str = "fast") -> None:
        """Stops the server: `immediate` as a crash does."""
        self._run("pg_ctl", "-D", self._data, "-w", "-s", "-m", how, "stop")

    def start(self) -> None:
        """Starts it again, and waits until the stream is live."""
        self._run("pg_ctl", "-D", self._data, "-l", self._log, "-w", "-s", "start")
        self.wait_until_live()

    def cut(self) -> None:
        """Ends all websockets, as a network does that breaks."""
        self.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'pg_tide worker' and datname = current_database()"
        )

    def remove(self) -> None:
        """Ends the server and forgets it."""
        self._try("pg_ctl", "-D", self._data, "-w", "-s", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def wait_until_live(self) -> None:
        """Until the listener answers and the stream is live."""

        def is_live() -> bool:
            try:
                with urllib.request.urlopen(f"http://localhost:{self.port}/health", timeout=5):
                    return True
            except (OSError, urllib.error.URLError):
                return False

        wait_until("the stream is live", is_live)

    def _run(self, program: str, *arguments: str) -> None:
        done = self._try(program, *arguments)
        log = self.folder / "log"
        text = log.read_text(errors="replace")[-4000:] if log.exists() else ""
        assert done.returncode == 0, f"{program}: {done.stderr}\n{text}"

    def _try(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), *arguments]
        # Not to a pipe: the server would keep it open.
        with tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                user=self._owner,
                group=self._owner,
                extra_groups=[] if self._owner else None,
                cwd="/tmp",
            )
            errors.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, "", errors.read())


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in an order that depends on nothing but them."""
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
