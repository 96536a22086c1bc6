"""What is SQLite's own: the batches of its writer, its file, and its errors."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from runstead.model.errors import BackendFailure, Conflict, Invalid, NotFound, Unavailable
from runstead.stores import sqlite
from runstead.stores.database import Transaction
from runstead.stores.opening import open_database
from runstead.stores.sqlite import SqliteDatabase, translated

_MAKE = text("CREATE TABLE things (n INTEGER PRIMARY KEY, blob BLOB)")
_ADD = text("INSERT INTO things (n) VALUES (:n)")
_ALL = text("SELECT n FROM things ORDER BY n")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = await SqliteDatabase.open(tmp_path / "runstead.db")
    await database.write(lambda transaction: transaction.run(_MAKE))
    yield database
    await database.close()


async def stored(database: SqliteDatabase) -> list[int]:
    return [row[0] for row in await database.read(lambda transaction: transaction.rows(_ALL))]


def adding(n: int) -> Any:
    return lambda transaction: transaction.run(_ADD, {"n": n})


async def in_one_batch(database: SqliteDatabase, *works: Any) -> list[Any]:
    """Keep the writer busy until all of these are queued."""
    gate = threading.Event()
    first = asyncio.create_task(database.write(lambda _: gate.wait(5)))
    tasks = [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)
    gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_fails_in_a_batch_is_undone_alone(database: SqliteDatabase) -> None:
    def half_done(transaction: Transaction) -> None:
        transaction.run(_ADD, {"n": 100})
        transaction.run(_ADD, {"n": 1})

    def raising(transaction: Transaction) -> None:
        transaction.run(_ADD, {"n": 200})
        raise ZeroDivisionError

    results = await in_one_batch(database, adding(1), half_done, adding(2), raising, adding(3), adding(2))
    assert [type(result) for result in results] == [int, Conflict, int, ZeroDivisionError, int, Conflict]
    assert isinstance(results[1].__cause__, sqlite3.IntegrityError)
    assert await stored(database) == [1, 2, 3]


async def test_the_work_of_a_caller_that_gave_up_harms_nobody(database: SqliteDatabase) -> None:
    gate = threading.Event()
    first = asyncio.create_task(database.write(lambda _: gate.wait(5)))
    tasks = [asyncio.create_task(database.write(adding(n))) for n in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    gate.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)
    assert tasks[1].cancelled()
    assert {0, 2, 3} <= set(await stored(database))


async def test_another_process_that_writes_is_waited_for(
    database: SqliteDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / "runstead.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(database.write(adding(1)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert await stored(database) == []
    other.execute("COMMIT")
    other.close()
    await waiting
    assert await stored(database) == [1]


async def test_waiting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_WAIT_SECONDS", 0.05)
    database = await SqliteDatabase.open(tmp_path / "runstead.db")
    other = sqlite3.connect(tmp_path / "runstead.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="in use by another process"):
        await database.write(lambda transaction: transaction.run(_MAKE))
    other.close()
    await database.write(lambda transaction: transaction.run(_MAKE))
    await database.close()


async def test_a_full_disk_is_unavailable_and_passes(database: SqliteDatabase) -> None:
    def fill(transaction: Transaction) -> None:
        transaction.run(text("INSERT INTO things (blob) VALUES (zeroblob(100000000))"))

    pages = (await database.write(lambda transaction: transaction.rows(text("PRAGMA page_count"))))[0][0]
    await database.write(lambda transaction: transaction.rows(text(f"PRAGMA max_page_count = {pages + 5}")))
    with pytest.raises(Unavailable, match="full"):
        await database.write(fill)
    results = await in_one_batch(database, adding(1), fill, adding(2))
    assert [type(result) for result in results] == [int, Unavailable, int]
    assert await stored(database) == [1, 2]


async def test_a_reader_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(Unavailable):
        await database.read(adding(1))
    assert await stored(database) == []


async def test_a_look_sees_what_was_written_before_and_cannot_write(database: SqliteDatabase) -> None:
    await database.write(adding(1))
    assert await database.look(lambda transaction: transaction.rows(text("SELECT n FROM things"))) == [(1,)]
    with pytest.raises(Unavailable):
        await database.look(adding(2))
    assert await stored(database) == [1]


async def test_a_look_that_would_have_to_wait_waits_elsewhere(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    await database.write(adding(1))
    monkeypatch.setattr(sqlite._Looking, "perform", busy)
    assert await database.look(lambda transaction: transaction.rows(text("SELECT n FROM things"))) == [(1,)]


async def test_a_reader_survives_work_that_breaks_its_transaction(database: SqliteDatabase) -> None:
    def breaking(transaction: Transaction) -> None:
        transaction.run(text("COMMIT"))
        transaction.run(text("COMMIT"))

    for _ in range(5):
        with pytest.raises(BackendFailure):
            await database.read(breaking, consistent=True)
    assert await stored(database) == []


async def test_a_consistent_read_sees_one_state(database: SqliteDatabase) -> None:
    began, go_on = threading.Event(), threading.Event()

    def twice(transaction: Transaction) -> tuple[int, int]:
        before = len(transaction.rows(_ALL))
        began.set()
        go_on.wait(5)
        return before, len(transaction.rows(_ALL))

    reading = asyncio.create_task(database.read(twice, consistent=True))
    await asyncio.to_thread(began.wait)
    await database.write(adding(1))
    go_on.set()
    assert await reading == (0, 0)
    assert await stored(database) == [1]


async def test_the_log_is_copied_back_and_stays_small(database: SqliteDatabase, tmp_path: Path) -> None:
    for start in range(0, 3000, 50):
        await asyncio.gather(*(database.write(adding(n)) for n in range(start, start + 50)))
    assert (tmp_path / "runstead.db-wal").stat().st_size < 8_000_000


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path}/a%20b.db")
    await database.write(lambda transaction: transaction.run(_MAKE))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.db", "a b.db-shm", "a b.db-wal"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    await database.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a b.db"]


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "mysql://secret@host/x", "/tmp/x.db"])
async def test_a_url_that_means_nothing_is_invalid_and_not_repeated(url: str) -> None:
    with pytest.raises(Invalid) as refused:
        await open_database(url)
    assert "secret" not in refused.value.message


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        await open_database(f"sqlite:///{tmp_path}/nowhere/x.db")


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(BackendFailure, match=r"x\.db"):
        await open_database(f"sqlite:///{tmp_path}/x.db")


def test_opening_what_is_up_to_date_needs_no_alembic(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from runstead.stores.opening import open_database\n"
        "async def main():\n"
        "    for _ in range(2): await (await open_database(sys.argv[1])).close()\n"
        "asyncio.run(main()); sys.exit('alembic' in sys.modules or 'psycopg' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, f"sqlite:///{tmp_path}/x.db"], check=True)


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        (sqlite3.SQLITE_BUSY, Unavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Unavailable),
        (sqlite3.SQLITE_LOCKED, Unavailable),
        (sqlite3.SQLITE_FULL, Unavailable),
        (sqlite3.SQLITE_IOERR_FSYNC, Unavailable),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, Conflict),
        (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, Conflict),
        (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, NotFound),
        (sqlite3.SQLITE_CORRUPT, BackendFailure),
        (sqlite3.SQLITE_ERROR, BackendFailure),
    ],
)
def test_errors_are_told_in_our_words(code: int, ours: type[Exception]) -> None:
    error = sqlite3.OperationalError("what happened")
    error.sqlite_errorcode = code  # type: ignore[misc]
    told = translated(error)
    assert type(told) is ours
    assert told.__cause__ is error
    assert "what happened" in str(told)
