"""The `process` executor: a job is a Linux process in namespaces of its own over this machine's own system.

It needs no daemon and no image. The work is done by the programs in `runstead.node`: a launcher that stays
warm, and a supervisor beside every attempt. This class starts the one, asks it for the others, and reads what
they leave in the data directory; it keeps nothing that a restart could lose.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from runstead.executors.inside import Inside
from runstead.executors.interface import Capabilities, Executor
from runstead.executors.launching import Launcher
from runstead.executors.machine import find_machine, gpu_devices, gpu_usage, shared_gpu_devices
from runstead.executors.network import JobNetwork
from runstead.executors.view import (
    Programs,
    find_programs,
    isolated_view,
    missing_name_service,
    plain_view,
    prepare_tools,
)
from runstead.model.errors import BackendFailure, Invalid, Unavailable, Unsupported
from runstead.model.hardware import Machine
from runstead.model.launches import AttemptState, ExitReason, ExitRecord, Handle, Launch, Observation, Usage
from runstead.node import cgroups, framing, launcher, places, processes, removal, rundir, syscalls
from runstead.node.request import NO_NETWORK, Request, View

KIND = "process"
_HANDLE_VERSION = 1
_PROBE_ID = "0" * 24

_NOTE = "the process executor runs commands on this machine's own system; the image is not used"
_PLAIN_NOTE = "jobs run without isolation: they see this machine's files and processes as the server's user does"


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """Settings of the process executor."""

    # Namespaces: "full" refuses to run without them, "none" does not try, "auto" takes what the machine allows.
    isolation: Literal["auto", "full", "none"] = "auto"
    # A network of its own for each job ("private", needs root), or the machine's ("host"), or only loopback.
    network: Literal["auto", "private", "host", "none"] = "auto"
    # The private network, e.g. "10.213.0.0/20"; None: one that this machine has no route to.
    subnet: str | None = None
    # The port of the server that jobs may reach on the bridge; None: none.
    server_port: int | None = None
    # Of one attempt's log. What a job writes beyond is dropped, and the log says so.
    log_limit_bytes: int = 1 << 30
    # Between SIGTERM and SIGKILL when the time limit of a job is reached.
    grace_seconds: float = 10.0
    # Processes and threads of one job; 0: not limited.
    pids_limit: int = 8192
    # Variables of the server's own environment that jobs get, unless they say otherwise.
    pass_environment: tuple[str, ...] = (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "UV_INDEX",
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_EXTRA_INDEX_URL",
        "UV_FIND_LINKS",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "TZ",
    )
    # What jobs may use of this machine; None: what is found.
    machine: Machine | None = None


class ProcessExecutor(Executor):
    """Runs attempts on this machine."""

    def __init__(self, data_dir: Path, settings: ProcessSettings, wake: Callable[[str, str], None]) -> None:
        """`wake` is called in the event loop with ("jobs" or "logs", job_id)."""
        self._data_dir = data_dir.absolute()
        self._node = self._data_dir / "node"
        self._settings = settings
        self._wake = wake
        self._launcher = Launcher(self._data_dir)
        self._instance = ""
        self._isolation = "none"
        self._view: View | None = None
        self._places: list[list[str]] = []
        self._network: JobNetwork | None = None
        self._presence = -1  # a lock that every server on this directory shares
        self._wake_socket: socket.socket | None = None
        self._watched: dict[str, int] = {}  # name of an attempt: pidfd of its supervisor

    async def open(self) -> Capabilities:
        """Start the launcher and find out by trying what this machine allows."""
        programs = await asyncio.to_thread(self._prepare)
        self._listen()
        await self._launcher.open(self._instance)
        machine = self._settings.machine or await asyncio.to_thread(find_machine, self._data_dir)
        self._places, missing = await asyncio.to_thread(cgroups.find_places, f"runstead-{self._instance}")
        missing += await self._find_isolation(programs, machine)
        missing += await self._find_network(programs, machine)
        await asyncio.to_thread(self._prepare_spares)
        isolated = self._isolation != "none"
        if not programs.uv:
            missing.append("uv is not installed: jobs cannot `uv run`")
        return Capabilities(
            kind=KIND,
            instance=self._instance,
            images=False,
            private_network=self._network is not None,
            queues_itself=False,
            host_address=self._host_address(),
            machine=machine,
            notes=(_NOTE,) if isolated else (_NOTE, _PLAIN_NOTE),
            missing=tuple(missing),
            volumes=isolated,
            without_volumes="jobs run without namespaces here, so nothing can be mounted for them; "
            "`runstead doctor` says what is missing",
            private_ids=self._isolation == "root",
        )

    async def close(self) -> None:
        """Let go of everything in this process; the launcher leaves too when there is no attempt left."""
        for name in list(self._watched):
            self._unwatch(name)
        if self._wake_socket is not None:
            asyncio.get_running_loop().remove_reader(self._wake_socket)
            self._wake_socket.close()
            self._wake_socket = None
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
        """See Executor. There is nothing to bring: a job sees this machine's own system."""

    async def start(self, launch: Launch) -> Handle:
        """See Executor."""
        name = self._name(launch.job_id, launch.attempt)
        try:
            places.owner_path("", launch.namespace)
        except ValueError as error:
            raise Invalid(str(error), "namespace") from error
        if launch.mounts and self._isolation == "none":
            raise Invalid("jobs run without namespaces here, so nothing can be mounted for them", "volumes")
        request = self._request(launch)
        if self._network is not None and not self._exists(name):
            request.network, request.address = await self._network.claim(name)
        await self._ask(request, name)
        self._watch(name)
        handle = self._handle(name)
        if self._network is not None and request.address not in (None, handle.data["address"]):
            await self._network.release(name)  # another server was faster, with a network of its own
        return handle

    async def poll(self, handles: Sequence[Handle]) -> list[Observation]:
        """See Executor."""
        names = [self._name_of(handle) for handle in handles]
        observations = await asyncio.to_thread(lambda: [self._observe(name) for name in names])
        for name, observation in zip(names, observations, strict=True):
            if name is not None and observation.state is AttemptState.RUNNING:
                self._watch(name)
        return observations

    async def stop(self, handle: Handle, grace_seconds: float) -> None:
        """See Executor."""
        name = self._name_of(handle)
        if name is not None:
            order = json.dumps({"op": "stop", "grace": grace_seconds}).encode()
            await asyncio.to_thread(removal.tell, str(self._path(name)), order)

    async def remove(self, handle: Handle) -> None:
        """See Executor."""
        name = self._name_of(handle)
        if name is None:
            return
        self._unwatch(name)
        facts = rundir.read_json(str(self._path(name) / rundir.ATTEMPT)) or {}
        try:
            await asyncio.to_thread(removal.remove, str(self._data_dir), name)
        except OSError as error:
            raise BackendFailure(f"what the attempt held could not be given back: {error}: {name}") from error
        if self._network is not None:
            await self._network.release(name, facts.get("address"))

    async def inside(self, handle: Handle) -> Inside:
        """See Executor."""
        raise Unsupported(f"there is no way into running jobs yet: {handle.data.get('job_id')}")

    async def owned(self) -> list[tuple[str, int, Handle]]:
        """See Executor."""
        names = await asyncio.to_thread(self._names)
        found = [rundir.parse_name(name) for name in names]
        handles = await asyncio.to_thread(lambda: [self._handle(name) for name in names])
        return [(*parsed, handle) for parsed, handle in zip(found, handles, strict=True) if parsed is not None]

    async def usage(self, handle: Handle) -> Usage | None:
        """See Executor."""
        name = self._name_of(handle)
        return None if name is None else await asyncio.to_thread(self._measure, name)

    def _is_idle(self) -> bool:
        """Say whether there is no attempt left, nor another server that works with this directory."""
        if self._names() or self._presence < 0:
            return False
        try:
            fcntl.flock(self._presence, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    # Making ready

    def _prepare(self) -> Programs:
        for name in ("", "attempts", "namespaces", "empty", "root"):
            (self._node / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._node / "empty").chmod(0o755)
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
        programs = find_programs()
        prepare_tools(self._node, programs)
        return programs

    def _prepare_spares(self) -> None:
        """Let the launcher prepare supervisors for what was found to work."""
        ground = {"isolation": self._isolation, "cgroups": self._places}
        if rundir.read_json(str(self._node / launcher.SPARES)) != ground:
            rundir.write_json(str(self._node / launcher.SPARES), ground)

    async def _find_isolation(self, programs: Programs, machine: Machine) -> list[str]:
        """Choose how jobs run by running one; return what is missing for better."""
        missing: list[str] = []
        if self._settings.isolation != "none" and syscalls.LINUX:
            view = await asyncio.to_thread(self._find_view, programs, machine)
            for way in ("root", "user") if os.geteuid() == 0 else ("user",):
                self._isolation, self._view = way, view
                failure = await self._probe()
                if failure is None:
                    return missing
                missing.append(f"no namespaces as {way}: {failure}")
        if self._settings.isolation == "full":
            raise Unavailable(f"isolation = full is not possible here: {'; '.join(missing)}")
        environment = {name: os.environ[name] for name in self._settings.pass_environment if name in os.environ}
        self._isolation, self._view = "none", plain_view(self._node, programs, environment)
        failure = await self._probe()
        if failure is not None:
            missing.append(f"even a plain process does not start: {failure}")
        return missing

    async def _find_network(self, programs: Programs, machine: Machine) -> list[str]:
        """Make jobs a private network if we may; return what is missing for it."""
        wish = self._settings.network
        if wish in ("host", "none"):
            return []
        failure = "needs a server that runs as root, and namespaces"
        if self._isolation == "root":
            network = JobNetwork(self._instance, self._settings.subnet, self._settings.server_port)
            try:
                await network.open(self._node / "attempts")
            except OSError as error:
                failure = str(error)
            else:
                self._network = network
                self._view = await asyncio.to_thread(self._find_view, programs, machine)
                return missing_name_service()
        if wish == "private":
            raise Unavailable(f"network = private is not possible here: {failure}")
        return [f"jobs share this machine's network and its ports: {failure}"]

    def _find_view(self, programs: Programs, machine: Machine) -> View:
        environment = {name: os.environ[name] for name in self._settings.pass_environment if name in os.environ}
        return isolated_view(
            self._data_dir,
            programs,
            environment,
            private_network=self._network is not None,
            gpus=bool(machine.gpus),
        )

    def _shared_address(self) -> str | None:
        lonely = self._settings.network == "none" and self._isolation != "none"
        return None if lonely else "127.0.0.1"

    def _host_address(self) -> str | None:
        return self._shared_address() if self._network is None else self._network.address

    async def _probe(self) -> str | None:
        """Run something trivial; return why it failed."""
        launch = Launch(
            job_id=_PROBE_ID,
            attempt=os.getpid(),
            namespace="runstead-probe",
            image="",
            argv=("python", "-c", "pass"),
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
        handle = await self.start(launch)
        try:
            while True:
                [seen] = await self.poll([handle])
                if seen.state is not AttemptState.RUNNING:
                    break
                await asyncio.sleep(0.005)
            if seen.exit is None:
                return "the supervisor died"
            if seen.exit.exit_code == 0:
                return None
            words = launch.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return seen.exit.message or (words[-1] if words else f"exit code {seen.exit.exit_code}")
        finally:
            await self.remove(handle)

    def _listen(self) -> None:
        """Receive the supervisors' wake-ups."""
        path = self._node / "wake"
        path.unlink(missing_ok=True)
        folder = os.open(self._node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._wake_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._wake_socket.setblocking(False)
        self._wake_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._wake_socket.bind(framing.socket_address(folder, str(self._node), "wake"))
        os.close(folder)
        asyncio.get_running_loop().add_reader(self._wake_socket, self._hear)

    def _hear(self) -> None:
        assert self._wake_socket is not None
        for _ in range(256):
            try:
                word = self._wake_socket.recv(64)
            except OSError:
                return
            self._wake("logs" if word[:1] == b"l" else "jobs", word[1:].decode("ascii", "replace"))

    # Starting

    def _request(self, launch: Launch) -> Request:
        assert self._view is not None
        environment = dict(launch.environment)
        if self._isolation == "none":
            environment.setdefault("CUDA_VISIBLE_DEVICES", ",".join(launch.gpu_ids))
        devices = [node for gpu_id in launch.gpu_ids for node in gpu_devices(gpu_id)]
        return Request(
            job_id=launch.job_id,
            attempt=launch.attempt,
            namespace=launch.namespace,
            argv=list(launch.argv),
            environment=environment,
            cpu_millicores=launch.cpu_millicores,
            memory_bytes=launch.memory_bytes,
            pids_limit=self._settings.pids_limit,
            devices=devices + shared_gpu_devices() if devices else [],
            timeout_seconds=launch.timeout_seconds,
            grace_seconds=self._settings.grace_seconds,
            log_path=str(launch.log_path.absolute()),
            log_not_before=int(launch.log_not_before.timestamp() * 1_000_000),
            log_limit_bytes=self._settings.log_limit_bytes,
            preamble=list(launch.preamble),
            isolation=self._isolation,
            network=NO_NETWORK if self._settings.network == "none" else None,
            address=None,
            cgroups=self._places,
            mounts=[[str(one.source), one.target, "ro" if one.read_only else "rw"] for one in launch.mounts],
            view=self._view,
        )

    async def _ask(self, request: Request, name: str) -> None:
        """Have the attempt started; return when there is one."""
        for _ in range(3):
            answer = await self._launcher.ask(request.to_message())
            if answer is not None and answer.get("again"):
                continue
            if answer is not None and not answer["ok"]:
                raise Unavailable(f"the job could not be started yet: {answer['error']}")
            if answer is not None or self._exists(name):
                return
        raise BackendFailure(
            f"the launcher's child died before it made the attempt; see {self._node}/launcher.log: {name}"
        )

    def _exists(self, name: str) -> bool:
        return self._path(name).is_dir()

    # Looking

    def _observe(self, name: str | None) -> Observation:
        if name is None:
            return Observation(AttemptState.LOST, message="no attempt of this executor")
        path = self._path(name)
        record = _read_exit(path)
        if record is None:
            if rundir.is_alive(str(path)):
                started = rundir.read_json(str(path / rundir.STARTED))
                return Observation(AttemptState.RUNNING, started_at=_instant(started and started.get("started_at")))
            record = _read_exit(path)  # it may have ended between the two looks
        if record is None:
            gone = "its supervisor died" if path.is_dir() else "nothing is left of it"
            return Observation(AttemptState.LOST, message=f"the attempt ended without a record: {gone}")
        return Observation(AttemptState.EXITED, started_at=record.started_at, exit=record)

    def _watch(self, name: str) -> None:
        """See to it that the end of a supervisor wakes us, also one that cannot say so any more."""
        if name in self._watched or not hasattr(os, "pidfd_open"):
            return
        facts = rundir.read_json(str(self._path(name) / rundir.ATTEMPT))
        if facts is None:
            return
        try:
            fd = os.pidfd_open(int(cast("int", facts["supervisor"])))
        except (OSError, KeyError):
            return
        if not rundir.is_alive(str(self._path(name))):  # the number may be somebody else's by now
            os.close(fd)
            return
        self._watched[name] = fd
        asyncio.get_running_loop().add_reader(fd, self._supervisor_ended, name)

    def _supervisor_ended(self, name: str) -> None:
        self._unwatch(name)
        parsed = rundir.parse_name(name)
        if parsed is not None:
            self._wake("jobs", parsed[0])

    def _unwatch(self, name: str) -> None:
        fd = self._watched.pop(name, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _measure(self, name: str) -> Usage | None:
        path = self._path(name)
        facts = rundir.read_json(str(path / rundir.ATTEMPT))
        if facts is None or (path / rundir.EXIT).exists() or not rundir.is_alive(str(path)):
            return None
        group = cgroups.Group(facts["cgroups"], facts["group"])
        address = facts.get("address")
        cpu_seconds, memory_bytes = group.cpu_seconds(), group.memory_bytes()
        if cpu_seconds is None or memory_bytes is None:
            found = processes.usage(int(facts["supervisor"]))
            cpu_seconds = found[0] if cpu_seconds is None else cpu_seconds
            memory_bytes = found[1] if memory_bytes is None else memory_bytes
        received, sent = self._network.traffic(address) if self._network and address else (0, 0)
        return Usage(
            at=datetime.fromtimestamp(time.time(), UTC),
            cpu_seconds=cpu_seconds,
            memory_used_bytes=memory_bytes,
            rx_bytes=received,
            tx_bytes=sent,
            gpus=gpu_usage(tuple(cast("list[str]", facts.get("gpu_ids", [])))),
        )

    # Names

    def _names(self) -> list[str]:
        names = [entry.name for entry in (self._node / "attempts").iterdir()]
        return sorted(name for name in names if rundir.parse_name(name) and not name.startswith(_PROBE_ID))

    def _path(self, name: str) -> Path:
        return self._node / "attempts" / name

    def _handle(self, name: str) -> Handle:
        facts = rundir.read_json(str(self._path(name) / rundir.ATTEMPT)) or {}
        job_id, _, attempt = name.partition("-")
        data = {
            "instance": self._instance,
            "job_id": job_id,
            "attempt": int(attempt),
            "address": facts.get("address") or self._shared_address(),  # where the job's ports are
        }
        return Handle(KIND, _HANDLE_VERSION, data)

    def _name(self, job_id: str, attempt: int) -> str:
        try:
            return rundir.attempt_name(job_id, attempt)
        except ValueError as error:
            raise Invalid(str(error)) from error

    def _name_of(self, handle: Handle) -> str | None:
        """Return the directory name of an attempt; None for a handle that is not ours."""
        data: Mapping[str, Any] = handle.data
        if handle.executor != KIND or handle.version != _HANDLE_VERSION or data.get("instance") != self._instance:
            return None
        try:
            return rundir.attempt_name(data["job_id"], data["attempt"])
        except (ValueError, KeyError, TypeError):
            return None


def _read_exit(path: Path) -> ExitRecord | None:
    record = rundir.read_json(str(path / rundir.EXIT))
    if record is None:
        return None
    values: dict[str, Any] = record
    return ExitRecord(
        reason=ExitReason(values["reason"]),
        exit_code=values["exit_code"],
        signal=values["signal"],
        started_at=_instant(values["started_at"]),
        finished_at=_instant(values["finished_at"]) or datetime.now(UTC),
        message=values["message"],
    )


def _instant(seconds: object) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) else None
