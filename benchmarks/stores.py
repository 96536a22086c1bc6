"""Measures the stores: how fast jobs are added and moved, and what a list or a look at the queue costs at scale.

    python benchmarks/stores.py [--url URL] [--jobs 1000000] [--only writes|reads]

Without a URL it measures SQLite in a new folder, and removes it. A PostgreSQL database given as URL must be empty.
Figures are medians in milliseconds, or per second.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from typing import Any

from sqlalchemy import bindparam, insert, text

from runstead.model.accounts import Organization, OrgRole, Token, TokenRole, User
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, Job, JobFilter, JobSpec, NewJob, Phase, Reservation, Stage, Transition
from runstead.stores.accounts import SqlAccountStore
from runstead.stores.database import Database, Transaction
from runstead.stores.interface import Admission
from runstead.stores.jobs import SqlJobStore
from runstead.stores.labels import digests_of
from runstead.stores.opening import open_database
from runstead.stores.rows import job_to
from runstead.stores.tables import job_history, job_labels, jobs

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
LABELS = {"name": "python-3-12-ede2a725"}
CHUNK = 5000
WAITING = 10_000
RUNNING = 100


def new_job(labels: dict[str, str] | None = None, flavor: str = "cpu-basic") -> NewJob:
    environment = {f"VARIABLE_{n}": "x" * 40 for n in range(10)}
    command = ("python", "-c", "import time; time.sleep(1)")
    spec = JobSpec(command, flavor, "python:3.12", environment=environment, labels=LABELS if labels is None else labels)
    return NewJob(new_id(NOW), "u", "alice", "user", "u", "alice", spec, Initiator("user", "u", "alice"), NOW, "queued")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--only", choices=["writes", "reads"])
    wanted = parser.parse_args()
    with place(wanted.url) as url:
        began = time.perf_counter()
        database = await open_database(url)
        print(f"{'open, empty database':44}{(time.perf_counter() - began) * 1e3:9.1f} ms")
        try:
            if wanted.only != "reads":
                await writes(database)
            if wanted.only != "writes":
                await reads(database, wanted.jobs)
        finally:
            await database.close()
        began = time.perf_counter()
        await (await open_database(url)).close()
        print(f"{'open and close again':44}{(time.perf_counter() - began) * 1e3:9.1f} ms")


@contextmanager
def place(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    folder = tempfile.mkdtemp(prefix="runstead-bench-")
    try:
        yield f"sqlite:///{folder}/runstead.db"
    finally:
        shutil.rmtree(folder)


async def writes(database: Database) -> None:
    store = SqlJobStore(database)
    await rate("add, one at a time", 1, 500, lambda: store.add(new_job()))
    for callers in (32, 128):
        await rate(f"add, {callers} at a time", callers, 6000, lambda: store.add(new_job()))
    await rate(
        "add with five labels, 32 at a time", 32, 2000, lambda: store.add(new_job({str(n): "x" for n in range(5)}))
    )
    await rate("whole life, one at a time", 1, 100, lambda: life(store))
    await rate("whole life, 32 at a time", 32, 1500, lambda: life(store))
    async with spinning():
        await rate("add, 32 at a time, loop busy", 32, 2000, lambda: store.add(new_job()))
        await rate("whole life, 32 at a time, loop busy", 32, 500, lambda: life(store))


async def life(store: SqlJobStore) -> None:
    """What a job costs the store: its submission, its admission, three changes and two looks."""
    job = await store.add(new_job())
    [job] = await store.admit([Admission(job.id, 1, Reservation(1000, 2**30), "local")], "me", LATER, NOW)
    await store.get(job.id)
    job = await moved(store, job, Phase.RUNNING, Stage.RUNNING, started_at=NOW, handle={"version": 1, "data": {"a": 1}})
    job = await moved(store, job, Phase.RELEASING, Stage.COMPLETED, finished_at=NOW, exit_code=0, message=None)
    await moved(store, job, Phase.DONE, Stage.COMPLETED, reservation=None)
    await store.get(job.id)


async def moved(store: SqlJobStore, job: Job, phase: Phase, stage: Stage, **fields: Any) -> Job:
    after = await store.apply(Transition(job.id, 1, frozenset({job.phase}), phase, stage, NOW, **fields), "me")
    assert after is not None
    return after


async def reads(database: Database, count: int) -> None:
    store, accounts = SqlJobStore(database), SqlAccountStore(database)
    began = time.perf_counter()
    await fill(database, count)
    print(f"(filled with {count:,} jobs in {time.perf_counter() - began:.0f} s)")
    running, ended = frozenset({Stage.RUNNING}), frozenset({Stage.ERROR, Stage.CANCELED})
    some = (await store.page("alice", JobFilter(), None, 1))[0]
    await cost("get", lambda: store.get(some.id))
    await cost("history", lambda: store.history(some.id))
    for name, wanted in {
        "everything": JobFilter(),
        "stage, rare": JobFilter(running),
        "stages, two": JobFilter(ended),
        "stage, none": JobFilter(frozenset({Stage.DELETED})),
        "label, half of all": JobFilter(labels={"env": "prod"}),
        "label, ten jobs": JobFilter(labels={"one": "x"}),
        "label, none": JobFilter(labels={"one": "y"}),
        "labels, both half, all of them": JobFilter(labels={"env": "prod", "kind": "even"}),
        "labels, both half, never together": JobFilter(labels={"env": "prod", "kind": "odd"}),
        "labels, half and rare": JobFilter(labels={"env": "prod", "run": "r7"}),
        "labels, three": JobFilter(labels={"env": "prod", "kind": "even", "run": "r7"}),
        "labels, three, two never together": JobFilter(labels={"env": "prod", "kind": "odd", "run": "r7"}),
        "stage and label, never together": JobFilter(frozenset({Stage.ERROR}), {"env": "prod"}),
        "stage and label, rare": JobFilter(running, {"env": "dev"}),
        "stages and labels": JobFilter(running | ended, {"env": "dev", "kind": "odd"}),
    }.items():
        for where, before in (("", None), (", deep", count // 50)):
            await cost(f"page of 100: {name}{where}", lambda w=wanted, b=before: store.page("alice", w, b, 100))
    await cost("count: everything", lambda: store.count("alice", JobFilter()), 5)
    await cost("count: running", lambda: store.count("alice", JobFilter(running)))
    await cost(f"waiting, {WAITING} in the queue", lambda: store.waiting(LATER, 8))
    await cost(f"held, {RUNNING} running", lambda: store.held("local"))
    await cost("claim, nothing free", lambda: store.claim(["local"], "me", NOW, LATER, 256))
    await cost("renew, 100 leased", lambda: store.renew("me", LATER))
    await cost("leased, 100", lambda: store.leased("me"))
    queue = await store.queue()
    await cost(f"queue, {len(queue)} jobs", store.queue, 5)
    turn = iter(queue)
    await cost("admit one", lambda: store.admit([Admission(next(turn)[1], 1, None, "local")], "me", LATER, NOW))
    await store.release_leases("me")
    await cost("claim four", lambda: store.claim(["local"], "me", NOW, LATER, 4), 25)
    await account_costs(accounts)


async def account_costs(accounts: SqlAccountStore) -> None:
    user = await accounts.add_user(User("u", "alice", "Alice", True, NOW))
    for n in range(3):
        await accounts.add_organization(Organization(f"o{n}", f"org-{n}", "Org", NOW))
        await accounts.set_member(f"org-{n}", "alice", OrgRole.WRITE)
    await accounts.add_token(Token("t", user.id, "t", TokenRole.WRITE, NOW, "abcd"), b"digest")
    await cost("caller", lambda: accounts.caller(b"digest"))


async def fill(database: Database, count: int) -> None:
    """Store many jobs in few transactions; most have ended, some run, some wait."""
    columns = [*job_to(new_job()), "executor", "reservation"]
    add_jobs = insert(jobs).values({name: bindparam(name) for name in ["seq", *columns]})
    add_labels = insert(job_labels).values({name: bindparam(name) for name in job_labels.c.keys()})  # noqa: SIM118
    add_history = insert(job_history).values({name: bindparam(name) for name in job_history.c.keys()})  # noqa: SIM118
    cached = {}

    def digests(labels: dict[str, str]) -> list[bytes]:
        key = tuple(labels.values())
        if key not in cached:
            cached[key] = digests_of("alice", labels)
        return cached[key]

    first = await database.read(lambda t: t.rows(text("SELECT coalesce(max(seq), 0) + 1 FROM jobs"))[0][0])
    template = job_to(new_job())
    for start in range(0, count, CHUNK):
        rows, label_rows, history = [], [], []
        for n in range(start, min(start + CHUNK, count)):
            even = n % 2 == 0
            labels = {"env": "prod" if even else "dev", "kind": "even" if even else "odd", "run": f"r{n // 1000}"}
            if n % (count // 10) == 1:
                labels["one"] = "x"
            row = {**template, "seq": first + n, "id": f"{first + n:024x}", "executor": None, "reservation": None}
            row["stage"], row["phase"] = "ERROR" if not even and n % 25 == 0 else "COMPLETED", "done"
            if n < RUNNING:
                row |= {"stage": "RUNNING", "phase": "running", "executor": "local", "lease_owner": "me"}
                row["reservation"] = '{"cpu":1000,"memory":1073741824,"gpus":[]}'
            elif n >= count - WAITING:
                row |= {"stage": "SCHEDULING", "phase": "waiting", "flavor": f"flavor-{n % 4}"}
            rows.append(row)
            label_rows += [{"digest": d, "stage": row["stage"], "seq": row["seq"]} for d in digests(labels)]
            history.append(
                {"seq": row["seq"], "version": 1, "at": 0, "attempt": 1, "message": None, "failure_class": None}
                | {"stage": row["stage"], "phase": row["phase"]}
            )

        def work(t: Transaction, rows: Any = rows, label_rows: Any = label_rows, history: Any = history) -> None:
            t.run_many(add_jobs, rows)
            t.run_many(add_labels, label_rows)
            t.run_many(add_history, history)

        await database.write(work)

    def settle(t: Transaction) -> None:
        t.run(text("INSERT INTO leases (owner, until) VALUES ('me', 9000000000000000)"))
        if t.rows(text("SELECT 1")) and "postgres" in type(database).__name__.lower():
            t.rows(text("SELECT setval(pg_get_serial_sequence('jobs', 'seq'), (SELECT max(seq) FROM jobs))"))

    await database.write(settle)
    await database.read(lambda t: t.run(text("ANALYZE"))) if "Postgres" in type(database).__name__ else None


async def rate(name: str, callers: int, times: int, call: Callable[[], Awaitable[Any]]) -> None:
    took: list[float] = []

    async def caller() -> None:
        for _ in range(times // callers):
            began = time.perf_counter()
            await call()
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(min(callers, 4))))
    took.clear()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    worst = quantiles(took, n=100)[-1]
    print(
        f"{name:44}{len(took) / seconds:9.0f} /s   median {median(took) * 1e3:7.2f} ms   99 % {worst * 1e3:7.2f} ms"
        f"   CPU {cpu / len(took) * 1e6:6.0f} us each"
    )


async def cost(name: str, call: Callable[[], Awaitable[Any]], times: int = 50) -> None:
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    print(f"{name:56}{median(took) * 1e3:9.2f} ms   worst {max(took) * 1e3:7.2f} ms")


class spinning:  # noqa: N801 - reads as a word where it is used
    """Keeps the event loop busy: half of its time goes to Python code of others, a millisecond at a time."""

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._spin())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _spin(self) -> None:
        while True:
            until = time.perf_counter() + 0.001
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0.001)


if __name__ == "__main__":
    asyncio.run(main())
