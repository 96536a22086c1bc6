"""What users do with jobs: submit, look, label, cancel, run again."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from runstead.events.interface import JOBS, QUEUE, WORK, EventBus
from runstead.kit.clock import Clock
from runstead.kit.wakeup import Wakeup
from runstead.model.accounts import Caller, Namespace, Permission, User
from runstead.model.errors import Invalid, NotFound
from runstead.model.ids import is_id, new_id
from runstead.model.jobs import CancelReason, HistoryEntry, Initiator, Job, JobFilter, JobSpec, NewJob, Phase, Stage
from runstead.services import specs
from runstead.services.accounts import authorize
from runstead.services.admission import AdmissionRounds
from runstead.services.hardware import Hardware
from runstead.services.port_rules import PortRules
from runstead.services.sandboxes.recognition import SandboxRules, kept_labels
from runstead.services.secrets import SecretBox
from runstead.services.volumes import VolumeRules
from runstead.stores.interface import JobStore

PAGE = 100
# How long an answer is held back for news that spares the client a round of polling (wire-jobs §7).
_ANSWER_AFTER_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What holds for every job of this server."""

    default_timeout_seconds: int
    max_timeout_seconds: int | None


class Jobs:
    """The jobs of all namespaces, seen by one caller at a time."""

    def __init__(
        self,
        store: JobStore,
        hardware: Hardware,
        secrets: SecretBox,
        admission: AdmissionRounds,
        events: EventBus,
        clock: Clock,
        limits: JobLimits,
        ports: PortRules,
        volumes: VolumeRules,
        sandboxes: SandboxRules,
    ) -> None:
        self._store = store
        self._hardware = hardware
        self._secrets = secrets
        self._admission = admission
        self._events = events
        self._clock = clock
        self.limits = limits
        self._ports = ports
        self._volumes = volumes
        self._sandboxes = sandboxes

    async def submit(
        self,
        caller: Caller,
        namespace: str,
        spec: JobSpec,
        secrets: Mapping[str, str],
        idempotency_key: str | None = None,
    ) -> Job:
        """Accept a job. It is durable when this returns; it runs already if it could start within a moment.

        Raises Forbidden, or Invalid/Unsupported naming the field that cannot be had.
        """
        owner = authorize(caller, Permission.WRITE, namespace)
        spec = await self.accept(caller, spec, secrets)
        initiator = Initiator("user", caller.user.id, caller.user.name)
        new = self.draft(caller.user, owner, spec, secrets, initiator, idempotency_key)
        return await self.enter(new, lambda: self._store.add(new))

    async def rerun(self, caller: Caller, namespace: str, job_id: str) -> Job:
        """Submit the same job again: its whole spec and secrets. Raises NotFound, Forbidden."""
        old = await self.get(caller, namespace, job_id)
        owner = authorize(caller, Permission.WRITE, namespace)
        sealed = await self._store.sealed_secrets(old.id) if old.spec.secret_names else None
        secrets = self._secrets.open(old.id, sealed) if sealed else {}
        spec = await self.accept(caller, old.spec, secrets)
        new = self.draft(caller.user, owner, spec, secrets, Initiator("duplicated-job", old.id))
        return await self.enter(new, lambda: self._store.add(new))

    async def get(self, caller: Caller, namespace: str, job_id: str) -> Job:
        """Return a job. Raises NotFound for one that is not there, or not in this namespace; Forbidden."""
        authorize(caller, Permission.READ, namespace)
        job = await self._store.get(job_id) if is_id(job_id) else None
        if job is None or job.namespace != namespace:
            raise NotFound(f"there is no job {job_id[:100]!r} in {namespace!r}: `hf jobs ps -a` shows those there are")
        return job

    async def page(
        self, caller: Caller, namespace: str, wanted: JobFilter, before_seq: int | None, limit: int = PAGE
    ) -> tuple[list[Job], int | None]:
        """Return a page of jobs, newest first, and where the next begins (None: there is none)."""
        authorize(caller, Permission.READ, namespace)
        jobs = await self._store.page(namespace, wanted, before_seq, limit + 1)
        return jobs[:limit], jobs[limit - 1].seq if len(jobs) > limit else None

    async def count(self, caller: Caller, namespace: str, wanted: JobFilter) -> int:
        """Count the jobs of a namespace."""
        authorize(caller, Permission.READ, namespace)
        return await self._store.count(namespace, wanted)

    async def history(self, caller: Caller, namespace: str, job_id: str) -> list[HistoryEntry]:
        """Return what happened to a job, oldest first."""
        job = await self.get(caller, namespace, job_id)
        return await self._store.history(job.id)

    async def set_labels(self, caller: Caller, namespace: str, job_id: str, labels: Mapping[str, str]) -> Job:
        """Replace all labels of a job, but for those by which a sandbox is known."""
        job = await self.get(caller, namespace, job_id)
        authorize(caller, Permission.WRITE, namespace)
        labels = {**labels, **kept_labels(job.spec)}
        specs.check_labels(labels)
        changed = await self._store.set_labels(job_id, labels)
        if changed is None:
            raise NotFound(f"job {job_id!r} was deleted meanwhile")
        return changed

    async def cancel(self, caller: Caller, namespace: str, job_id: str) -> Job:
        """Cancel a job; one that is over stays as it is. Returns it as it stands a moment later."""
        job = await self.get(caller, namespace, job_id)
        authorize(caller, Permission.WRITE, namespace)
        if job.stage.is_terminal:
            return job
        with self._events.subscribe(JOBS, job_id) as changed:
            noted = await self._store.request_cancel(job_id, self._clock.now())
            if noted is None:
                raise NotFound(f"job {job_id!r} was deleted meanwhile")
            if noted.phase is Phase.WAITING:
                self._admission.left(noted)
            self._events.publish(WORK, job_id)
            return await self._settled(noted, changed, lambda now: now.stage.is_terminal)

    def message(self, job: Job) -> str | None:
        """Return what `status.message` says now: for a waiting job why, its position, and the next look."""
        if job.cancel_requested_at is not None and not job.stage.is_terminal:
            return "being canceled" if job.cancel_reason is CancelReason.ASKED else "being ended: nobody uses it"
        return self._admission.reason(job)

    async def accept(self, caller: Caller, spec: JobSpec, secrets: Mapping[str, str]) -> JobSpec:
        """Return the job that the caller may have as it is stored, with what its volumes mean now.

        Raises Invalid, NotFound, Forbidden or Unsupported naming the field that cannot be had.
        """
        self._check(spec, secrets)
        spec = self._sandboxes.accept(spec, secrets)
        spec = await self._ports.accept(spec)
        return replace(spec, volumes=await self._volumes.accept(caller, spec.volumes))

    def draft(
        self,
        user: User,
        owner: Namespace,
        spec: JobSpec,
        secrets: Mapping[str, str],
        initiator: Initiator,
        idempotency_key: str | None = None,
    ) -> NewJob:
        """Return an accepted job as it is about to be stored."""
        now = self._clock.now()
        job_id = new_id(now)
        names = tuple(sorted(secrets))
        return NewJob(
            id=job_id,
            namespace_id=owner.id,
            namespace=owner.name,
            namespace_kind=owner.kind,
            created_by_id=user.id,
            created_by=user.name,
            spec=spec if spec.secret_names == names else replace(spec, secret_names=names),
            initiator=initiator,
            created_at=now,
            message="queued",
            sealed_secrets=self._secrets.seal(job_id, secrets) if secrets else None,
            idempotency_key=idempotency_key,
            price_micro_usd=self._hardware.flavor(spec.flavor).price_micro_usd,
        )

    async def enter(self, new: NewJob, store: Callable[[], Awaitable[Job]]) -> Job:
        """Have a job stored and return it as it stands a moment later, when it may run already.

        Raises Conflict for ports that it cannot have beside another job.
        """
        with self._events.subscribe(JOBS, new.id) as changed, self._admission.watched(new.id, changed):
            async with self.reserved(new):
                job = await store()
            if job.id != new.id:
                return job  # submitted before, with the same key
            self.entered(job)
            flavor = job.spec.flavor
            if self._admission.is_blocked(flavor):
                return job
            return await self._settled(
                job, changed, lambda now: now.stage is not Stage.SCHEDULING or self._admission.is_blocked(flavor)
            )

    async def enter_all(self, new: Sequence[NewJob]) -> list[Job]:
        """Have jobs of one flavor stored, all or none, and return them as they stand a moment later, as `enter` does.

        They have no idempotency key. Raises Conflict for ports that they cannot have beside each other, or others.
        """
        if len(new) == 1:
            return [await self.enter(new[0], lambda: self._store.add(new[0]))]
        with self._events.subscribe(JOBS) as changed:
            async with self._ports.reserved(*new):
                jobs = await self._store.add_all(new)
            for job in jobs:
                self._admission.joined(job)
            self._events.publish(QUEUE)
            stand = {job.id: job for job in jobs}
            waiting = set(stand)
            deadline = self._clock.now().timestamp() + _ANSWER_AFTER_SECONDS
            while waiting and not self._admission.is_blocked(jobs[0].spec.flavor):
                left = deadline - self._clock.now().timestamp()
                if left <= 0:
                    break
                for job_id in await changed.wait(left) & waiting:
                    job = stand[job_id] = await self._store.get(job_id) or stand[job_id]
                    if job.stage is not Stage.SCHEDULING:
                        waiting.remove(job_id)
        return list(stand.values())

    def reserved(self, new: NewJob) -> AbstractAsyncContextManager[None]:
        """Hold what a job alone may have while it is stored. Raises Conflict."""
        return self._ports.reserved(new)

    def entered(self, job: Job) -> None:
        """Tell those who start jobs of one that was stored."""
        self._admission.joined(job)
        self._events.publish(QUEUE)

    def _check(self, spec: JobSpec, secrets: Mapping[str, str]) -> None:
        specs.check_command(spec.command, spec.arguments)
        specs.check_image(spec.docker_image, spec.space_id)
        specs.check_labels(spec.labels)
        specs.check_network(spec.network)
        specs.check_environment("environment", spec.environment)
        specs.check_environment("secrets", secrets)
        specs.check_exec_size((*spec.command, *spec.arguments), {**spec.environment, **secrets})
        self._hardware.flavor(spec.flavor)
        self._hardware.check_arch(spec.arch)
        longest = self.limits.max_timeout_seconds
        if longest is not None and spec.timeout_seconds > longest:
            raise Invalid(f"this server allows at most {longest} s, not {spec.timeout_seconds}", "timeoutSeconds")

    async def _settled(self, job: Job, changed: Wakeup, done: Callable[[Job], bool]) -> Job:
        deadline = self._clock.now().timestamp() + _ANSWER_AFTER_SECONDS
        while not done(job):
            left = deadline - self._clock.now().timestamp()
            if left <= 0 or not await changed.wait(left):
                break
            job = await self._store.get(job.id) or job
        return job
