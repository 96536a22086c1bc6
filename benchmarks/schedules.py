"""What active schedules cost, and how long after its due instant a run is there, and its command does something.

    python benchmarks/schedules.py [SCHEDULES] [idle stored begun listed]

For `idle` and `stored` the machine of the server is held by one job, so that runs are stored and wait: that is what
schedules cost, without their jobs. For `begun` the runs are carried out.
"""

import asyncio
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

from server import Bench, Connection, bench_server

from runstead.model.ids import new_id
from runstead.model.jobs import JobSpec
from runstead.model.schedules import NewSchedule
from runstead.services import cron
from runstead.stores.opening import open_database
from runstead.stores.schedules import SqlScheduleStore

FULL = "[executor]\nmemory = '64MB'\n[flavors.cpu-basic]\ncpu = 1\nmemory = '64MB'\n"
SECONDS = 20
WAITING = JobSpec(command=("true",), flavor="cpu-basic", docker_image="ubuntu")
TELLING = JobSpec(command=("bash", "-c", "echo $EPOCHREALTIME"), flavor="cpu-basic", docker_image="ubuntu")
DUE = (
    "FROM schedule_events JOIN jobs ON jobs.id = schedule_events.job_id "
    "WHERE schedule_events.kind = 'run' AND schedule_events.due_at > ?"
)


async def add(bench: Bench, expressions: list[str], spec: JobSpec = WAITING) -> None:
    """Store schedules of the owner."""
    with closing(sqlite3.connect(bench.data_dir / "runstead.db")) as connection:
        [owner_id] = connection.execute("SELECT id FROM accounts WHERE name = ?", (bench.owner,)).fetchone()
    database = await open_database(f"sqlite:///{bench.data_dir / 'runstead.db'}")
    store, zone, now = SqlScheduleStore(database), ZoneInfo("UTC"), datetime.now(UTC)
    owner = (owner_id, bench.owner, "user", owner_id, bench.owner)
    await asyncio.gather(
        *(
            store.add(
                NewSchedule(
                    *(new_id(now), *owner, spec, one, "UTC"),
                    concurrency=True,
                    suspended=False,
                    next_run_at=cron.parse(one, zone).after(now),
                    created_at=now,
                )
            )
            for one in expressions
        )
    )
    await database.close()
    await asyncio.sleep(6)  # nobody told the server


async def hold(bench: Bench) -> None:
    """Take the whole machine."""
    connection = Connection(bench)
    body = {"command": ["sleep", "1000"], "dockerImage": "ubuntu", "timeoutSeconds": 1000}
    await connection.request("POST", f"/api/jobs/{bench.owner}", body)


async def share_of_a_core(bench: Bench, seconds: float) -> float:
    """Return the server's processor time for a while, in percent of a core."""
    before, began = bench.cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    return round(100 * (bench.cpu_seconds() - before) / (time.monotonic() - began), 2)


def asked(bench: Bench, columns: str, since: datetime) -> list[tuple[Any, ...]]:
    """Return these columns of all runs due since then."""
    with closing(sqlite3.connect(bench.data_dir / "runstead.db")) as connection:
        return connection.execute(f"SELECT {columns} {DUE}", (since.timestamp() * 1_000_000,)).fetchall()


def lateness(bench: Bench, since: datetime, instant: str) -> list[float]:
    """Return for each run due since then how many milliseconds after its due instant this column's was."""
    rows = asked(bench, f"jobs.{instant} - schedule_events.due_at", since)
    return [late / 1000 for (late,) in rows if late is not None]


async def first_words(bench: Bench, since: datetime) -> list[float]:
    """Return for each run due since then how many milliseconds after its due instant its command told the time."""
    connection = Connection(bench)
    found: list[float] = []
    for job_id, due in asked(bench, "jobs.id, schedule_events.due_at", since):
        reader = await connection.stream(f"/api/jobs/{bench.owner}/{job_id}/logs")
        text = await reader.read()
        told = re.search(rb'"data":"(\d+\.\d+)"', text)
        assert told, text
        found.append(float(told[1]) * 1000 - due / 1000)
    connection.close()
    return found


def forget(bench: Bench) -> None:
    """Delete all schedules."""
    with closing(sqlite3.connect(bench.data_dir / "runstead.db", timeout=30)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM schedules")
        connection.commit()


def spread(found: list[float]) -> str:
    """Return the middle and the end of a list of times."""
    found = sorted(found)
    shown = {"p50": found[len(found) // 2], "p95": found[int(len(found) * 0.95)], "p99": found[int(len(found) * 0.99)]}
    return f"{len(found)} runs, " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in {**shown, "max": found[-1]}.items())


def once_an_hour(count: int) -> list[str]:
    """Return schedules that are due once an hour, each at a second of its own if there are enough of them."""
    return [f"{n % 60} {n // 60 % 60} * * * *" for n in range(count)]


async def idle(bench: Bench, count: int) -> None:
    """Schedules none of which is due."""
    await hold(bench)
    await asyncio.sleep(3)
    say("without schedules", f"{await share_of_a_core(bench, SECONDS)} % of a core")
    await add(bench, ["0 0 29 2 *"] * count)
    say("none is due", f"{await share_of_a_core(bench, SECONDS)} % of a core")


async def stored(bench: Bench, count: int) -> None:
    """Runs that wait: due once an hour, then all at one instant."""
    await hold(bench)
    await add(bench, once_an_hour(count))
    since = datetime.now(UTC)
    say("each once an hour, runs wait", f"{await share_of_a_core(bench, SECONDS * 2)} % of a core")
    say("stored after the due instant", spread(lateness(bench, since, "created_at")))
    forget(bench)
    at = (datetime.now(UTC) + timedelta(seconds=15 + count / 500)).replace(microsecond=0)
    await add(bench, [f"{at.second} {at.minute} {at.hour} * * *"] * count)
    await asyncio.sleep(max((at - datetime.now(UTC)).total_seconds() - 1, 0))
    used = bench.cpu_seconds()
    while len(found := lateness(bench, since, "created_at")) < count:
        await asyncio.sleep(0.5)
    used = bench.cpu_seconds() - used
    say("all at one instant, stored after it", f"{spread(found)}; {used / count * 1000:.2f} ms of processor time a run")


async def begun(bench: Bench, count: int) -> None:
    """Runs that are carried out."""
    await add(bench, once_an_hour(count), TELLING)
    since = datetime.now(UTC)
    say("each once an hour, runs are carried out", f"{await share_of_a_core(bench, SECONDS * 3)} % of a core")
    say("stored after the due instant", spread(lateness(bench, since, "created_at")))
    say("began after the due instant", spread(lateness(bench, since, "started_at")))
    say("the command's first word after the due instant", spread(await first_words(bench, since)))


async def listed(bench: Bench, count: int) -> None:
    """The list of all."""
    await add(bench, ["0 0 29 2 *"] * count)
    connection = Connection(bench)
    times: list[float] = []
    used = bench.cpu_seconds()
    for _ in range(10):
        began = time.perf_counter()
        found = await connection.request("GET", f"/api/scheduled-jobs/{bench.owner}")
        times.append((time.perf_counter() - began) * 1000)
        assert len(found) == count
    used = (bench.cpu_seconds() - used) / 10
    say("a list of all", f"{median(times):.0f} ms, {used * 1000:.0f} ms of the server's processor time")
    connection.close()


def say(what: str, figures: str) -> None:
    print(f"| {what} | {figures} |", flush=True)


PARTS: dict[str, tuple[str, Callable[[Bench, int], Awaitable[None]]]] = {
    "idle": (FULL, idle),
    "stored": (FULL, stored),
    "begun": ("", begun),
    "listed": ("", listed),
}


def main(words: list[str]) -> None:
    count = next((int(word) for word in words if word.isdigit()), 10_000)
    for name in [word for word in words if word in PARTS] or PARTS:
        text, part = PARTS[name]
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write(text)
            config.flush()
            with bench_server(RUNSTEAD_CONFIG=config.name) as bench:
                asyncio.run(part(bench, count))


if __name__ == "__main__":
    main(sys.argv[1:])
