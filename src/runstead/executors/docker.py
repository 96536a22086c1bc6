"""The `docker` executor: jobs are containers of an engine that the machine already runs, Docker's or a compatible one.

For machines whose administrators want one engine, and for macOS. The engine makes containers and keeps images; the
log, the deadline and the last word are those of our own supervisor beside each attempt, as everywhere.
"""

import asyncio
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runstead.executors.cdi import NVIDIA
from runstead.executors.engine_images import EngineImages, part, unreachable
from runstead.executors.engine_snapshots import EngineSnapshots
from runstead.executors.inside import Inside
from runstead.executors.interface import Capabilities, Shortfall
from runstead.executors.native import NativeExecutor, NativeSettings, Root
from runstead.executors.shell.inside import ShellInsides
from runstead.model.errors import BackendFailure, Unavailable
from runstead.model.hardware import Machine
from runstead.model.launches import Handle, Launch, Usage
from runstead.node import rundir, syscalls
from runstead.node.engine import ATTEMPT, INSTANCE, JOB, Engine, EngineError
from runstead.node.request import ENGINE, EngineContainer

# Where engines listen; the first that is there is taken.
USUAL_SOCKETS = (
    "/var/run/docker.sock",
    "~/.docker/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/user/{user}/podman/podman.sock",
)
_NO_GPUS = (
    "GPUs are not given to jobs: the engine knows neither device descriptions (Docker 25, CDI) nor NVIDIA's runtime"
)
_ENTERABLE = ("crun", "runc", "io.containerd.runc.v2", "nvidia")  # runtimes whose containers are just processes
_BY_API = frozenset(Shortfall) - {Shortfall.SHARED_BRIDGE}  # what comes of reaching into containers by the API alone
_SECONDS = 30.0
_REMOVALS = 40  # looks at a container whose removal somebody else has begun, before we give up
_REMOVAL_PAUSE_SECONDS = 0.25
_NETWORKS = {"auto": "bridge", "private": "bridge", "host": "host", "none": "none"}


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """Settings of the docker executor."""

    native: NativeSettings = field(default_factory=NativeSettings)
    # The engine's; None: `$DOCKER_HOST`, else the first of the usual ones.
    socket: Path | None = None
    # Of /dev/shm in each job.
    shared_memory_bytes: int = 64 << 20
    # Of the processes of each job: name=soft:hard; () leaves them to the engine.
    ulimits: tuple[str, ...] = ()
    # The only registries that jobs may name images of; empty: all.
    registries: tuple[str, ...] = ()
    # Credentials of registries; None: the usual files of the server's user.
    auth_file: Path | None = None
    # Whether jobs are reached by the engine's API even where the machine's own ways would do.
    by_api: bool = False
    # How long the engine may be silent while it pulls.
    stall_seconds: float = 300.0


class DockerExecutor(NativeExecutor):
    """Runs attempts in containers of an engine."""

    KIND = "docker"

    def __init__(self, data_dir: Path, settings: DockerSettings, wake: Callable[[str, str], None]) -> None:
        """See NativeExecutor."""
        super().__init__(data_dir, settings.native, wake)
        self._wanted = settings
        self._socket = ""
        self._engine = Engine("")
        self._images = EngineImages("", (), None, 0)
        self._ulimits = [_ulimit(text) for text in settings.ulimits]
        self._network_name = _NETWORKS[settings.native.network]
        self._gateway: str | None = None
        self._info: Mapping[str, Any] = {}
        self._shells: ShellInsides | None = None
        self._entered = False  # whether containers are processes of this machine, and we may enter them

    async def open(self) -> Capabilities:
        """See Executor."""
        if self._settings.egress is not None:
            raise Unavailable("executor.egress is not possible with executor.kind = docker: the engine has the network")
        self._socket = find_socket(self._wanted.socket, os.environ)
        self._engine = Engine(self._socket)
        wanted = self._wanted
        self._images = EngineImages(self._socket, wanted.registries, wanted.auth_file, wanted.stall_seconds)
        try:
            self._info = await asyncio.to_thread(self._engine.call, "GET", "/info", seconds=_SECONDS)
        except (OSError, EngineError) as error:
            raise Unavailable(unreachable(self._socket, error)) from error
        self._entered = not wanted.by_api and _can_enter(self._info)
        self._shells = ShellInsides(self._attempts, self._engine)
        self._gateway = await asyncio.to_thread(self._find_gateway)
        return await super().open()

    async def prepare(self, launch: Launch, tell: Callable[[str], None]) -> None:
        """See Executor."""
        if not launch.snapshots:
            await self._images.get(launch.image, tell)

    async def start(self, launch: Launch) -> Handle:
        """See Executor."""
        return await super().start(launch)

    async def close(self) -> None:
        """See Executor."""
        if self._shells is not None:
            self._shells.close()
        await super().close()

    async def remove(self, handle: Handle) -> None:
        """See Executor."""
        name = self._name_of(handle)
        if name is None:
            return
        if self._shells is not None:
            self._shells.forget(name)
        await super().remove(handle)
        # Also what a supervisor that was killed left running. Should this fail, `owned` finds it by its labels.
        await asyncio.to_thread(self._remove_container, self._container_name(name))

    async def inside(self, handle: Handle) -> Inside:
        """See Executor."""
        name = self._name_of(handle)
        if self._entered or self._shells is None or name is None:
            return await super().inside(handle)
        return await self._shells.find(name, self._container_name(name))

    async def snapshot(self, handle: Handle, name: str) -> None:
        """See Executor."""
        container = self._container_name(self._own_name(handle))
        await asyncio.to_thread(self._kept().take, container, name)

    async def snapshots(self) -> list[str]:
        """See Executor."""
        return await asyncio.to_thread(self._kept().names)

    async def drop_snapshot(self, name: str) -> None:
        """See Executor."""
        await asyncio.to_thread(self._kept().drop, name)

    async def owned(self) -> list[tuple[str, int, Handle]]:
        """See Executor."""
        found = await super().owned()
        known = {(job_id, attempt) for job_id, attempt, _ in found}
        names = await asyncio.to_thread(self._left_containers)
        lost = [(parsed, name) for name in names if (parsed := rundir.parse_name(name)) and parsed not in known]
        return [*found, *((*parsed, self._handle(name)) for parsed, name in lost)]

    async def usage(self, handle: Handle) -> Usage | None:
        """See Executor."""
        name = self._name_of(handle)
        if name is None or not self._attempts.alive(name):
            return None
        path = f"/containers/{self._container_name(name)}/stats"
        query = {"stream": "false", "one-shot": "true"}
        try:
            seen = await asyncio.to_thread(self._engine.call, "GET", path, query=query, seconds=_SECONDS)
        except (OSError, EngineError):
            return None
        return _usage(seen) if seen else None

    # What NativeExecutor asks

    async def _find_isolation(self) -> list[str]:
        self._isolation = ENGINE
        return []

    def _find_places(self) -> tuple[list[list[str]], list[str]]:
        return [], []  # the engine's business

    async def _find_network(self) -> list[str]:
        return []

    async def _root(self, launch: Launch) -> Root:
        if launch.snapshots:
            image = await asyncio.to_thread(self._kept().find, launch.snapshots[-1])
        else:
            image = await self._images.get(launch.image, lambda _line: None)
        lines: list[str] = part(image, "Config").get("Env") or []
        known = {name for name, _, value in (line.partition("=") for line in lines) if value or not launch.snapshots}
        passed = {name: value for name, value in self._passed_environment().items() if name not in known}
        shown = await asyncio.to_thread(_files, passed)
        if launch.snapshots:  # where it is empty in an image, an engine leaves it so
            passed["HOSTNAME"] = str(self._info.get("Name")) if self._network_name == "host" else launch.job_id
        container = EngineContainer(
            socket=self._socket,
            name=self._container_name(self._name(launch.job_id, launch.attempt)),
            instance=self._instance,
            image=str(image["Id"]),
            network=self._network_name,
            environment=passed,
            binds=shown,
            shared_memory_bytes=self._wanted.shared_memory_bytes,
            ulimits=list(self._ulimits),
            entered=self._entered,
            machine=str(self._info.get("Architecture") or ""),
            gpus=gpu_options(self._info, launch.gpu_ids) or {},
        )
        return Root(engine=container)

    def _describe(self, found: Capabilities) -> Capabilities:
        lacking = self._machine and self._machine.gpus and gpu_options(self._info, ("0",)) is None
        missing = [_NO_GPUS] if lacking else []
        return replace(
            found,
            images=True,
            private_network=self._network_name != "host",
            machine=self._smaller(found.machine),
            missing=(*found.missing, *missing),
            volumes=syscalls.LINUX,
            without_volumes="the engine's containers run in a virtual machine, which does not see what is mounted here",
            shortfalls=self._shortfalls(),
            compartments=False,
            snapshots=True,
            egress=False,
            ports=True,
            without_groups="network groups are not possible with containers of an engine (executor.kind = docker)",
        )

    def _shortfalls(self) -> frozenset[Shortfall]:
        found = {Shortfall.SHARED_BRIDGE} if self._network_name == "bridge" else set[Shortfall]()
        return frozenset(found if self._entered else found | set(_BY_API))

    def _shared_address(self) -> str | None:
        return "127.0.0.1" if self._network_name == "host" and syscalls.LINUX else None

    def _host_address(self) -> str | None:
        return self._gateway if self._network_name == "bridge" else self._shared_address()

    def _smaller(self, machine: Machine | None) -> Machine | None:
        """Return the machine as the engine sees it, which may be a part of it, without what jobs cannot have."""
        if machine is None:
            return None
        gpus = machine.gpus if gpu_options(self._info, ("0",)) is not None else ()
        if machine is self._settings.machine:
            return replace(machine, gpus=gpus)
        processors, memory = self._info.get("NCPU") or 0, self._info.get("MemTotal") or 0
        return replace(
            machine,
            cpu_millicores=min(machine.cpu_millicores, processors * 1000) or machine.cpu_millicores,
            memory_bytes=min(machine.memory_bytes, memory) or machine.memory_bytes,
            gpus=gpus,
        )

    # The engine

    def _kept(self) -> EngineSnapshots:
        return EngineSnapshots(self._socket, self._instance)

    def _container_name(self, name: str) -> str:
        return f"runstead-{self._instance}-{name}"

    def _find_gateway(self) -> str | None:
        """Return the machine's address on the engine's bridge, if it is an address of this machine already."""
        try:
            network = self._engine.call("GET", "/networks/bridge", seconds=_SECONDS)
            address = str(network["IPAM"]["Config"][0]["Gateway"])
            with socket.socket() as trial:
                trial.bind((address, 0))
        except (OSError, EngineError, LookupError, TypeError):
            return None
        return address

    def _remove_container(self, name: str) -> None:
        for _ in range(_REMOVALS):
            try:
                self._engine.remove(name)
            except EngineError as error:
                if error.status != 409:
                    raise BackendFailure(f"the engine does not remove the container: {error}: {name}") from error
                time.sleep(_REMOVAL_PAUSE_SECONDS)  # somebody else is at it
            except OSError as error:
                raise Unavailable(unreachable(self._socket, error)) from error
            else:
                return
        raise BackendFailure(f"the engine does not come to an end with removing the container: {name}")

    def _left_containers(self) -> list[str]:
        """Return the names of our attempts that the engine has containers of."""
        wanted = json.dumps({"label": [f"{INSTANCE}={self._instance}"]})
        try:
            rows: list[Any] = (
                self._engine.call("GET", "/containers/json", query={"all": "true", "filters": wanted}) or []
            )
        except (OSError, EngineError) as error:
            raise Unavailable(unreachable(self._socket, error)) from error
        return [f"{row['Labels'].get(JOB)}-{row['Labels'].get(ATTEMPT)}" for row in rows]


def find_socket(wanted: Path | None, environment: Mapping[str, str]) -> str:
    """Return the path of the engine's socket. Raises Unavailable."""
    if wanted is not None:
        return str(wanted)
    if named := environment.get("DOCKER_HOST"):
        if not named.startswith("unix://"):
            raise Unavailable(f"only engines on a unix socket of this machine can be used: DOCKER_HOST={named}")
        return named.removeprefix("unix://")
    usual = [os.path.expanduser(path.format(user=os.getuid())) for path in USUAL_SOCKETS]  # noqa: PTH111 (a string)
    for path in usual:
        if Path(path).is_socket():
            return path
    raise Unavailable(
        f"no container engine was found: there is no {', '.join(usual)}; start one, "
        "or name its socket with docker.socket"
    )


def _can_enter(info: Mapping[str, Any]) -> bool:
    """Say whether containers of an engine are processes of this machine that we may join."""
    here = platform.uname()
    same = (info.get("KernelVersion"), info.get("Name")) == (here.release, here.node)
    return syscalls.LINUX and os.geteuid() == 0 and same and info.get("DefaultRuntime") in _ENTERABLE


def gpu_options(info: Mapping[str, Any], gpu_ids: Sequence[str]) -> dict[str, Any] | None:
    """Return what an engine's HostConfig says so that a container gets these GPUs; None where the engine cannot.

    Docker has device descriptions (CDI) since 25 and says where it looks for them; before, and without them, NVIDIA's
    own runtime does it.
    """
    if not gpu_ids:
        return {}
    if info.get("CDISpecDirs"):
        names = [f"{NVIDIA}={gpu_id}" for gpu_id in gpu_ids]
        return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": names}]}
    if "nvidia" in (info.get("Runtimes") or {}):
        wanted = {"Driver": "nvidia", "DeviceIDs": list(gpu_ids), "Capabilities": [["gpu", "utility", "compute"]]}
        return {"DeviceRequests": [wanted]}
    return None


def _ulimit(text: str) -> list[str | int]:
    """Read `nofile=1024:4096`, as engines' tools write it. Raises Unavailable."""
    name, _, value = text.partition("=")
    soft, _, hard = value.partition(":")
    try:
        return [name, int(soft), int(hard or soft)]
    except ValueError as error:
        raise Unavailable(
            f"a limit of docker.ulimits is no name=soft:hard, such as nofile=1024:4096: {text}"
        ) from error


def _files(environment: Mapping[str, str]) -> list[str]:
    """Return what variables name of this machine, certificates above all."""
    return list(
        dict.fromkeys(value for value in environment.values() if value.startswith("/") and Path(value).exists())
    )


def _usage(seen: Mapping[str, Any]) -> Usage | None:
    if "usage" not in part(seen, "memory_stats"):
        return None  # it does not run
    memory, detail = part(seen, "memory_stats"), part(seen, "memory_stats", "stats")
    cached = detail.get("inactive_file") or detail.get("cache") or 0
    networks: list[Any] = list(part(seen, "networks").values())
    return Usage(
        at=datetime.fromtimestamp(time.time(), UTC),
        cpu_seconds=(part(seen, "cpu_stats", "cpu_usage").get("total_usage") or 0) / 1e9,
        memory_used_bytes=max(int(memory["usage"]) - int(cached), 0),
        rx_bytes=sum(int(one.get("rx_bytes") or 0) for one in networks),
        tx_bytes=sum(int(one.get("tx_bytes") or 0) for one in networks),
    )
