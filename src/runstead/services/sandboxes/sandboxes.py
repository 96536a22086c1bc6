"""Sandboxes as their users find them: by job, by id, with a token for each.

A *room* is what a token opens: the inside of a dedicated sandbox's attempt, or one compartment of a host's.
"""

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from runstead.executors.interface import Executor, Inside
from runstead.kit.clock import Clock
from runstead.model.errors import Forbidden, NotFound
from runstead.model.jobs import Job
from runstead.model.sandboxes import TOKEN_SECRET, Mode, NewPooledSandbox
from runstead.services.sandboxes.activity import WHOLE, Activity
from runstead.services.sandboxes.entrance import inside_of
from runstead.services.sandboxes.hosts import Hosts, Member
from runstead.services.secrets import SecretBox
from runstead.stores.interface import JobStore

_KEPT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Room:
    """One sandbox, open to somebody with its token."""

    inside: Inside
    environment: Mapping[str, str] = field(repr=False)  # what its commands get unless they say otherwise
    sandbox_id: str = WHOLE


class Sandboxes:
    """The sandboxes of all jobs."""

    def __init__(
        self,
        jobs: JobStore,
        executor: Executor,
        secrets: SecretBox,
        activity: Activity,
        hosts: Hosts,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._executor = executor
        self._secrets = secrets
        self._activity = activity
        self._hosts = hosts
        self.clock = clock
        self._tokens: OrderedDict[str, bytes] = OrderedDict()
        self.closing = asyncio.Event()

    def close(self) -> None:
        """End what streams here; clients are told that they lost the connection."""
        self.closing.set()

    async def is_open(self, job: Job) -> bool:
        """Say whether commands can be executed."""
        await inside_of(self._executor, job)
        return True

    async def opens(self, job: Job, token: str | None) -> bool:
        """Say whether this is the token of the job: the sandbox's, or the host's."""
        return token is not None and hmac.compare_digest(await self._token(job), token.encode("utf-8", "replace"))

    @asynccontextmanager
    async def dedicated(self, job: Job, token: str | None) -> AsyncGenerator[Room]:
        """Open a dedicated sandbox. Raises NotFound for a host, Forbidden, NotRunning."""
        await self._check(job, token, Mode.DEDICATED)
        with self._activity.busy(job.id):
            yield Room(await inside_of(self._executor, job), {})

    @asynccontextmanager
    async def pooled(self, job: Job, sandbox_id: str, token: str | None) -> AsyncGenerator[Room]:
        """Open a pooled sandbox, with its own token or its host's. Raises NotFound, Forbidden, NotRunning."""
        member = await self._member(job, sandbox_id, token)
        with self._activity.busy(job.id, sandbox_id):
            inside = await inside_of(self._executor, job)
            variables = _environment(member, await self._hosts.search_path(job))
            yield Room(await inside.compartment(sandbox_id), variables, sandbox_id)

    async def create(
        self, job: Job, token: str | None, wanted: NewPooledSandbox, count: int
    ) -> tuple[list[Member], int]:
        """Make sandboxes on a host; return them, and how many more there is no room for."""
        await self._check(job, token, Mode.POOL)
        with self._activity.busy(job.id):
            return await self._hosts.create(job, wanted, count)

    async def members(self, job: Job, token: str | None) -> Sequence[Member]:
        """Return the sandboxes of a host, oldest first."""
        await self._check(job, token, Mode.POOL)
        return await self._hosts.members(job)

    async def member(self, job: Job, token: str | None, sandbox_id: str) -> Member:
        """Return one sandbox of a host, for who has the host's token. Raises NotFound, Forbidden."""
        await self._check(job, token, Mode.POOL)
        return await self._hosts.member(job, sandbox_id)

    async def remove(self, job: Job, token: str | None, sandbox_id: str) -> None:
        """Remove one sandbox, with its own token or its host's. Raises NotFound, Forbidden."""
        await self._member(job, sandbox_id, token)
        with self._activity.busy(job.id):
            await self._hosts.remove(job, [sandbox_id])

    async def remove_all(self, job: Job, token: str | None) -> int:
        """Remove all sandboxes of a host; return how many there were."""
        await self._check(job, token, Mode.POOL)
        with self._activity.busy(job.id):
            return await self._hosts.remove(job, [one.sandbox.id for one in await self._hosts.members(job)])

    async def _member(self, job: Job, sandbox_id: str, token: str | None) -> Member:
        _check_mode(job, Mode.POOL)
        known = await self.opens(job, token)
        try:
            member = await self._hosts.member(job, sandbox_id)
        except NotFound:
            if known:
                raise
            # Also to somebody whose sandbox was removed, and whose token was right once.
            raise NotFound(f"there is no such sandbox, or no longer: {sandbox_id[:40]!r}") from None
        if not known and not hmac.compare_digest(member.token.encode(), (token or "").encode("utf-8", "replace")):
            raise _wrong(token)
        return member

    async def _check(self, job: Job, token: str | None, mode: Mode) -> None:
        if not await self.opens(job, token):
            raise _wrong(token)
        _check_mode(job, mode)

    async def _token(self, job: Job) -> bytes:
        token = self._tokens.get(job.id)
        if token is None:
            sealed = await self._jobs.sealed_secrets(job.id)
            secrets = self._secrets.open(job.id, sealed) if sealed else {}
            token = self._tokens[job.id] = secrets[TOKEN_SECRET].encode()
            while len(self._tokens) > _KEPT_TOKENS:
                self._tokens.popitem(last=False)
        return token


def _check_mode(job: Job, mode: Mode) -> None:
    if job.spec.sandbox is None or job.spec.sandbox.mode is not mode:
        here = "a host of pooled sandboxes" if mode is Mode.DEDICATED else "a dedicated sandbox"
        raise NotFound(f"{here} has no such address: {job.id}")


def _wrong(token: str | None) -> Forbidden:
    if not token:
        return Forbidden("this needs the sandbox's token in the header X-Sandbox-Token")
    return Forbidden(
        "X-Sandbox-Token is not the token of this sandbox: only the access token that created it can make it anew"
    )


def _environment(member: Member, search_path: str) -> dict[str, str]:
    """Return what commands in a pooled sandbox get."""
    sandbox = member.sandbox
    return {
        "PATH": f"{sandbox.home}/.local/bin:{search_path}",
        "HOME": sandbox.home,
        "TMPDIR": f"{sandbox.home}/.tmp",
        "USER": f"sbx-{sandbox.id}",
        "LOGNAME": f"sbx-{sandbox.id}",
        "SBX_SANDBOX_ID": sandbox.id,
        "SBX_PROXY_DIR": f"{sandbox.home}/.sbx/proxy",
        **member.environment,
    }
