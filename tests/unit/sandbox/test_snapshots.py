"""Snapshots are kept for as long as a sandbox begins with them, and no longer."""

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from runstead.executors.attempts import Attempts
from runstead.executors.interface import Executor
from runstead.executors.snapshots import Snapshots
from runstead.kit.clock import SystemClock
from runstead.model.errors import Invalid, NotRunning
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, JobSpec, NewJob, Phase, Stage, Transition
from runstead.model.sandboxes import FORK_LABEL, Mode, SandboxSpec
from runstead.services.jobs import Jobs
from runstead.services.sandbox_forks import Forking
from runstead.services.secrets import SecretBox
from runstead.stores.jobs import SqlJobStore
from runstead.stores.opening import open_database

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class FakeExecutor:
    names: list[str] = field(default_factory=list)

    async def snapshots(self) -> list[str]:
        return list(self.names)

    async def drop_snapshot(self, name: str) -> None:
        self.names.remove(name)


async def test_what_an_unfinished_fork_begins_with_stays(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'db'}")
    try:
        store = SqlJobStore(database)
        executor = FakeExecutor(["alice.a", "alice.b", "alice.c", "bob.a"])
        forking = Forking(cast(Jobs, None), store, cast(Executor, executor), SecretBox(b"k" * 32), SystemClock())
        sandbox = SandboxSpec(Mode.DEDICATED, snapshots=("alice.a", "alice.b"))
        labels = {"hf-sandbox": "1", FORK_LABEL: "b"}
        spec = JobSpec(command=("x",), flavor="cpu-basic", docker_image="a", labels=labels, sandbox=sandbox)
        new = NewJob(new_id(NOW), "1", "alice", "user", "1", "alice", spec, Initiator("user", "1"), NOW)
        job = await store.add(new)
        await forking.run_once()
        assert executor.names == ["alice.a", "alice.b"]
        done = Transition(job.id, 1, frozenset({Phase.WAITING}), Phase.DONE, Stage.CANCELED, NOW)
        assert await store.apply(done, "me")
        await forking.run_once()
        assert executor.names == []
    finally:
        await database.close()


def test_young_ones_are_not_listed_and_remains_are_removed(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, Attempts(tmp_path))
    assert snapshots.names() == []
    for name in ("alice.old", "alice.new", ".new-old", ".new-new"):
        (tmp_path / "snapshots" / name / "deep").mkdir(parents=True)
        if name.endswith("old"):
            before = time.time() - 700
            os.utime(tmp_path / "snapshots" / name, (before, before))
    assert snapshots.names() == ["alice.old"]
    assert sorted(one.name for one in (tmp_path / "snapshots").iterdir()) == [".new-new", "alice.new", "alice.old"]
    assert snapshots.find("alice.old").is_dir()
    snapshots.drop("alice.old")
    snapshots.drop("alice.old")
    with pytest.raises(Invalid, match="are gone"):
        snapshots.find("alice.old")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\0", "x" * 300])
def test_what_is_no_name_reaches_no_path(tmp_path: Path, name: str) -> None:
    snapshots = Snapshots(tmp_path, Attempts(tmp_path))
    for use in (snapshots.find, snapshots.drop):
        with pytest.raises(Invalid):
            use(name)


def test_an_attempt_that_is_over_has_none(tmp_path: Path) -> None:
    (tmp_path / "attempts").mkdir()
    with pytest.raises(NotRunning):
        Snapshots(tmp_path, Attempts(tmp_path)).take(f"{'0' * 24}-1", "alice.x")
