"""Hosts of sandbox pools: which sandboxes each has, made and removed in its running attempt.

What the store says counts. The attempt is told first of what is made and last of what is forgotten; what a crash in
between leaves is found when a host is looked at for the first time by another server.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import token_hex

from runstead.executors.interface import Executor, Inside
from runstead.kit.clock import Clock
from runstead.model.errors import Invalid, NotFound, Unavailable
from runstead.model.executions import Command, Compartment, CompartmentLimits
from runstead.model.jobs import Job
from runstead.model.sandboxes import EGRESS, NewPooledSandbox, PooledSandbox
from runstead.services.sandboxes.activity import Activity
from runstead.services.sandboxes.entrance import inside_of
from runstead.services.sandboxes.together import Together
from runstead.services.secrets import SecretBox
from runstead.stores.interface import SandboxStore

_ID_BYTES = 8
_TOKEN_BYTES = 32
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_AT_ONCE = 1000
_AT_ONCE = 64  # requests that are done in one go


@dataclass(frozen=True, slots=True)
class Member:
    """A sandbox of a host, with its secrets."""

    sandbox: PooledSandbox
    token: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)  # as it was created with


@dataclass(slots=True)
class _Host:
    members: dict[str, Member]
    search_path: str  # where its programs are found; the same in all its sandboxes
    remove: Together[Sequence[str], int]  # compartments, by their ids
    make: dict[CompartmentLimits, Together[Sequence[str], Sequence[Compartment]]] = field(
        default_factory=dict[CompartmentLimits, "Together[Sequence[str], Sequence[Compartment]]"]
    )
    making: int = 0


class Hosts:
    """The hosts whose sandboxes were asked for since this server runs."""

    def __init__(
        self, store: SandboxStore, executor: Executor, secrets: SecretBox, activity: Activity, clock: Clock
    ) -> None:
        self._store = store
        self._executor = executor
        self._secrets = secrets
        self._activity = activity
        self._clock = clock
        self._hosts: dict[str, asyncio.Task[_Host]] = {}

    async def members(self, job: Job) -> Sequence[Member]:
        """Return the sandboxes of a host, oldest first."""
        return list((await self._host(job)).members.values())

    async def search_path(self, job: Job) -> str:
        """Return the PATH of a host."""
        return (await self._host(job)).search_path

    async def member(self, job: Job, sandbox_id: str) -> Member:
        """Return one of them. Raises NotFound."""
        member = (await self._host(job)).members.get(sandbox_id)
        if member is None:
            raise NotFound(f"this host has no such sandbox, or no longer: {sandbox_id[:40]!r}")
        return member

    async def create(self, job: Job, wanted: NewPooledSandbox, count: int) -> tuple[list[Member], int]:
        """Make sandboxes; return them, and how many more there is no room for."""
        if not 1 <= count <= MAX_AT_ONCE:
            raise Invalid(f"should be 1 to {MAX_AT_ONCE}, not {count}", "count")
        egress = _egress(job, wanted)
        host = await self._host(job)
        capacity = job.spec.sandbox.capacity if job.spec.sandbox else None
        free = count if capacity is None else max(capacity - len(host.members) - host.making, 0)
        fitting = min(count, free)
        if not fitting:
            return [], count
        try:
            made = await asyncio.shield(
                asyncio.create_task(self._add(job, host, replace(wanted, egress=egress), fitting))
            )
        except Unavailable:
            return [], count
        return made, count - fitting

    async def remove(self, job: Job, ids: Sequence[str]) -> int:
        """Remove these sandboxes with all that runs in them; return how many were there."""
        host = await self._host(job)
        await inside_of(self._executor, job)  # while it runs: nothing is removed of what is over
        there = {one: host.members.pop(one) for one in ids if one in host.members}
        if there:
            # Also when the caller goes away meanwhile: a sandbox is there or not, never half.
            await asyncio.shield(asyncio.create_task(self._remove(job.id, host, there)))
        return len(there)

    async def _remove(self, job_id: str, host: _Host, members: Mapping[str, Member]) -> None:
        try:
            await host.remove.ask(list(members))
            await self._store.remove(job_id, list(members))
        except Exception:
            host.members.update(members)
            raise
        for sandbox_id in members:
            self._activity.forget(job_id, sandbox_id)

    def forget(self, job_id: str) -> None:
        """Forget a host that is over."""
        self._hosts.pop(job_id, None)

    async def _add(self, job: Job, host: _Host, wanted: NewPooledSandbox, count: int) -> list[Member]:
        host.making += count
        try:
            made = await self._make(job, host, wanted, count)
            host.members.update({member.sandbox.id: member for member in made})
        finally:
            host.making -= count
        return made

    async def _make(self, job: Job, host: _Host, wanted: NewPooledSandbox, count: int) -> list[Member]:
        tokens = {token_hex(_ID_BYTES): token_hex(_TOKEN_BYTES) for _ in range(count)}
        ids = list(tokens)
        limits = CompartmentLimits(processes=wanted.processes, memory_bytes=wanted.memory_bytes, egress=wanted.egress)
        if limits not in host.make:
            host.make[limits] = Together(lambda batch: self._make_compartments(job, limits, batch), _AT_ONCE)
        compartments = await host.make[limits].ask(ids)
        now = self._clock.now()
        made: list[Member] = []
        for one in compartments:
            secrets = {"token": tokens[one.id], "environment": json.dumps(dict(wanted.environment))}
            sandbox = PooledSandbox(
                job_id=job.id,
                id=one.id,
                uid=one.uid,
                home=one.home,
                confinement=one.confinement,
                created_at=now,
                active_at=now,
                idle_seconds=wanted.idle_seconds,
                sealed=self._secrets.seal(_name(job.id, one.id), secrets),
            )
            made.append(Member(sandbox, tokens[one.id], dict(wanted.environment)))
        try:
            await self._store.add([member.sandbox for member in made])
        except Exception:
            await host.remove.ask(ids)
            raise
        for member in made:
            self._activity.touch(job.id, member.sandbox.id)
        return made

    async def _make_compartments(
        self, job: Job, limits: CompartmentLimits, batch: Sequence[Sequence[str]]
    ) -> list[Sequence[Compartment]]:
        inside = await inside_of(self._executor, job)
        made = await inside.make_compartments([one for ids in batch for one in ids], limits)
        by_id = {compartment.id: compartment for compartment in made}
        return [[by_id[one] for one in ids] for ids in batch]

    async def _remove_compartments(self, job: Job, batch: Sequence[Sequence[str]]) -> list[int]:
        inside = await inside_of(self._executor, job)
        await inside.remove_compartments([one for ids in batch for one in ids])
        return [len(ids) for ids in batch]

    async def _host(self, job: Job) -> _Host:
        """Return a host; the first time it is compared with what is in its attempt."""
        looking = self._hosts.get(job.id)
        if looking is None or (looking.done() and (looking.cancelled() or looking.exception() is not None)):
            looking = self._hosts[job.id] = asyncio.create_task(self._look(job))
        return await asyncio.shield(looking)

    async def _look(self, job: Job) -> _Host:
        inside: Inside = await inside_of(self._executor, job)
        stored = await self._store.of_host(job.id)
        there = {compartment.id for compartment in await inside.compartments()}
        known = {sandbox.id for sandbox in stored}
        if there - known:
            await inside.remove_compartments(sorted(there - known))
        if known - there:
            await self._store.remove(job.id, known - there)
        members: dict[str, Member] = {}
        for sandbox in stored:
            if sandbox.id in there:
                secrets = self._secrets.open(_name(job.id, sandbox.id), sandbox.sealed)
                members[sandbox.id] = Member(sandbox, secrets["token"], json.loads(secrets["environment"]))
                self._activity.recall(job.id, sandbox.id, sandbox.active_at, sandbox.idle_seconds or 0)
        remove = Together[Sequence[str], int](lambda batch: self._remove_compartments(job, batch), _AT_ONCE)
        return _Host(members, await _search_path(inside), remove)


async def _search_path(inside: Inside) -> str:
    """Return the PATH that programs of the host's image have."""
    try:
        execution = await inside.execute(Command(("/bin/sh", "-c", 'printf %s "$PATH"')))
    except Invalid:  # an image without a shell
        return _USUAL_PATH
    try:
        found = bytearray()
        while (output := await execution.read()) is not None:
            found += output.data
        return found.decode("utf-8", "replace") or _USUAL_PATH
    finally:
        await execution.close()


def _egress(job: Job, wanted: NewPooledSandbox) -> tuple[str, ...] | None:
    """Return what a sandbox may reach: what it asks for, within what its host may. Raises Invalid."""
    allowed = job.spec.sandbox.egress if job.spec.sandbox else None
    if wanted.egress is None or allowed is None:
        return allowed if wanted.egress is None else wanted.egress
    if beyond := [one for one in wanted.egress if one not in allowed]:
        raise Invalid(f"the host's own list does not have {', '.join(beyond)[:300]}", f"env.{EGRESS}")
    return wanted.egress


def _name(job_id: str, sandbox_id: str) -> str:
    return f"{job_id}.{sandbox_id}"
