"""What the executors have in common that start jobs on this machine themselves: `process` and `oci`.

The work is done by the programs in `runstead.node`: a launcher that stays warm, and a supervisor beside every
attempt. This class starts the one, asks it for the others, and reads what they leave in the data directory; it keeps
nothing that a restart could lose. What the root directory of a job is made of is for its subclasses to say.
"""

import asyncio
import contextlib
import fcntl
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from runstead.executors.agent.inside import Insides
from runstead.executors.attempts import PROBE_ID, Attempts
from runstead.executors.egress import Egress
from runstead.executors.groups import own_hosts, show_hosts
from runstead.executors.hosts import Hosts
from runstead.executors.inside import Inside
from runstead.executors.interface import Capabilities, Executor
from runstead.executors.launching import Launcher
from runstead.executors.machine import find_machine
from runstead.executors.network import JobNetwork, ahead_name
from runstead.executors.prepared import Prepared, Waiting, fits, key_of
from runstead.executors.resolving import missing_name_service
from runstead.executors.snapshots import Snapshots
from runstead.executors.watching import Watching
from runstead.kit.settings import PASSED_BY_DEFAULT
from runstead.model.errors import BackendFailure, Invalid, NotRunning, Unavailable
from runstead.model.hardware import Machine
from runstead.model.launches import AttemptState, ExitRecord, Handle, Launch, Observation, Usage
from runstead.node import ahead, cgroups, launcher, places, removal, rundir, syscalls
from runstead.node.request import NO_NETWORK, Container, EngineContainer, Request, View
from runstead.node.spreading import spread

# All that work in this way: one finds the attempts of another again when the server was told to use it instead.
_KINDS = ("process", "oci", "docker")
_HANDLE_VERSION = 1
_FEW = 4
_DEATHS = 3  # of launchers' children, one after the other, before it is given up for now


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """What holds for every job that is started on this machine, whatever its root directory is made of."""

    # Namespaces: "full" refuses to run without them, "none" does not try, "auto" takes what the machine allows.
    isolation: Literal["auto", "full", "none"] = "auto"
    # A network of its own for each job ("private", needs root), or the machine's ("host"), or only loopback.
    network: Literal["auto", "private", "host", "none"] = "auto"
    # The private network, e.g. "10.213.0.0/20"; None: one that this machine has no route to.
    subnet: str | None = None
    # All that jobs may reach outside of this machine, as runstead.executors.egress has it; None: everything.
    egress: tuple[str, ...] | None = None
    # The port of the server that jobs may reach on the bridge; None: none.
    server_port: int | None = None
    # Of one attempt's log. What a job writes beyond is dropped, and the log says so.
    log_limit_bytes: int = 1 << 30
    # Between SIGTERM and SIGKILL when the time limit of a job is reached.
    grace_seconds: float = 10.0
    # Processes and threads of one job; 0: not limited.
    pids_limit: int = 8192
    # Variables of the server's own environment that jobs get, unless they say otherwise.
    pass_environment: tuple[str, ...] = PASSED_BY_DEFAULT
    # What jobs may use of this machine; None: what is found.
    machine: Machine | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """What the root directory of one attempt is made of: a view of the machine, an image, or an engine's container."""

    view: View | None = None
    container: Container | None = None
    engine: EngineContainer | None = None
    devices: tuple[str, ...] = ()  # device nodes, beside those everybody gets; for a view
    environment: Mapping[str, str] = field(default_factory=dict[str, str])  # weaker than what the launch says


class NativeExecutor(Executor):
    """Runs attempts on this machine."""

    KIND: ClassVar[str]

    def __init__(self, data_dir: Path, settings: NativeSettings, wake: Callable[[str, str], None]) -> None:
        """`wake` is called in the event loop with ("jobs" or "logs", job_id)."""
        self._data_dir = data_dir.absolute()
        self._node = self._data_dir / "node"
        self._settings = settings
        self._launcher = Launcher(self._data_dir)
        self._hosts = Hosts(self._launcher)
        self._prepared = Prepared(self._launcher)
        self._prepared_count = 0  # that were ever made
        self._prepared_kinds = 0  # that were wanted last
        self._attempts = Attempts(self._node)
        self._watching = Watching(self._node, self._attempts, wake)
        self._insides = Insides(self._attempts)
        self._snapshots = Snapshots(self._node, self._attempts)
        self._instance = ""
        self._machine: Machine | None = None
        self._isolation = "none"
        self._places: list[list[str]] = []
        self._network: JobNetwork | None = None
        self._egress: Egress | None = None
        self._presence = -1  # a lock that every server on this directory shares

    # What subclasses say

    @abstractmethod
    async def _find_isolation(self) -> list[str]:
        """Choose `_isolation`, by trying, and return what is missing for better. Raises Unavailable."""

    async def _furnish(self) -> None:
        """Make ready what all roots have in common; isolation and network are known now."""

    @abstractmethod
    async def _root(self, launch: Launch) -> Root:
        """Return what the attempt's root is made of. Raises Invalid, ImageFailure, Unavailable."""

    @abstractmethod
    def _describe(self, found: Capabilities) -> Capabilities:
        """Complete what `open` returns."""

    def _siblings(self, launch: Launch) -> str | None:
        """Return what attempts have in common that share a supervisor; None for one that has its own."""

    def _forget(self, name: str) -> None:
        """Let go of what an attempt that is not there, or not any more, held beside its directory."""

    # Executor

    async def open(self) -> Capabilities:
        """Start the launcher and find out by trying what this machine allows."""
        await asyncio.to_thread(self._prepare)
        self._watching.listen()
        await self._launcher.open(self._instance)
        self._machine = self._settings.machine or await asyncio.to_thread(find_machine, self._data_dir)
        self._places, missing = await asyncio.to_thread(self._find_places)
        missing += await self._find_isolation()
        missing += await self._find_network()
        self._insides.divisible, self._insides.networks = self._can_divide(), self._network
        await self._furnish()
        await asyncio.to_thread(self._prepare_spares)
        isolated = self._isolation != "none"
        return self._describe(
            Capabilities(
                kind=self.KIND,
                instance=self._instance,
                images=False,
                private_network=self._network is not None,
                queues_itself=False,
                host_address=self._host_address(),
                machine=self._machine,
                missing=tuple(missing),
                volumes=isolated,
                without_volumes="jobs run without namespaces here, so nothing can be mounted for them; "
                "`runstead doctor` says what is missing",
                private_ids=self._isolation == "root",
                inside=True,
                compartments=self._can_divide(),
                egress=self._network is not None,
                ports=isolated or syscalls.LINUX,
                groups=self._network is not None,
                without_groups="network groups need jobs to have networks of their own, which they do not have here; "
                "`runstead doctor` says what is missing",
                without_ports="which ports belong to a job cannot be found out on this system",
            )
        )

    async def close(self) -> None:
        """Let go of everything in this process; the launcher leaves too when there is no attempt left."""
        self._watching.close()
        self._insides.close()
        self._hosts.close()
        await self._let_go(self._prepared.drop({}))
        idle = await asyncio.to_thread(self._is_idle)
        if self._network is not None:
            await self._network.close(remove=idle)
            self._network = None
        await self._launcher.close(leave=idle)
        if idle:
            await asyncio.to_thread(cgroups.release_places, self._places)
        if self._presence >= 0:
            os.close(self._presence)
            self._presence = -1

    async def prepare(self, launch: Launch, tell: Callable[[str], None]) -> None:
        """See Executor."""

    async def start(self, launch: Launch) -> Handle:
        """See Executor."""
        name = self._name(launch.job_id, launch.attempt)
        try:
            places.owner_path("", launch.namespace)
        except ValueError as error:
            raise Invalid(str(error), "namespace") from error
        if launch.mounts and self._isolation == "none":
            raise Invalid("jobs run without namespaces here, so nothing can be mounted for them", "volumes")
        if not self._attempts.exists(name):
            try:
                return await self._start(name, launch, await self._root(launch))
            except BaseException:
                if not self._attempts.exists(name):
                    self._forget(name)
                raise
        await asyncio.to_thread(rundir.await_settled, str(self._attempts.path(name)))
        facts = self._attempts.facts(name)
        self._watching.watch(name, facts)
        return self._handle(name, facts)

    async def _start(self, name: str, launch: Launch, root: Root) -> Handle:
        request = self._request(launch, root)
        if self._network is None and launch.egress is not None and self._settings.network != "none":
            raise Invalid("what a job may reach can only be limited where it has a network of its own", "egress")
        made = self._take(name, request) if launch.group is None else None
        if self._network is not None:
            if made is not None:
                request.network, request.address = self._network.rename(made.name, name)
            else:
                request.network, request.address = await self._network.claim(name, launch.namespace)
            if launch.egress is not None:
                try:
                    request.hosts = [*request.hosts, *await self._network.confine(name, launch.egress)]
                except BaseException:
                    await self._network.release(name, request.address)
                    raise
            if launch.group is not None:
                show_hosts(request, await self._network.join(name, launch.group, own_hosts(request)))
        if made is None or not await self._start_in(made, request):
            await self._ask(request, name, self._siblings(launch))
        facts = self._attempts.facts(name)
        self._watching.watch(name, facts)
        handle = self._handle(name, facts)
        if self._network is not None and request.address not in (None, handle.data["address"]):
            await self._network.release(name)  # another server was faster, with a network of its own
        return handle

    def _take(self, name: str, request: Request) -> Waiting | None:
        """Return a container that was prepared for such a job, if there is one."""
        if not len(self._prepared) or not fits(request) or (self._network is not None and self._network.has(name)):
            return None
        return self._prepared.take(key_of(request))

    async def _start_in(self, made: Waiting, request: Request) -> bool:
        """Start an attempt in a prepared container; False when that died."""
        answer = await made.ask(request)
        if answer is not None and not answer["ok"]:
            raise Unavailable(f"the job could not be started yet: {answer['error']}")
        return answer is not None

    async def keep_prepared(self, wanted: Sequence[tuple[Launch, int]]) -> list[int]:
        """See Executor."""
        requests: list[tuple[Request, int]] = []
        for number, (launch, count) in enumerate(wanted, 1):  # their images are held as those of probes, by number
            named = replace(launch, job_id=PROBE_ID, attempt=number)
            requests.append((self._request(named, await self._root(named)), count))
        await self._let_go(self._prepared.drop({key_of(request): count for request, count in requests}))
        await asyncio.to_thread(ahead.sweep, str(self._node))  # what those left that were killed
        for number in range(len(wanted) + 1, self._prepared_kinds + 1):
            self._forget(self._name(PROBE_ID, number))
        self._prepared_kinds = len(wanted)
        for request, count in requests:
            if fits(request) and self._prepared.counts().get(key_of(request), 0) < count:
                await self._prepare_one(request)
                break
        there = self._prepared.counts()
        return [there.get(key_of(request), 0) for request, _ in requests]

    async def _prepare_one(self, request: Request) -> None:
        self._prepared_count += 1
        name = ahead_name(self._prepared_count)
        try:
            if self._network is not None:
                request.network, request.address = await self._network.claim(name)
            await self._prepared.make(name, request)
        except BaseException:
            await self._let_go([name])
            raise

    async def _let_go(self, names: Sequence[str]) -> None:
        """Give back what prepared containers held that nobody gets."""
        for name in names:
            if self._network is not None:
                await self._network.release(name)

    async def poll(self, handles: Sequence[Handle]) -> list[Observation]:
        """See Executor."""
        names = [self._name_of(handle) for handle in handles]
        if len(names) > _FEW:
            observations = await asyncio.to_thread(lambda: [self._attempts.observe(name) for name in names])
        else:  # a few small files of this machine are read in less time than another thread needs to begin
            observations = [self._attempts.observe(name) for name in names]
        for name, observation in zip(names, observations, strict=True):
            if name is not None and observation.state is AttemptState.RUNNING and not self._watching.watches(name):
                self._watching.watch(name, self._attempts.facts(name))
        return observations

    async def stop(self, handle: Handle, grace_seconds: float) -> None:
        """See Executor."""
        name = self._name_of(handle)
        if name is not None:
            order = json.dumps({"op": "stop", "grace": grace_seconds}).encode()
            await asyncio.to_thread(removal.tell, str(self._attempts.path(name)), order)

    async def remove(self, handle: Handle) -> None:
        """See Executor."""
        name = self._name_of(handle)
        if name is None:
            return
        self._watching.unwatch(name)
        self._insides.forget(name)
        address = self._attempts.facts(name).get("address")
        try:
            await asyncio.to_thread(removal.remove, str(self._data_dir), name)
        except OSError as error:
            raise BackendFailure(f"what the attempt held could not be given back: {error}: {name}") from error
        if self._network is not None:
            await self._network.release(name, address)
            await self._network.release_below(name)
        self._forget(name)

    async def inside(self, handle: Handle) -> Inside:
        """See Executor."""
        return await self._insides.find(self._own_name(handle))

    async def snapshot(self, handle: Handle, name: str) -> None:
        """See Executor."""
        await asyncio.to_thread(self._snapshots.take, self._own_name(handle), name)

    async def snapshots(self) -> list[str]:
        """See Executor."""
        return await asyncio.to_thread(self._snapshots.names)

    async def drop_snapshot(self, name: str) -> None:
        """See Executor."""
        await asyncio.to_thread(self._snapshots.drop, name)

    async def owned(self) -> list[tuple[str, int, Handle]]:
        """See Executor."""
        names = await asyncio.to_thread(self._attempts.names)
        found = [rundir.parse_name(name) for name in names]
        handles = await asyncio.to_thread(lambda: [self._handle(name) for name in names])
        return [(*parsed, handle) for parsed, handle in zip(found, handles, strict=True) if parsed is not None]

    async def usage(self, handle: Handle) -> Usage | None:
        """See Executor."""
        name = self._name_of(handle)
        return None if name is None else await asyncio.to_thread(self._attempts.measure, name, self._traffic)

    def _traffic(self, address: str) -> tuple[int, int]:
        return self._network.traffic(address) if self._network else (0, 0)

    def _can_divide(self) -> bool:
        """Say whether attempts can have compartments: their ids, limits and networks need the machine's root."""
        apart = self._network is not None or self._settings.network == "none"
        kinds = {kind for kind, _ in self._places}
        return self._isolation == "root" and apart and ("v2" in kinds or {"memory", "pids", "cpu"} <= kinds)

    def _is_idle(self) -> bool:
        """Say whether there is no attempt left, nor another server that works with this directory."""
        if self._attempts.names() or self._presence < 0:
            return False
        try:
            fcntl.flock(self._presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    # Making ready

    def _prepare(self) -> None:
        for name in ("", "attempts", "namespaces", "empty", "root"):
            (self._node / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._node / "empty").chmod(0o755)
        spread(str(self._node / "attempts"))
        ahead.sweep(str(self._node))
        self._presence = os.open(self._node / "servers.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._presence, fcntl.LOCK_SH)
        instance = self._node / "instance"
        if not instance.exists():
            spare = self._node / f"instance.{os.getpid()}"
            spare.write_text(os.urandom(4).hex(), encoding="ascii")
            with contextlib.suppress(FileExistsError):
                os.link(spare, instance)
            spare.unlink()
        self._instance = instance.read_text(encoding="ascii")

    def _prepare_spares(self) -> None:
        """Let the launcher prepare supervisors for what was found to work."""
        ground = {"isolation": self._isolation, "cgroups": self._places}
        if rundir.read_json(str(self._node / launcher.SPARES)) != ground:
            rundir.write_json(str(self._node / launcher.SPARES), ground)

    def _find_places(self) -> tuple[list[list[str]], list[str]]:
        """Return where control groups of jobs can be made, and what is missing for them."""
        return cgroups.find_places(f"runstead-{self._instance}")

    async def _find_network(self) -> list[str]:
        """Make jobs a private network if we may; return what is missing for it."""
        wish, egress = self._settings.network, self._settings.egress
        if wish == "none" or (wish == "host" and egress is None):
            return []
        failure = "needs a server that runs as root, and namespaces"
        unknown: list[str] = []
        if self._isolation == "root" and wish != "host":
            if egress is not None:
                self._egress = Egress(egress)
                unknown = await asyncio.to_thread(self._egress.refresh)
            network = JobNetwork(
                self._instance, self._settings.subnet, self._settings.server_port, self._egress, self._node / "groups"
            )
            try:
                await network.open(self._node / "attempts")
            except OSError as error:
                failure = str(error)
            else:
                self._network = network
                if egress is None:
                    return missing_name_service()
                return [f"jobs cannot reach {name} of executor.egress: nobody knows its address" for name in unknown]
        if egress is not None:
            raise Unavailable(f"executor.egress needs jobs to have a network of their own: {failure}")
        if wish == "private":
            raise Unavailable(f"network = private is not possible here: {failure}")
        return [f"jobs share this machine's network and its ports: {failure}"]

    def _passed_environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in self._settings.pass_environment if name in os.environ}

    def _shared_address(self) -> str | None:
        lonely = self._settings.network == "none" and self._isolation != "none"
        return None if lonely else "127.0.0.1"

    def _host_address(self) -> str | None:
        return self._shared_address() if self._network is None else self._network.address

    async def _probe(self, root: Root, *argv: str) -> tuple[ExitRecord | None, str]:
        """Run something trivial; return how it ended (None: it has no record) and its last words."""
        launch = Launch(
            job_id=PROBE_ID,
            attempt=os.getpid(),
            namespace="runstead-probe",
            image="",
            argv=argv,
            environment={},
            cpu_millicores=0,
            memory_bytes=0,
            disk_bytes=None,
            gpu_ids=(),
            timeout_seconds=20,
            log_path=self._node / "probe.log",
            log_not_before=datetime.fromtimestamp(0, UTC),
            preamble=(),
        )
        launch.log_path.unlink(missing_ok=True)
        handle = await self._start(self._name(launch.job_id, launch.attempt), launch, root)
        try:
            while True:
                [seen] = await self.poll([handle])
                if seen.state is not AttemptState.RUNNING:
                    break
                await asyncio.sleep(0.005)
            words = launch.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return seen.exit, words[-1] if words else "the supervisor died"
        finally:
            await self.remove(handle)

    # Starting

    def _request(self, launch: Launch, root: Root) -> Request:
        return Request(
            job_id=launch.job_id,
            attempt=launch.attempt,
            namespace=launch.namespace,
            argv=list(launch.argv),
            environment={**root.environment, **launch.environment},
            cpu_millicores=launch.cpu_millicores,
            memory_bytes=launch.memory_bytes,
            pids_limit=self._settings.pids_limit,
            devices=list(root.devices),
            gpu_ids=list(launch.gpu_ids),
            timeout_seconds=launch.timeout_seconds,
            grace_seconds=self._settings.grace_seconds,
            log_path=str(launch.log_path.absolute()),
            log_not_before=int(launch.log_not_before.timestamp() * 1_000_000),
            log_limit_bytes=self._settings.log_limit_bytes,
            preamble=list(launch.preamble),
            isolation=self._isolation,
            network=NO_NETWORK if self._settings.network == "none" else None,
            address=None,
            hosts=self._egress.hosts() if self._egress else [],
            cgroups=self._places,
            mounts=[[str(one.source), one.target, "ro" if one.read_only else "rw"] for one in launch.mounts],
            view=root.view,
            container=root.container,
            engine=root.engine,
            divided=launch.divided,
        )

    async def _ask(self, request: Request, name: str, siblings: str | None) -> None:
        """Have the attempt started; return when there is one."""
        deaths = 0
        while deaths < _DEATHS:
            shared = siblings is not None and not deaths
            connection = await (self._hosts.connect(siblings or "") if shared else self._launcher.connect())
            answer = await self._launcher.ask(request.to_message(), connection)
            if answer is not None and answer.get("again"):
                continue  # what was prepared was prepared for others, and is gone with this answer
            if answer is not None and not answer["ok"]:
                raise Unavailable(f"the job could not be started yet: {answer['error']}")
            if answer is not None or self._attempts.exists(name):
                return
            deaths += 1
        # Whatever it is, a machine short of memory above all, may pass: whoever asked tries again after a rest.
        raise Unavailable(
            f"the launcher's child died before it made the attempt; see {self._node}/launcher.log: {name}"
        )

    # Names

    def _handle(self, name: str, facts: Mapping[str, Any] | None = None) -> Handle:
        facts = self._attempts.facts(name) if facts is None else facts
        job_id, _, attempt = name.partition("-")
        data = {
            "instance": self._instance,
            "job_id": job_id,
            "attempt": int(attempt),
            "address": facts.get("address") or self._shared_address(),  # where the job's ports are
        }
        return Handle(self.KIND, _HANDLE_VERSION, data)

    def _name(self, job_id: str, attempt: int) -> str:
        try:
            return rundir.attempt_name(job_id, attempt)
        except ValueError as error:
            raise Invalid(str(error)) from error

    def _own_name(self, handle: Handle) -> str:
        name = self._name_of(handle)
        if name is None:
            raise NotRunning(f"this is no attempt of this executor: {handle.data.get('job_id')}")
        return name

    def _name_of(self, handle: Handle) -> str | None:
        """Return the directory name of an attempt; None for a handle that is not ours."""
        data: Mapping[str, Any] = handle.data
        if handle.executor not in _KINDS or handle.version != _HANDLE_VERSION:
            return None
        if data.get("instance") != self._instance:
            return None
        try:
            return rundir.attempt_name(data["job_id"], data["attempt"])
        except (ValueError, KeyError, TypeError):
            return None
