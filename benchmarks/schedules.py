"""What active schedules cost, and how long after its due instant a run is there.

    python benchmarks/schedules.py [SCHEDULES]

The machine of the server is held by one job, so that runs are stored and wait: what jobs cost that run is in jobs.py.
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from server import Bench, Connection, bench_server

from runstead.model.ids import new_id
from runstead.model.jobs import JobSpec
from runstead.model.schedules import NewSchedule
from runstead.services import cron
from runstead.stores.opening import open_database
from runstead.stores.schedules import SqlScheduleStore

CONFIG = "[executor]\nmemory = '64MB'\n[flavors.cpu-basic]\ncpu = 1\nmemory = '64MB'\n"
SECONDS = 20
SPEC = JobSpec(command=("true",), flavor="cpu-basic", docker_image="ubuntu")


async def add(bench: Bench, expressions: list[str]) -> None:
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
                    *(new_id(now), *owner, SPEC, one, "UTC"),
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


async def hold(bench: Bench) -> None:
    """Take the whole machine."""
    connection = Connection(bench)
    body = {"command": ["sleep", "1000"], "dockerImage": "ubuntu", "timeoutSeconds": 1000}
    await connection.request("POST", f"/api/jobs/{bench.owner}", body)


async def share_of_a_core(bench: Bench, seconds: float) -> float:
    """Return the server's processor time for a while, in percent of a core."""
    before, began = bench.cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (bench.cpu_seconds() - before) / (time.monotonic() - began)


def lateness(bench: Bench, since: datetime) -> list[float]:
    """Return for each run due since then how many milliseconds later it was stored, least first."""
    query = (
        "SELECT jobs.created_at - schedule_events.due_at FROM schedule_events JOIN jobs "
        "ON jobs.id = schedule_events.job_id WHERE schedule_events.kind = 'run' AND schedule_events.due_at > ?"
    )
    with closing(sqlite3.connect(bench.data_dir / "runstead.db")) as connection:
        return sorted(late / 1000 for (late,) in connection.execute(query, (since.timestamp() * 1_000_000,)))


def forget(bench: Bench) -> None:
    """Delete all schedules."""
    with closing(sqlite3.connect(bench.data_dir / "runstead.db", timeout=30)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM schedules")
        connection.commit()


def spread(found: list[float]) -> dict[str, float]:
    """Return the middle and the end of a list of times."""
    return {
        "runs": len(found),
        "median_ms": round(found[len(found) // 2], 1),
        "p99_ms": round(found[int(len(found) * 0.99)], 1),
        "max_ms": round(found[-1], 1),
    }


async def main(count: int) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(CONFIG)
        config.flush()
        with bench_server(RUNSTEAD_CONFIG=config.name) as bench:
            await hold(bench)
            await asyncio.sleep(3)
            without = await share_of_a_core(bench, SECONDS)
            await add(bench, ["0 0 29 2 *"] * count)
            await asyncio.sleep(6)
            show(
                "none is due",
                {
                    "percent_of_a_core": round(await share_of_a_core(bench, SECONDS), 2),
                    "without_schedules": round(without, 2),
                },
            )
            forget(bench)

            # Each once an hour, at a second of its own.
            await add(bench, [f"{n % 60} {n // 60 % 60} * * * *" for n in range(count)])
            await asyncio.sleep(6)  # nobody told the server
            since = datetime.now(UTC)
            used = await share_of_a_core(bench, SECONDS * 2)
            show("each once an hour", {"percent_of_a_core": round(used, 2), **spread(lateness(bench, since))})
            forget(bench)

            at = (datetime.now(UTC) + timedelta(seconds=15 + count / 500)).replace(microsecond=0)
            await add(bench, [f"{at.second} {at.minute} {at.hour} * * *"] * count)
            await asyncio.sleep(max((at - datetime.now(UTC)).total_seconds(), 0))
            while len(found := lateness(bench, since)) < count:
                await asyncio.sleep(0.5)
            show("all at one instant", spread(found))


def show(what: str, figures: dict[str, float]) -> None:
    print(f"{what}: {json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
