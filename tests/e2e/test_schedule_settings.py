"""What a server's settings mean for its schedules: a time zone, what follows downtime, a flavor that is gone."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from calls import Api
from clients import eventually
from faults import QuickServer

FLAVOR = "[flavors.{}]\ncpu = 1\nmemory = '256MB'\n"
BEFORE = FLAVOR.format("cpu-basic") + FLAVOR.format("fleeting")
AFTER = FLAVOR.format("cpu-basic") + "[schedules]\ntime_zone = 'Europe/Berlin'\ncatch_up = 'all'\n"
MISSED = timedelta(hours=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuickServer]:
    """A server that was away for some hours, and whose settings are others since then."""
    folder = tmp_path_factory.mktemp("settings")
    config = folder / "runstead.toml"
    config.write_text(BEFORE)
    flags = ("--config", str(config), "--executor", "process", "--stop-jobs-at-exit")
    started = QuickServer(folder / "data", flags).start()
    try:
        settings_change(started, config)
        yield started
    finally:
        started.stop()


def settings_change(started: QuickServer, config: Path) -> None:
    create(started, "yearly", "0 9 1 1 *")
    create(started, "missed", "0 * * * *", concurrency=True)
    create(started, "gone", "*/2 * * * * *", flavor="fleeting", suspend=True)
    assert found(started, "yearly")["timeZone"] == "UTC"
    Api(started).post(f"{place(started, 'gone')}/resume")
    started.kill()
    config.write_text(AFTER)
    with closing(sqlite3.connect(started.data_dir / "runstead.db")) as database:
        # What a server that was away finds: the first of the due instants that passed.
        moved = "UPDATE schedules SET next_run_at = next_run_at - ? WHERE labels LIKE '%missed%'"
        database.execute(moved, (MISSED // timedelta(microseconds=1),))
        database.commit()
    started.start()


def create(server: QuickServer, name: str, schedule: str, flavor: str = "cpu-basic", **fields: Any) -> None:
    spec = {"command": ["true"], "dockerImage": "ubuntu", "flavor": flavor, "labels": {"name": name}}
    body = {"jobSpec": spec, "schedule": schedule, **fields}
    answer = Api(server).post(f"/api/scheduled-jobs/{server.owner}", body)
    assert answer.status == 200, answer


def found(server: QuickServer, name: str) -> dict[str, Any]:
    [one] = Api(server).get(f"/api/scheduled-jobs/{server.owner}?label=name%3D{name}").json
    return one


def place(server: QuickServer, name: str) -> str:
    return f"/api/scheduled-jobs/{server.owner}/{found(server, name)['id']}"


def test_the_time_zone_of_the_server_holds_for_schedules_that_are_there(server: QuickServer) -> None:
    assert eventually(lambda: found(server, "yearly")["timeZone"] == "Europe/Berlin")
    assert found(server, "yearly")["status"]["nextJobRunAt"][4:] == "-01-01T08:00:00.000Z"


def test_all_missed_runs_are_made_where_the_site_wants_it(server: QuickServer) -> None:
    before = MISSED // timedelta(hours=1)
    assert eventually(lambda: found(server, "missed")["runs"] >= before, 30)
    events = [one for one in Api(server).get(f"{place(server, 'missed')}/history").json if one["kind"] == "run"]
    due = [datetime.fromisoformat(one["dueAt"]) for one in reversed(events)]
    assert due == [due[0] + n * timedelta(hours=1) for n in range(len(due))]


def test_a_schedule_whose_flavor_is_gone_suspends_itself(server: QuickServer) -> None:
    assert eventually(lambda: found(server, "gone")["suspend"])
    assert "has no flavor 'fleeting'" in found(server, "gone")["suspendReason"]
    refused = Api(server).post(f"{place(server, 'gone')}/resume")
    assert refused.status == 400
    assert "has no flavor 'fleeting'" in refused.error
