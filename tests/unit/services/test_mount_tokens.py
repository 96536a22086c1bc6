"""Tokens of volumes: whom they speak for, and for how long."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from runstead.kit.clock import Clock
from runstead.model.accounts import Permission
from runstead.model.errors import Unauthenticated
from runstead.model.jobs import Initiator, Job, JobSpec, Phase, Stage
from runstead.model.volumes import MountCaller
from runstead.services.mount_tokens import PREFIX, MountTokens
from runstead.stores.interface import JobStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CALLER = MountCaller("a" * 24, 2, {"bucket": Permission.WRITE})
LATER = NOW + timedelta(hours=1)


@dataclass
class FixedClock(Clock):
    at: datetime = NOW

    def now(self) -> datetime:
        return self.at

    async def sleep(self, seconds: float) -> None: ...


@dataclass
class OneJob:
    job: Job | None

    async def get(self, job_id: str) -> Job | None:
        return self.job if self.job is not None and job_id == self.job.id else None


def job(phase: Phase = Phase.RUNNING, attempt: int = 2) -> Job:
    spec = JobSpec(command=("true",), flavor="x", docker_image="x")
    stage, by = Stage.RUNNING, Initiator("user", "1")
    return Job(1, "a" * 24, "1", "me", "user", "1", "me", spec, stage, phase, None, NOW, by, attempt=attempt)


def tokens(found: Job | None, clock: Clock | None = None, key: bytes = b"k" * 32) -> MountTokens:
    return MountTokens(key, cast(JobStore, OneJob(found)), clock or FixedClock())


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING, Phase.RELEASING])
async def test_a_token_speaks_for_its_attempt_also_after_a_restart(phase: Phase) -> None:
    token = tokens(job()).mint(CALLER, LATER)
    assert token.startswith(PREFIX)
    assert await tokens(job(phase)).recognize(token) == CALLER


@pytest.mark.parametrize("found", [None, job(Phase.DONE), job(Phase.WAITING), job(attempt=3)])
async def test_it_ends_with_its_attempt(found: Job | None) -> None:
    with pytest.raises(Unauthenticated, match="over"):
        await tokens(found).recognize(tokens(job()).mint(CALLER, LATER))


async def test_it_expires() -> None:
    token = tokens(job()).mint(CALLER, LATER)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens(job(), FixedClock(LATER)).recognize(token)


async def test_one_for_recovery_outlives_its_job_and_not_its_time() -> None:
    token = tokens(None).mint_for_recovery(CALLER)
    assert await tokens(None).recognize(token) == CALLER
    with pytest.raises(Unauthenticated):
        await tokens(None, FixedClock(NOW + timedelta(days=1))).recognize(token)


async def test_nobody_else_makes_one() -> None:
    token = tokens(job()).mint(CALLER, LATER)
    others: list[Any] = [
        "",
        PREFIX,
        PREFIX + "!",
        token[:-1],
        token + "A",
        token[:9] + chr(ord(token[9]) ^ 1) + token[10:],
        token[5:],
    ]
    others += [PREFIX + "A" * 9000, tokens(job(), key=b"o" * 32).mint(CALLER, LATER)]
    for other in others:
        with pytest.raises(Unauthenticated):
            await tokens(job()).recognize(other)


def test_what_it_allows() -> None:
    reader = MountCaller("a" * 24, 1, {"r": Permission.READ, "w": Permission.WRITE})
    allowed = {(p, b) for p in Permission for b in ("r", "w", "x") if reader.may(p, b)}
    assert allowed == {(Permission.READ, "r"), (Permission.READ, "w"), (Permission.WRITE, "w")}
