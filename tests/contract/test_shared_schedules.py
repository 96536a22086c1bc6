"""Schedules of two servers over one database: each due instant has one run, also while they are killed.

The servers tell each other nothing yet: what was changed through one is seen by the other when it looks, which it does
every few seconds. Runs may be late by that much; none may be missing.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from calls import Api
from clients import eventually
from faults import QuickServer

EVERY = timedelta(seconds=2)
SCHEDULES = ("*/2 * * * * *", "1/2 * * * * *")
KILLS = 4


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, new_postgres_database: Callable[[], str]
) -> Iterator[tuple[QuickServer, QuickServer]]:
    """Two servers with one key, each with a machine of its own as far as it knows."""
    folder = tmp_path_factory.mktemp("two")
    config = folder / "runstead.toml"
    config.write_text(f"[database]\nurl = '{new_postgres_database()}'\n")
    flags = ("--config", str(config), "--executor", "process", "--stop-jobs-at-exit")
    first, second = QuickServer(folder / "first", flags), QuickServer(folder / "second", flags)
    try:
        first.start()
        second.data_dir.mkdir(mode=0o700)
        shutil.copy(first.data_dir / "secret.key", second.data_dir)
        second.token = first.token
        yield first, second.start()
    finally:
        for server in (first, second):
            server.stop()


@pytest.fixture
def two(servers: tuple[QuickServer, QuickServer]) -> tuple[QuickServer, QuickServer]:
    """Both, running."""
    for server in servers:
        if not server.alive:
            server.start()
    return servers


def create(server: QuickServer, expression: str) -> tuple[str, datetime]:
    """Make a schedule through a server; return its path and when it is due first."""
    spec = {"command": ["true"], "dockerImage": "ubuntu", "flavor": "cpu-basic"}
    place = f"/api/scheduled-jobs/{server.owner}"
    answer = Api(server).post(place, {"jobSpec": spec, "schedule": expression, "concurrency": True})
    assert answer.status == 200, answer
    return f"{place}/{answer.json['id']}", datetime.fromisoformat(answer.json["status"]["nextJobRunAt"])


def runs(server: QuickServer, place: str) -> list[dict[str, Any]]:
    """Return the due runs of a schedule, latest first."""
    return [one for one in Api(server).get(f"{place}/history").json if one["kind"] == "run"]


def begun_anew(server: QuickServer, places: Iterable[str], within: float = 30) -> bool:
    """Wait until every one of these schedules has one more run."""
    seen = {place: len(runs(server, place)) for place in places}
    return eventually(lambda: all(len(runs(server, place)) > count for place, count in seen.items()), within)


def stop_and_check(server: QuickServer, place: str, first: datetime) -> list[dict[str, Any]]:
    """Stop a schedule and return its jobs: one for every due instant."""
    stopped = Api(server).post(f"{place}/suspend")
    assert stopped.status == 200, stopped
    events = runs(server, place)[::-1]
    due = [datetime.fromisoformat(one["dueAt"]) for one in events]
    assert due == [first + n * EVERY for n in range(len(due))]
    jobs = [Api(server).job(one["jobId"]) for one in events]
    assert len({job["id"] for job in jobs}) == len(jobs) == stopped.json["runs"]
    return jobs


def test_servers_that_are_killed_at_any_time_begin_each_run_once(two: tuple[QuickServer, QuickServer]) -> None:
    made = dict(create(two[0], expression) for expression in SCHEDULES)
    for number in range(KILLS):
        dies, lives = two if number % 2 else two[::-1]
        time.sleep(random.random())
        dies.kill()
        assert begun_anew(lives, made)
        dies.start()
    jobs = [job["id"] for place, first in made.items() for job in stop_and_check(two[0], place, first)]
    api = Api(two[1])
    for job_id in jobs:
        over = api.ended(job_id, within=60)
        assert (over["status"]["stage"], over["attempt"]) == ("COMPLETED", 1), over
    assert api.get(f"/api/jobs/{two[1].owner}/count").json["count"] == len(jobs)


def test_what_was_made_through_a_server_that_is_gone_is_begun_by_the_other(
    two: tuple[QuickServer, QuickServer],
) -> None:
    gone, left = two
    place, first = create(gone, "*/2 * * * * *")
    gone.kill()
    assert begun_anew(left, [place])
    stop_and_check(left, place, first)
