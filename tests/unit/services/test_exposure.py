"""Who is let in to a port of a job, and who waits for a sandbox that is about to run."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from runstead.events.interface import JOBS
from runstead.events.local import LocalEventBus
from runstead.model.jobs import Initiator, Job, JobSpec, Phase, Stage
from runstead.model.ports import Ports
from runstead.model.sandboxes import PORT, Mode, SandboxSpec
from runstead.services.exposure import Exposure, Gone, NotReady

ID = "a" * 24
SPEC = JobSpec(("x",), "f", docker_image="i", sandbox=SandboxSpec(Mode.DEDICATED), ports=Ports((PORT, 80), (PORT, 80)))
WAITING = Job(
    *(1, ID, "n", "alice", "user", "n", "alice", SPEC, Stage.SCHEDULING),
    *(Phase.WAITING, None, datetime(2026, 1, 1, tzinfo=UTC), Initiator("user", "n")),
)
HANDLE: dict[str, Any] = {"executor": "oci", "version": 1, "data": {}}
RUNNING = replace(WAITING, stage=Stage.RUNNING, phase=Phase.RUNNING, handle=HANDLE)
FAILED = replace(WAITING, stage=Stage.ERROR, phase=Phase.DONE, message="no such image")


@dataclass
class OneJob:
    """In the place of the store."""

    job: Job
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    times: int = 0

    async def get(self, _job_id: str) -> Job:
        self.times += 1
        if self.times > 1:
            self.asked.set()  # it was not there at first, and is waited for
        return self.job


def exposure(store: OneJob, events: LocalEventBus) -> Exposure:
    nobody = cast(Any, None)
    return Exposure(cast(Any, store), nobody, nobody, nobody, events)


async def test_a_request_to_a_sandbox_waits_until_it_runs() -> None:
    store, events = OneJob(WAITING), LocalEventBus()
    visit = asyncio.create_task(exposure(store, events).visit(ID, PORT, None, patient=True))
    await store.asked.wait()
    assert not visit.done()
    store.job = RUNNING
    events.publish(JOBS, ID)
    assert (await visit).job is RUNNING


async def test_one_whose_sandbox_fails_hears_of_it() -> None:
    store, events = OneJob(WAITING), LocalEventBus()
    visit = asyncio.create_task(exposure(store, events).visit(ID, PORT, None, patient=True))
    await store.asked.wait()
    store.job = FAILED
    events.publish(JOBS, ID)
    with pytest.raises(Gone, match="no such image"):
        await visit


@pytest.mark.parametrize(("port", "patient"), [(PORT, False), (80, True)])
async def test_others_are_told_at_once_that_it_does_not_run(port: int, patient: bool) -> None:
    store = OneJob(WAITING)
    with pytest.raises(NotReady):
        await exposure(store, LocalEventBus()).visit(ID, port, None, patient=patient)
    assert store.times == 1


async def test_what_does_not_begin_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstead.services.exposure._BEGIN_SECONDS", 0.01)
    with pytest.raises(NotReady):
        await exposure(OneJob(WAITING), LocalEventBus()).visit(ID, PORT, None, patient=True)
