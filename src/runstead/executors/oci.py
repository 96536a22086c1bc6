"""The `oci` executor: a job runs from the image it names, in a container of our own making.

No daemon and no runtime is needed: the launcher that starts `process` jobs starts these too, over another root. That is
an overlay of the image's unpacked layers, which all jobs share, and a disk of the job's own.
"""

import asyncio
import os
import platform
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from runstead.executors.cdi import FOLDERS, NVIDIA, Devices, Edits
from runstead.executors.inside import Inside
from runstead.executors.interface import Capabilities
from runstead.executors.machine import gpu_devices, shared_gpu_devices
from runstead.executors.native import NativeExecutor, NativeSettings, Root
from runstead.executors.resolving import network_files
from runstead.images.image import Image
from runstead.model.errors import Invalid, Unavailable, Unsupported
from runstead.model.launches import Handle, Launch
from runstead.node import bundle, disks, seccomp, syscalls
from runstead.node.request import Container

_OLDEST_KERNEL = (5, 12)  # mount_setattr
_NOT_FOUND = 127
_NO_WAY_IN = "there is no way into jobs in gVisor, whose processes are not this machine's (executor.runtime = runsc)"
_NO_SNAPSHOTS = "a container that a runtime makes (executor.runtime) cannot begin with another's files"
_SECCOMP = Path("/proc/sys/kernel/seccomp")
_NO_FILTER = "no filter of system calls: this kernel has none, or we have none for its processors"
_PROBE_DISK_BYTES = 16 << 20


class Images(Protocol):
    """What this executor needs of the images on this machine; see runstead.images."""

    async def open(self) -> None:
        """Make ready."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...

    async def get(self, reference: str, tell: Callable[[str], None]) -> Image:
        """Return an image, bringing it here first when it is not; raises ImageFailure."""
        ...

    def find(self, reference: str) -> Image | None:
        """Return an image that is here."""
        ...

    def hold(self, image: Image, name: str) -> None:
        """Keep it for an attempt, whatever becomes of this process."""
        ...

    def release(self, name: str) -> None:
        """Keep it for that attempt no longer."""
        ...

    def holders(self) -> list[str]:
        """Return the attempts that images are kept for."""
        ...


@dataclass(frozen=True, slots=True)
class OciSettings:
    """Settings of the oci executor."""

    native: NativeSettings = field(default_factory=NativeSettings)
    # Of /dev/shm in each job; what users of Docker are used to.
    shared_memory_bytes: int = 64 << 20
    # What makes the containers: "native" is ourselves, others are OCI runtimes found in PATH.
    runtime: Literal["native", "crun", "runc", "runsc"] = "native"
    # Where vendors describe their devices.
    described: tuple[Path, ...] = FOLDERS


class OciExecutor(NativeExecutor):
    """Runs attempts from images."""

    KIND = "oci"

    def __init__(self, data_dir: Path, settings: OciSettings, images: Images, wake: Callable[[str, str], None]) -> None:
        """See NativeExecutor. `images` is opened and closed with the executor."""
        super().__init__(data_dir, settings.native, wake)
        self._shared_memory_bytes = settings.shared_memory_bytes
        self._described = settings.described
        self._runtime_name = settings.runtime
        self._runtime = ""
        self._images = images
        self._private_ids = True
        self._disks = True
        self._filtered = seccomp.PROGRAM is not None and _SECCOMP.exists()
        self._making_disk = asyncio.Lock()

    async def open(self) -> Capabilities:
        """See Executor."""
        lacking = await asyncio.to_thread(problem)
        if lacking is not None:
            raise Unavailable(f"containers are not possible here: {lacking}; `--executor process` needs less")
        if self._runtime_name != "native":
            self._runtime = shutil.which(self._runtime_name) or ""
            if not self._runtime:
                raise Unavailable(f"{self._runtime_name} is not installed: executor.runtime = {self._runtime_name}")
        await self._images.open()
        capabilities = await super().open()
        await asyncio.to_thread(self._release_lost)
        return capabilities

    async def close(self) -> None:
        """See Executor."""
        await super().close()
        await self._images.close()

    async def prepare(self, launch: Launch, tell: Callable[[str], None]) -> None:
        """See Executor."""
        await self._images.get(launch.image, tell)

    async def expect(self, namespace: str, snapshot: str, count: int) -> None:
        """See Executor."""
        if self._can_share():
            await self._hosts.expect(f"{namespace}/{snapshot}", count, self._isolation, self._places)

    def _siblings(self, launch: Launch) -> str | None:
        """Forks of one sandbox that are made at once share theirs."""
        if launch.argv or not launch.snapshots or not self._can_share():
            return None
        return f"{launch.namespace}/{launch.snapshots[-1]}"

    def _can_share(self) -> bool:
        return self._isolation == "root" and bool(self._places) and not self._runtime

    async def _find_isolation(self) -> list[str]:
        self._isolation = "root"
        failures: dict[tuple[bool, bool], str] = {}
        for private_ids, with_disks in ((True, True), (True, False), (False, True), (False, False)):
            failure = await self._try(private_ids, with_disks)
            if failure is None:
                self._private_ids, self._disks = private_ids, with_disks
                return _missing(failures, private_ids, with_disks)
            failures[private_ids, with_disks] = failure
        raise Unavailable(f"containers are not possible here: {failure}; `--executor process` needs less")

    async def _root(self, launch: Launch) -> Root:
        if not launch.argv and self._runtime and not bundle.is_entered(self._runtime):
            raise Invalid(f"nothing would run in the job: {_NO_WAY_IN}", "command")
        if launch.egress is not None and self._runtime and not bundle.is_entered(self._runtime):
            # Its network's rules of the job's own are not asked: gVisor puts finished packets on the wire itself.
            raise Invalid("what one job may reach cannot be limited in gVisor (executor.runtime = runsc)", "egress")
        image = self._images.find(launch.image) or await self._images.get(launch.image, lambda _line: None)
        self._images.hold(image, self._name(launch.job_id, launch.attempt))
        disk = await self._disk(launch.disk_bytes) if self._disks and launch.disk_bytes else None
        edits = await asyncio.to_thread(self._edits, launch.gpu_ids) if launch.gpu_ids else Edits()
        layers = [str(path) for path in image.layers]
        container = self._container(layers, image, disk, self._private_ids, edits)
        container.snapshots = [str(self._snapshots.find(name)) for name in launch.snapshots]
        return Root(container=container)

    def _edits(self, gpu_ids: tuple[str, ...]) -> Edits:
        """Return what GPUs need in a container, as it is described now: drivers come and go."""
        edits = Devices(self._described).find(NVIDIA, gpu_ids)
        if edits is not None:
            return edits
        nodes = [node for gpu_id in gpu_ids for node in gpu_devices(gpu_id)]
        return Edits(devices=tuple((node, node) for node in [*nodes, *shared_gpu_devices()]))

    def _container(
        self, layers: list[str], image: Image | None, disk: str | None, private_ids: bool, edits: Edits
    ) -> Container:
        passed = self._passed_environment()
        shown = [value for value in passed.values() if value.startswith("/") and os.path.exists(value)]  # noqa: PTH110
        return Container(
            layers=layers,
            environment={**(_variables(image.config.environment) if image else {}), **edits.environment},
            passed=passed,
            working_dir=image.config.working_dir if image else "",
            user=image.config.user if image else "",
            files=network_files(self._network is not None),
            binds=[*([path, path] for path in dict.fromkeys(shown)), *map(list, edits.binds)],
            devices=[list(pair) for pair in edits.devices],
            links=[[path, target] for target, path in edits.links],
            libraries=list(edits.library_folders),
            shared_memory_bytes=self._shared_memory_bytes,
            disk=disk,
            private_ids=private_ids,
            filtered=self._filtered,
            runtime=self._runtime,
        )

    def _describe(self, found: Capabilities) -> Capabilities:
        missing = [] if self._filtered else [_NO_FILTER]
        if self._machine is not None and self._machine.gpus:
            missing += self._lacking_devices([gpu.id for gpu in self._machine.gpus])
        if self._runtime and not bundle.is_entered(self._runtime):
            found = replace(found, inside=False, ports=False, without_ports=_NO_WAY_IN, egress=False)
        return replace(
            found,
            images=True,
            snapshots=not self._runtime,
            without_snapshots=_NO_SNAPSHOTS,
            prepared=not self._runtime,
            private_ids=self._private_ids,
            disk_limits=self._disks,
            missing=(*found.missing, *missing),
        )

    def _can_divide(self) -> bool:
        return not self._runtime and super()._can_divide()

    def _release_lost(self) -> None:
        """Give up images of attempts that were never started, because a server died just then."""
        there = set(self._attempts.names())
        for name in self._images.holders():
            if name not in there:
                self._images.release(name)

    async def inside(self, handle: Handle) -> Inside:
        """See Executor."""
        if self._runtime and not bundle.is_entered(self._runtime):
            raise Unsupported(_NO_WAY_IN)
        return await super().inside(handle)

    def _lacking_devices(self, gpu_ids: list[str]) -> list[str]:
        devices = Devices(self._described)
        edits = devices.find(NVIDIA, gpu_ids)
        if edits is None:
            how = "run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"
            return [*devices.problems, f"GPUs in containers have no driver libraries: they are not described; {how}"]
        return [
            *devices.problems,
            *(f"a hook for GPUs is not known and left out: {one}" for one in edits.unknown_hooks),
        ]

    def _forget(self, name: str) -> None:
        self._images.release(name)

    async def _disk(self, size_bytes: int) -> str:
        """Return an empty file system of that size, to be copied."""
        path = f"{self._node}/disks/{size_bytes}.ext4"
        if not os.path.exists(path):  # noqa: ASYNC240, PTH110 - a look costs less than a thread
            async with self._making_disk:
                Path(path).parent.mkdir(mode=0o700, exist_ok=True)
                await asyncio.to_thread(disks.make, path, size_bytes)
        return path

    async def _try(self, private_ids: bool, with_disks: bool) -> str | None:
        """Have an empty container made; return why that failed."""
        try:
            disk = await self._disk(_PROBE_DISK_BYTES) if with_disks else None
        except OSError as error:
            return f"{error.strerror}: {error.filename}"
        # We need nothing to run: that all is there but the command is enough. A runtime gets this machine's own.
        layer, argv, expected = str(self._node / "empty"), "/runstead-probe", _NOT_FOUND
        if self._runtime:
            layer, argv, expected = "/", "true", 0
        root = Root(container=self._container([layer], None, disk, private_ids, Edits()))
        ended, words = await self._probe(root, argv)
        if ended is not None and ended.exit_code == expected:
            return None
        return words if ended is None else ended.message or words


def _missing(failures: dict[tuple[bool, bool], str], private_ids: bool, with_disks: bool) -> list[str]:
    missing: list[str] = []
    if not private_ids:
        why = failures[True, with_disks]
        missing.append(f"jobs have the ids of this machine, with few capabilities: no user namespaces: {why}")
    if not with_disks:
        missing.append(f"no limit of disk space for jobs: {failures[private_ids, True]}")
    return missing


def _variables(lines: tuple[str, ...]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name}


def problem() -> str | None:
    """Return why this machine can have no containers of ours; None when it can."""
    if not syscalls.LINUX:
        return "they need Linux"
    if os.geteuid() != 0:
        return "they need a server that runs as root"
    release = tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2] if word.isdigit())
    if release < _OLDEST_KERNEL:
        return f"they need Linux {'.'.join(map(str, _OLDEST_KERNEL))}, this is {platform.release()}"
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_try_overlay()))
    thread.start()
    thread.join()
    return found[0] if found else "their mounts cannot be tried"


def _try_overlay() -> str | None:
    """Mount an overlay, in a mount namespace of this thread's own: it ends with it."""
    stage = "/run"
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("tmpfs", stage, "tmpfs", 0, "mode=700,size=1m")
        for name in ("lower", "upper", "work", "root"):
            Path(stage, name).mkdir()
        options = f"lowerdir={stage}/lower,upperdir={stage}/upper,workdir={stage}/work"
        syscalls.mount("overlay", f"{stage}/root", "overlay", 0, options)
    except OSError as error:
        return f"{error.strerror} (the server runs in a container, or without CAP_SYS_ADMIN)"
    return None
