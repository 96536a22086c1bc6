"""Ports of jobs that others may reach: which there are, who may, and the way to them."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from runstead.events.interface import JOBS, EventBus
from runstead.executors.interface import Executor
from runstead.model.accounts import Caller, Permission
from runstead.model.errors import (
    BackendFailure,
    NotFound,
    NotRunning,
    RunsteadError,
    Unauthenticated,
)
from runstead.model.ids import is_id
from runstead.model.jobs import Job, Phase
from runstead.model.launches import Handle
from runstead.model.ports import Ports
from runstead.model.sandboxes import PORT
from runstead.services.accounts import Accounts, authorize
from runstead.services.port_rules import PortRules
from runstead.stores.interface import JobStore

_CONNECT_SECONDS = 10.0
_VERDICT_SECONDS = 0.5
_BEGIN_SECONDS = 2.0  # that a request to a sandbox is held back until it runs; clients wait for 5
_RETRY_SECONDS = 1


class PortError(RunsteadError):
    """A port that may be reached cannot be. `cause` says in one word why; the application is not to blame."""

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


class NotReady(PortError):
    """The job has not begun, or nothing listens on the port yet: trying again soon may help."""

    retry_after_seconds = _RETRY_SECONDS


class Gone(PortError):
    """The job is over, or its program went away; trying again does not help. `failure_class` if it failed."""

    def __init__(self, message: str, cause: str, failure_class: str | None = None) -> None:
        super().__init__(message, cause)
        self.failure_class = failure_class


class Silent(PortError):
    """The program does not answer in time."""


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody who was let in to a port of a running job."""

    job: Job
    port: int
    caller: Caller | None  # None at a public port, for those who show no token of this server
    token_digest: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Onward:
    """Where in the job a request goes on, as raw bytes: WebSockets, uploads and streams included."""

    key: tuple[str, ...]  # connections with equal keys are alike and may be kept for each other
    connect: Callable[[], Awaitable[socket.socket]]  # raises as `Exposure.connect` does
    target: str  # path and query for the program there
    without: frozenset[bytes] = frozenset()  # fields of the request that stay behind, in lower case


class Exposure:
    """The exposed ports of all jobs."""

    def __init__(
        self, store: JobStore, executor: Executor, rules: PortRules, accounts: Accounts, events: EventBus
    ) -> None:
        self._store = store
        self._executor = executor
        self._rules = rules
        self._accounts = accounts
        self._events = events
        self._changed: list[Callable[[str], None]] = []

    def when_changed(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with the id of each job whose ports were changed by this server."""
        self._changed.append(tell)

    async def set_ports(self, caller: Caller, namespace: str, job_id: str, ports: Ports) -> Job:
        """Replace the exposed ports of a job. Raises NotFound, Forbidden, NotRunning once it is over; see PortRules."""
        authorize(caller, Permission.READ, namespace)
        job = await self._store.get(job_id) if is_id(job_id) else None
        if job is None or job.namespace != namespace:
            raise NotFound(f"there is no job {job_id[:100]!r} in {namespace!r}: `hf jobs ps -a` shows those there are")
        authorize(caller, Permission.WRITE, namespace)
        ports = self._rules.check(ports)
        async with self._rules.changed(job_id, ports):
            changed = await self._store.set_ports(job_id, ports)
        if changed is None:
            raise NotFound(f"job {job_id!r} was deleted meanwhile")
        if changed.stage.is_terminal:
            raise NotRunning(f"the job is over ({changed.stage}): its ports cannot be changed any more")
        for tell in self._changed:
            tell(job_id)
        return changed

    async def visit(self, job_id: str, port: int, token_digest: bytes | None, *, patient: bool = False) -> Visit:
        """Let somebody in who shows the token with this digest.

        Who is `patient` waits a moment for a sandbox that is about to run, which costs less than to ask again.
        Raises Unauthenticated, Forbidden, NotFound for a job or an exposed port that is not there; NotReady and Gone
        for one that cannot be reached.
        """
        job = await self._store.get(job_id) if is_id(job_id) else None
        public = job is not None and port in job.spec.ports.public
        try:
            caller = await self._accounts.recognize_digest(token_digest) if token_digest else None
        except Unauthenticated:
            if not public:
                raise
            caller = None  # a word for the application itself
        if caller is None and not public:
            raise Unauthenticated("this port needs a token: send it as 'Authorization: Bearer <token>'")
        if job is None:
            raise NotFound(f"there is no job {job_id!r}")
        if caller is not None and not public:
            authorize(caller, Permission.READ, job.namespace)
        if port not in job.spec.ports.exposed:
            raise NotFound(f"the job exposes no port {port}: `hf jobs expose {job_id} {port}` opens it")
        if patient and port == PORT and job.spec.sandbox is not None:
            job = await self._begun(job)
        self._check_running(job)
        return Visit(job, port, caller, token_digest if caller is not None else None)

    async def connect(self, visit: Visit, port: int | None = None) -> socket.socket:
        """Return a connected, non-blocking socket to the visited port, or to another one of the same job.

        Raises NotReady while nothing listens, Gone when the job is over, Silent when it does not accept in time.
        """
        port = visit.port if port is None else port
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                inside = await self._executor.inside(_handle(visit.job))
                return await inside.connect(port)
        except TimeoutError:
            message = f"the job's port {port} accepts no connection; its program may hang"
            raise Silent(message, "not-accepting") from None
        except NotRunning:
            self._check_running(await self._settled(visit.job))
            raise NotReady("the job is about to end or to start anew", "not-running") from None
        except ConnectionRefusedError:
            raise NotReady(
                f"nothing listens on port {port} of the job yet; try again soon. A program that listens on 127.0.0.1 "
                "alone may have to listen on 0.0.0.0",
                "not-listening",
            ) from None
        except OSError as error:
            message = f"the job's port {port} cannot be reached: {error.strerror or error}"
            raise NotReady(message, "unreachable") from error

    async def blame(self, visit: Visit) -> PortError:
        """Say why a connection into the job was lost before its answer was whole: the job, or its program."""
        try:
            job = await self._settled(visit.job)
            self._check_running(job)
        except PortError as error:
            return error
        return Gone("the program in the job closed the connection before its answer was complete", "connection-lost")

    async def _settled(self, job: Job) -> Job:
        """Return the job once it is known to be over, or after a moment: its end is told later than it is seen."""
        with self._events.subscribe(JOBS, job.id) as changed:
            deadline = asyncio.get_running_loop().time() + _VERDICT_SECONDS
            while True:
                now = await self._store.get(job.id)
                if now is None or now.phase is not Phase.RUNNING or now.attempt != job.attempt:
                    return now or job
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return now
                await changed.wait(left)

    async def _begun(self, job: Job) -> Job:
        """Return the job once it runs or is over, or after a moment."""
        if job.phase is Phase.RUNNING or job.stage.is_terminal:
            return job
        with self._events.subscribe(JOBS, job.id) as changed:
            deadline = asyncio.get_running_loop().time() + _BEGIN_SECONDS
            while True:
                job = await self._store.get(job.id) or job
                left = deadline - asyncio.get_running_loop().time()
                if job.phase is Phase.RUNNING or job.stage.is_terminal or left <= 0:
                    return job
                await changed.wait(left)

    def _check_running(self, job: Job) -> None:
        if job.stage.is_terminal:
            how = f": {job.message}" if job.message else ""
            raise Gone(f"the job is over, {job.stage}{how}", "job-ended", job.failure_class)
        if job.phase is not Phase.RUNNING or job.handle is None:
            how = f" ({job.message})" if job.message else ""
            raise NotReady(f"the job has not begun yet{how}; try again soon", "not-started")


def _handle(job: Job) -> Handle:
    if job.handle is None:
        raise BackendFailure(f"a running job without a handle: {job.id}")
    return Handle(job.handle["executor"], job.handle["version"], job.handle["data"])
