"""What suites share: the executors they run against, and a throw-away PostgreSQL server."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

_START_SECONDS = 120


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what wants a site against every executor; some executors join for the tests that they name."""
    if "site" not in metafunc.fixturenames:
        return
    from contract.test_executors import ROWS

    name, module = metafunc.function.__name__, metafunc.module.__name__.rpartition(".")[2]
    names = {module, f"{module}.{name}", name}
    rows = [row for row in ROWS if not row.only or names & set(row.only)]
    metafunc.parametrize("site", rows, ids=[row.name for row in rows], indirect=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of the server's maintenance database. Skips without PostgreSQL, unless it is required."""
    programs = _programs()
    if programs is None:
        if os.environ.get("RUNSTEAD_TEST_POSTGRES") == "required":
            pytest.fail("RUNSTEAD_TEST_POSTGRES=required, but there is no postgres and initdb on this machine")
        pytest.skip("there is no PostgreSQL on this machine")
    folder = Path(tempfile.mkdtemp(prefix="runstead-pg-"))
    identity = _unprivileged(folder)
    data = folder / "data"
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "runstead", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
            **identity,
        )
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            stdout=subprocess.DEVNULL,
            stderr=(folder / "server.log").open("wb"),
            cwd=folder,
            **identity,
        )
        try:
            url = f"postgresql://runstead@/postgres?host={folder}"
            _wait_for(url, folder / "server.log")
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # drops the clients that are left
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_postgres_database(postgres_server: str) -> Callable[[], str]:
    """Makes an empty database and returns its URL."""
    numbers = count()

    def make() -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return postgres_server.replace("/postgres?", f"/{name}?")

    return make


def _programs() -> Path | None:
    folders = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep)]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders.append(Path("/usr/local/bin"))
    for folder in folders:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return (folder / "postgres").resolve().parent
    return None


def _unprivileged(folder: Path) -> dict[str, object]:
    """PostgreSQL refuses to run as root: return what makes subprocess run it as somebody else."""
    if os.geteuid() != 0:
        return {}
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                pytest.fail(f"the PostgreSQL server did not start:\n{log.read_text()}")
            time.sleep(0.05)
