"""Forks of sandboxes: set up once, go on many times from there.

A fork is a sandbox of its own with the image, the secrets and the labels of the first, and with its files as they were.
They are kept once, in a snapshot that all forks share and none can change; what a fork writes is its own. Programs are
not carried over. Snapshots go when no job begins with them any more.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from runstead.executors.interface import Executor
from runstead.kit.clock import Clock
from runstead.model.accounts import Caller, Permission
from runstead.model.errors import Conflict, Invalid, NotRunning, Unsupported
from runstead.model.ids import new_id
from runstead.model.jobs import Initiator, Job, JobFilter, Phase, Stage
from runstead.model.launches import Handle
from runstead.model.sandboxes import FORK_LABEL, Mode
from runstead.services.accounts import authorize
from runstead.services.jobs import Jobs
from runstead.services.secrets import SecretBox
from runstead.stores.interface import JobStore

MOST_FORKS = 1000
_LOOK_EVERY_SECONDS = 60.0
_UNFINISHED = frozenset({Stage.SCHEDULING, Stage.RUNNING})


class Forking:
    """Makes forks, and deletes snapshots that nobody needs."""

    def __init__(self, jobs: Jobs, store: JobStore, executor: Executor, secrets: SecretBox, clock: Clock) -> None:
        self._jobs = jobs
        self._store = store
        self._executor = executor
        self._secrets = secrets
        self._clock = clock

    async def fork(self, caller: Caller, namespace: str, job_id: str, count: int) -> Sequence[Job]:
        """Make so many forks of a running dedicated sandbox; return their jobs as they stand a moment later.

        Raises NotFound, Forbidden, Conflict for what is no sandbox that runs, Unsupported where the executor cannot.
        """
        if not 1 <= count <= MOST_FORKS:
            raise Invalid(f"should be 1 to {MOST_FORKS}, not {count}", "count")
        job = await self._jobs.get(caller, namespace, job_id)
        owner = authorize(caller, Permission.WRITE, namespace)
        if job.spec.sandbox is None:
            raise Conflict(f"only sandboxes can be forked, and this is an ordinary job: {job_id}")
        if job.spec.sandbox.mode is Mode.POOL:
            raise Unsupported(f"a host of pooled sandboxes cannot be forked, only a dedicated sandbox: {job_id}")
        if job.phase is not Phase.RUNNING or job.handle is None:
            raise NotRunning(f"only a running sandbox can be forked, and this one is {job.stage}: {job_id}")
        sealed = await self._store.sealed_secrets(job.id)
        secrets = self._secrets.open(job.id, sealed) if sealed else {}
        name = f"{namespace}.{new_id(self._clock.now())}"
        sandbox = replace(job.spec.sandbox, snapshots=(*job.spec.sandbox.snapshots, name))
        labels = {**job.spec.labels, FORK_LABEL: name.rpartition(".")[2]}
        spec = await self._jobs.accept(caller, replace(job.spec, sandbox=sandbox, labels=labels), secrets)
        handle = Handle(job.handle["executor"], job.handle["version"], job.handle["data"])
        await asyncio.gather(self._executor.expect(namespace, name, count), self._executor.snapshot(handle, name))
        initiator = Initiator("user", caller.user.id, caller.user.name)
        spec = replace(spec, secret_names=tuple(sorted(secrets)))  # the same for all: it is written out once
        drafts = [self._jobs.draft(caller.user, owner, spec, secrets, initiator) for _ in range(count)]
        return await self._jobs.enter_all(drafts)

    async def run(self) -> None:
        """Rest, then look."""
        await self._clock.sleep(_LOOK_EVERY_SECONDS)
        await self.run_once()

    async def run_once(self) -> None:
        """Delete the snapshots that no unfinished job begins with."""
        found = await self._executor.snapshots()
        needed: set[str] = set()
        for name in found:
            namespace, _, fork = name.rpartition(".")
            for job in await self._store.page(namespace, JobFilter(_UNFINISHED, {FORK_LABEL: fork}), None, 1):
                needed.update(job.spec.sandbox.snapshots if job.spec.sandbox else ())
        for name in found:
            if name not in needed:
                await self._executor.drop_snapshot(name)
